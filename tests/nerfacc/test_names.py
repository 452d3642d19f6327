"""nerfacc's names with its arguments and defaults, so that code written for it runs."""

from __future__ import annotations

import inspect

import pytest

from nerftrain import nerfacc
from nerftrain.nerfacc import cameras, losses, volrend

CHUNKS = "packed_info=None ray_indices=None n_rays=None"
SIGNATURES = {
    nerfacc.pack_info: "ray_indices n_rays=None",
    nerfacc.inclusive_sum: "inputs packed_info=None",
    nerfacc.exclusive_sum: "inputs packed_info=None",
    nerfacc.inclusive_prod: "inputs packed_info=None",
    nerfacc.exclusive_prod: "inputs packed_info=None",
    nerfacc.rendering: "t_starts t_ends ray_indices=None n_rays=None rgb_sigma_fn=None "
    "rgb_alpha_fn=None render_bkgd=None",
    nerfacc.render_transmittance_from_alpha: f"alphas {CHUNKS} prefix_trans=None",
    nerfacc.render_transmittance_from_density: f"t_starts t_ends sigmas {CHUNKS} prefix_trans=None",
    nerfacc.render_weight_from_alpha: f"alphas {CHUNKS} prefix_trans=None",
    nerfacc.render_weight_from_density: f"t_starts t_ends sigmas {CHUNKS} prefix_trans=None",
    nerfacc.render_visibility_from_alpha: f"alphas {CHUNKS} early_stop_eps=0.0001 alpha_thre=0.0 "
    "prefix_trans=None",
    nerfacc.render_visibility_from_density: f"t_starts t_ends sigmas {CHUNKS} "
    "early_stop_eps=0.0001 alpha_thre=0.0 prefix_trans=None",
    nerfacc.accumulate_along_rays: "weights values=None ray_indices=None n_rays=None",
    volrend.accumulate_along_rays_: "weights values=None ray_indices=None outputs=None",
    cameras.opencv_lens_undistortion: "uv params eps=1e-06 iters=10",
    cameras.opencv_lens_undistortion_fisheye: "uv params eps=1e-06 iters=10",
    losses.distortion: "weights t_starts t_ends ray_indices=None n_rays=None",
    nerfacc.RaySamples: "vals packed_info=None ray_indices=None is_valid=None",
    nerfacc.RayIntervals: "vals packed_info=None ray_indices=None is_left=None is_right=None",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f.__name__)
def test_arguments_and_defaults_are_nerfaccs(function):
    parameters = inspect.signature(function).parameters.values()
    written = " ".join(
        p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters
    )
    assert written == SIGNATURES[function]


def test_all_names_that_are_offered_are_there_and_sorted():
    assert all(hasattr(nerfacc, name) for name in nerfacc.__all__)
    assert sorted(nerfacc.__all__) == list(nerfacc.__all__)
    assert nerfacc.__version__ == "0.5.3"
