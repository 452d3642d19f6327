"""The ops that csrc registers, and which of them have kernels for one kind of device alone."""

from __future__ import annotations

import re

from nerftrain.paths import data_dir

CPU_ONLY = (
    "march",
    "select",
    "ray_offsets",
    "mlp_fwd",
    "mlp_bwd",
    "adam_with_copy_",
    "hash_encode_bwd_",
    "ngp_density",
    "ngp_fwd",
    "ngp_bwd",
    "find_ngp",
    "render_ngp",
)

GPU_ONLY = (
    "march_runs",
    "march_fill",
    "hash_encode_half",
    "ngp_half_density",
    "ngp_half_density_bwd",
    "ngp_half_fwd",
    "ngp_half_bwd",
    "warp_half_fwd",
    "warp_half_bwd",
)


def registered_ops() -> list[str]:
    schemas = (data_dir("csrc") / "nerftrain.cpp").read_text()
    names = re.findall(r'm\.def\(\s*"(\w+)\(', schemas)
    return [name for name in names if name != "use_lanes"]  # a setting, without tensors
