"""tiny-cuda-nn's encodings and MLPs in the place of the project's own, on an NVIDIA GPU.

They take the same settings and mean the same by them: features per level, entries, the coarsest and
finest level, hidden layers and their width. tiny-cuda-nn lays vertices half a cell elsewhere and
computes in half precision with a loss scale of its own, so weights do not carry over from one to
the other.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from nerftrain.errors import UserError
from nerftrain.models.encodings import HashEncoding

INSTALL = (
    "pip install git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch "
    "(it needs a CUDA compiler)"
)
FUSED_WIDTHS = (16, 32, 64, 128)  # those of its fully fused MLPs


def load() -> ModuleType:
    """Import tiny-cuda-nn.

    Raises:
        UserError: there is none, or no GPU that it could run on.
    """
    others = "choose model.backend=auto"
    if not torch.cuda.is_available():
        raise UserError(f"model.backend=tcnn: tiny-cuda-nn needs an NVIDIA GPU: {others}")
    try:
        return importlib.import_module("tinycudann")
    except ImportError as error:
        raise UserError(f"model.backend=tcnn: {error}: {INSTALL}, or {others}") from error
    except OSError as error:  # what it says itself of a GPU that it was not built for
        raise UserError(f"model.backend=tcnn: {error}: {others}") from error


class TcnnEncoding(nn.Module):
    """tiny-cuda-nn's hash grid in the layout of one of ours."""

    def __init__(self, like: HashEncoding) -> None:
        """Build the grid; `like` says how many levels, features, entries and cells.

        Raises:
            UserError: tiny-cuda-nn cannot be used, or has no such grid.
        """
        super().__init__()
        if like.levels.times:
            raise UserError(
                "model.backend=tcnn has no grid of space and time: choose model.motion=warp, or "
                "model.backend=auto"
            )
        cells = like.levels.resolutions
        growth = (cells[-1] / cells[0]) ** (1 / max(len(cells) - 1, 1))
        config = {
            "otype": "HashGrid",
            "n_levels": len(cells),
            "n_features_per_level": like.table.shape[1],
            "log2_hashmap_size": like.log2_table_size,
            "base_resolution": cells[0],
            "per_level_scale": growth,
        }
        self.table = load().Encoding(3, config)
        self.num_features: int = like.num_features

    def forward(self, positions: Tensor) -> Tensor:
        """Encode positions [N, 3] in 0..1: [N, num_features]."""
        return _some(self.table, positions, self.num_features)


class TcnnMLP(nn.Module):
    """tiny-cuda-nn's MLP without biases and with ReLU between layers."""

    def __init__(self, num_inputs: int, width: int, num_hidden: int, num_outputs: int) -> None:
        """Stack num_hidden hidden layers of a width, fully fused where the width allows it.

        Raises:
            UserError: tiny-cuda-nn cannot be used.
        """
        super().__init__()
        config: dict[str, Any] = {
            "otype": "FullyFusedMLP" if width in FUSED_WIDTHS else "CutlassMLP",
            "activation": "ReLU",
            "output_activation": "None",
            "n_neurons": width,
            "n_hidden_layers": num_hidden,
        }
        self.network = load().Network(num_inputs, num_outputs, config)
        self.num_outputs = num_outputs

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate x [N, num_inputs]: [N, num_outputs] in float32."""
        return _some(self.network, x, self.num_outputs).float()


def _some(module: nn.Module, x: Tensor, num_outputs: int) -> Tensor:
    """Evaluate a module of tiny-cuda-nn, whose kernels fail where there are no rows."""
    return module(x) if len(x) else x.new_zeros(0, num_outputs)
