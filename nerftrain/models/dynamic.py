"""Fields that change with time: a warp in front of a static field, a hash of space and time.

The warp is T-NeRF's (D-NeRF, arXiv:2011.13961, eq. 4, in the sizes of NerfAcc, arXiv:2305.04966).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from nerftrain.bounds import (
    MOST_FREQUENCIES,
    MOST_LAYERS,
    MOST_WIDTH,
    check_at_most,
    check_counts,
)
from nerftrain.errors import UserError
from nerftrain.models.encodings import FrequencyEncoding, HashEncoding, SmallMLP, check_layout
from nerftrain.ops.warp import Moves, can_do, warp_half

MOST_REACH = 10  # sides of the box: a warp from far outside of it learns nothing


@dataclass(frozen=True)
class Warp:
    """The settings of a warp field; what each means is said in conf/model/."""

    depth: int
    width: int
    position_frequencies: int
    time_frequencies: int
    reach: float

    def __post_init__(self) -> None:
        """Refuse, with a UserError, what no warp can be."""
        check_counts(MOST_LAYERS, depth=self.depth)
        check_counts(MOST_WIDTH, width=self.width)
        for name in ("position_frequencies", "time_frequencies"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)}: must not be negative")
            check_at_most(MOST_FREQUENCIES, **{name: getattr(self, name)})
        if not self.reach > 0:
            raise UserError(f"reach={self.reach}: must be above 0")
        check_at_most(MOST_REACH, reach=self.reach)


class WarpField(nn.Module):
    """Moves a position at a time to where it is in the canonical field, at first to itself."""

    def __init__(self, settings: Warp) -> None:
        """Build the MLP; its last layer starts near zero, not at it, so that all layers learn."""
        super().__init__()
        self.positions = FrequencyEncoding(settings.position_frequencies)
        self.times = FrequencyEncoding(settings.time_frequencies, 1)
        num_inputs = self.positions.num_features + self.times.num_features
        self.mlp = SmallMLP(num_inputs, settings.width, settings.depth, 3)
        nn.init.uniform_(self.mlp.weights[-1], -1e-4, 1e-4)
        self.moves = Moves(settings.position_frequencies, settings.time_frequencies, settings.reach)

    def in_half_precision(self) -> bool:
        """Tell whether a GPU's kernel in half precision evaluates the MLP."""
        return not self.mlp.by_torch and can_do(list(self.mlp.weights))

    def forward(self, positions: Tensor, times: Tensor, used: Tensor | None = None) -> Tensor:
        """Move positions [N, 3] in 0..1 at times [N] in 0..1: [N, 3].

        `used` [.] int64 ends with the number of rows that count: where others go is anything.
        """
        if not positions.requires_grad and self.in_half_precision():
            return warp_half(positions, times, list(self.mlp.weights), self.moves, used)
        # The box is -1..1 here: the frequencies are meant for coordinates of about one.
        encoded = [self.positions(positions * 2 - 1), self.times(times[:, None])]
        return positions + self.moves.reach * self.mlp(torch.cat(encoded, -1))


@dataclass(frozen=True)
class Spacetime:
    """The settings of a hash encoding of space and time; see conf/model/ngp.yaml."""

    num_levels: int
    features_per_level: int
    log2_table_size: int
    base_resolution: int
    finest_resolution: int
    base_time: int
    finest_time: int

    def __post_init__(self) -> None:
        """Refuse, with a UserError, what cannot be laid out, whether it will be built or not."""
        values, time = self._layout()
        check_layout(**values, time=time)

    def build(self) -> HashEncoding:
        """Make the encoding of positions and times [N, 4]."""
        values, time = self._layout()
        return HashEncoding(**values, storage="float32", time=time)

    def _layout(self) -> tuple[dict[str, int], tuple[int, int]]:
        values = asdict(self)
        return values, (values.pop("base_time"), values.pop("finest_time"))
