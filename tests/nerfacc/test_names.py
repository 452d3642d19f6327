"""nerfacc's names with its arguments and defaults, so that code written for it runs."""

from __future__ import annotations

import inspect

import pytest

from nerftrain import nerfacc
from nerftrain.nerfacc import cameras, losses, volrend
from nerftrain.nerfacc.estimators import prop_net

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
    nerfacc.ray_aabb_intersect: "rays_o rays_d aabbs near_plane=-inf far_plane=inf miss_value=inf",
    nerfacc.traverse_grids: "rays_o rays_d binaries aabbs near_planes=None far_planes=None "
    "step_size=0.001 cone_angle=0.0 traverse_steps_limit=None over_allocate=False rays_mask=None "
    "t_sorted=None t_indices=None hits=None",
    nerfacc.searchsorted: "sorted_sequence values",
    nerfacc.importance_sampling: "intervals cdfs n_intervals_per_ray stratified=False",
    nerfacc.OccGridEstimator: "roi_aabb resolution=128 levels=1 kwargs",
    nerfacc.OccGridEstimator.sampling: "self rays_o rays_d sigma_fn=None alpha_fn=None "
    "near_plane=0.0 far_plane=10000000000.0 t_min=None t_max=None render_step_size=0.001 "
    "early_stop_eps=0.0001 alpha_thre=0.0 stratified=False cone_angle=0.0",
    nerfacc.OccGridEstimator.update_every_n_steps: "self step occ_eval_fn occ_thre=0.01 "
    "ema_decay=0.95 warmup_steps=256 n=16",
    nerfacc.OccGridEstimator.mark_invisible_cells: "self K c2w width height near_plane=0.0 "
    "chunk=32768",
    nerfacc.PropNetEstimator: "optimizer=None scheduler=None",
    nerfacc.PropNetEstimator.sampling: "self prop_sigma_fns prop_samples num_samples n_rays "
    "near_plane far_plane sampling_type=lindisp stratified=False requires_grad=False",
    nerfacc.PropNetEstimator.compute_loss: "self trans loss_scaler=1.0",
    nerfacc.PropNetEstimator.update_every_n_steps: "self trans requires_grad=False loss_scaler=1.0",
    prop_net.get_proposal_requires_grad_fn: "target=5.0 num_steps=1000",
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


PUBLISHED = {
    "OccGridEstimator",
    "PropNetEstimator",
    "RayIntervals",
    "RaySamples",
    "__version__",
    "accumulate_along_rays",
    "exclusive_prod",
    "exclusive_sum",
    "importance_sampling",
    "inclusive_prod",
    "inclusive_sum",
    "pack_info",
    "ray_aabb_intersect",
    "render_transmittance_from_alpha",
    "render_transmittance_from_density",
    "render_visibility_from_alpha",
    "render_visibility_from_density",
    "render_weight_from_alpha",
    "render_weight_from_density",
    "rendering",
    "searchsorted",
    "traverse_grids",
}


def test_every_public_name_of_nerfacc_is_offered():
    assert set(nerfacc.__all__) == PUBLISHED


def test_all_names_that_are_offered_are_there_and_sorted():
    assert all(hasattr(nerfacc, name) for name in nerfacc.__all__)
    assert sorted(nerfacc.__all__) == list(nerfacc.__all__)
    assert nerfacc.__version__ == "0.5.3"
