"""Encodings of positions and directions, small MLPs, and the activation of densities."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from nerftrain.errors import UserError
from nerftrain.ops import library
from nerftrain.ops.adam import half_copy
from nerftrain.ops.hash_encoding import HashLevels, hash_encode, hash_encode_reference
from nerftrain.ops.mlp import mlp, mlp_reference
from nerftrain.ops.ngp import truncated_exp as truncated_exp
from nerftrain.ops.ngp_half import Encoded
from nerftrain.ops.spherical_harmonics import spherical_harmonics

Storage = Literal["float16", "float32"]  # of the numbers that lookups read


def check_layout(
    num_levels: int,
    features_per_level: int,
    log2_table_size: int,
    base_resolution: int,
    finest_resolution: int,
    time: tuple[int, int] | None = None,
) -> None:
    """Raise UserError for what no hash encoding can be laid out as."""
    if not 1 <= num_levels <= 32:
        raise UserError(f"num_levels={num_levels}: choose 1 to 32")
    if features_per_level not in (1, 2, 4, 8):
        raise UserError(f"features_per_level={features_per_level}: choose 1, 2, 4 or 8")
    if not 4 <= log2_table_size <= 28:
        raise UserError(f"log2_table_size={log2_table_size}: choose 4 to 28")
    if not 1 <= base_resolution <= finest_resolution <= 2**20:
        raise UserError(
            f"base_resolution={base_resolution}, finest_resolution={finest_resolution}: "
            "choose 1 <= base <= finest <= 2^20"
        )
    if time and not 1 <= time[0] <= time[1] <= 2**20:
        raise UserError(
            f"base_time={time[0]}, finest_time={time[1]}: choose 1 <= base <= finest <= 2^20"
        )


class HashEncoding(nn.Module):
    """The multiresolution hash encoding of positions, or of positions and times, in 0..1.

    Instant-NGP, arXiv:2201.05989, section 3.
    """

    def __init__(
        self,
        num_levels: int,
        features_per_level: int,
        log2_table_size: int,
        base_resolution: int,
        finest_resolution: int,
        storage: Storage = "float32",
        *,
        time: tuple[int, int] | None = None,
    ) -> None:
        """Start from uniform noise of 1e-4 (the paper's section 4).

        With storage=float16 lookups on a CPU read a copy in half precision, while float32 is what
        learns. With `time`, the cells along time of the coarsest and of the finest level, it is of
        four axes. Raises UserError for what cannot be laid out.
        """
        super().__init__()
        check_layout(
            num_levels,
            features_per_level,
            log2_table_size,
            base_resolution,
            finest_resolution,
            time,
        )
        self.levels = HashLevels.geometric(
            num_levels, base_resolution, finest_resolution, log2_table_size, time
        )
        self.num_features = num_levels * features_per_level
        self.log2_table_size = log2_table_size
        entries = torch.empty(self.levels.offsets[-1], features_per_level).uniform_(-1e-4, 1e-4)
        self.table = nn.Parameter(entries)
        self.storage: Storage = storage
        self.by_torch = False  # whether torch encodes even where there are compiled ops

    def forward(self, positions: Tensor, known: Tensor | None = None) -> Tensor:
        """Encode positions [N, 3], or with their times [N, 4]: [N, num_features].

        These are `known` where they have been looked up already.
        """
        if self.by_torch:
            return hash_encode_reference(positions, self.table, self.levels)
        return hash_encode(positions, self.table, self.levels, self._half(), known)

    @property
    def stored(self) -> Tensor:
        """The numbers that lookups read: the table, or its copy in half precision."""
        half = self._half()
        return self.table.detach() if half is None else half

    def at(self, positions: Tensor) -> Encoded:
        """Name what is looked up at positions, for ops that read half precision on a GPU."""
        return Encoded(positions, self.table, half_copy(self.table), self.levels)

    def _half(self) -> Tensor | None:
        if self.storage == "float32" or not library.on_cpu(self.table):
            return None
        return half_copy(self.table)


class FrequencyEncoding(nn.Module):
    """The input itself, then sin and cos of 2^k times it.

    NeRF, arXiv:2003.08934, eq. 4, without its factor pi.
    """

    def __init__(self, num_frequencies: int, num_inputs: int = 3) -> None:
        """Prepare the frequencies of num_inputs coordinates.

        Raises UserError where there would be a negative number of them.
        """
        super().__init__()
        if num_frequencies < 0:
            raise UserError(f"frequencies={num_frequencies}: must be at least 0")
        self.register_buffer("scales", 2.0 ** torch.arange(num_frequencies), persistent=False)
        self.scales: Tensor
        self.num_features = num_inputs * (1 + 2 * num_frequencies)

    def forward(self, x: Tensor) -> Tensor:
        """Encode x [N, num_inputs]: [N, num_features]."""
        angles = (x[:, None, :] * self.scales[:, None]).flatten(1)
        return torch.cat([x, angles.sin(), angles.cos()], -1)


class DirectionEncoding(nn.Module):
    """Spherical harmonics of unit directions."""

    def __init__(self, degree: int) -> None:
        """Prepare degree**2 harmonics, degree 1 to 4.

        Raises UserError for any other degree.
        """
        super().__init__()
        if degree not in (1, 2, 3, 4):
            raise UserError(f"sh_degree={degree}: choose 1, 2, 3 or 4")
        self.degree = degree
        self.num_features = degree**2

    def forward(self, directions: Tensor) -> Tensor:
        """Encode directions [N, 3]: [N, degree**2]."""
        return spherical_harmonics(directions, self.degree)


class SmallMLP(nn.Module):
    """Bias-free linear layers with ReLU between them, Xavier-uniform at first."""

    def __init__(self, num_inputs: int, width: int, num_hidden: int, num_outputs: int) -> None:
        """Stack num_hidden hidden layers of a width."""
        super().__init__()
        widths = [num_inputs, *[width] * num_hidden, num_outputs]
        shapes = zip(widths[1:], widths[:-1], strict=True)
        self.weights = nn.ParameterList(
            nn.init.xavier_uniform_(torch.empty(shape)) for shape in shapes
        )
        self.by_torch = False  # whether torch evaluates even where there are compiled ops

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate x [N, num_inputs]: [N, num_outputs]."""
        return (mlp_reference if self.by_torch else mlp)(x, list(self.weights))
