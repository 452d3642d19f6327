"""Volume rendering along rays, batched or flattened.

    alpha_i = 1 - exp(-sigma_i dt_i),  T_i = prod_{j<i} (1 - alpha_j)
    w_i = T_i alpha_i,  colour = sum_i w_i c_i
(NeRF, arXiv:2003.08934, eq. 3). Shapes: `[...]` is [R, n] for batched samples and [N] for
flattened ones. Of flattened samples either `packed_info` [R, 2] (start and count of each ray's
chunk) or `ray_indices` [N], non-decreasing, with `n_rays` tells whose they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nerftrain.checks import check_background, check_ray_indices, check_shape
from nerftrain.errors import UserError
from nerftrain.nerfacc.pack import pack_info
from nerftrain.nerfacc.scan import exclusive_prod, exclusive_sum
from nerftrain.ops.composite import composite
from nerftrain.ops.scan import ray_offsets, sum_along_rays
from nerftrain.types import Samples

# (t_starts [...], t_ends [...], ray_indices [N] or None) -> colours [..., 3], and densities or
# opacities [...]
Field = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def rendering(
    t_starts: Tensor,
    t_ends: Tensor,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    rgb_sigma_fn: Field | None = None,
    rgb_alpha_fn: Field | None = None,
    render_bkgd: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Render rays through a field: colours [R, 3], opacities [R, 1], depths [R, 1], extras.

    Depths are mean distances, divided by the opacity. The extras are `weights`, `trans`, `alphas`
    and `rgbs`, and `sigmas` where the field gives densities. Without any sample the field is not
    asked; what comes out can still be differentiated.

    Args:
        t_starts: [...] where samples start.
        t_ends: [...] where they end.
        ray_indices: [N], non-decreasing, of flattened samples.
        n_rays: R, together with ray_indices.
        rgb_sigma_fn: gives colours and densities; it comes first if both are there.
        rgb_alpha_fn: gives colours and opacities.
        render_bkgd: [3] or [R, 3], what is seen where rays pass.

    Raises:
        UserError: neither function, shapes that do not fit, or ray_indices in no order or of no
            such ray (seen on the CPU only).
    """
    if ray_indices is not None:
        _require(n_rays is not None, "ray_indices without n_rays: give the number of rays, too")
        _require(
            t_starts.shape == t_ends.shape == ray_indices.shape,
            "t_starts, t_ends and ray_indices differ in shape: give [N] each",
        )
        check_ray_indices(ray_indices, n_rays)
    else:
        check_shape("t_ends", t_ends, tuple(t_starts.shape), "give an end for each of t_starts")
    where = (t_starts, t_ends, ray_indices, n_rays)
    if rgb_sigma_fn is not None:
        rgbs, sigmas = _ask(rgb_sigma_fn, t_starts, t_ends, ray_indices)
        sums, extras = _render_density(rgbs, sigmas, *where)
    elif rgb_alpha_fn is not None:
        rgbs, alphas = _ask(rgb_alpha_fn, t_starts, t_ends, ray_indices)
        weights, trans = render_weight_from_alpha(alphas, ray_indices=ray_indices, n_rays=n_rays)
        sums = _sums(weights, rgbs, *where)
        extras = {"weights": weights, "trans": trans, "rgbs": rgbs, "alphas": alphas}
    else:
        raise UserError("nothing to render: give rgb_sigma_fn or rgb_alpha_fn")
    colors, opacities, depths = sums
    depths = depths / opacities.clamp_min(torch.finfo(rgbs.dtype).eps)
    if render_bkgd is not None:
        check_background(render_bkgd, len(colors))
        colors = colors + render_bkgd * (1.0 - opacities)
    return colors, opacities, depths, extras


def render_transmittance_from_alpha(
    alphas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    prefix_trans: Tensor | None = None,
) -> Tensor:
    """Find the transmittance T_i [...] before each sample from opacities [...].

    Gradients are exact for opacities of 1, too. `prefix_trans` [...] is what arrives from before
    the samples.
    """
    trans = exclusive_prod(1 - alphas, _packed(alphas, packed_info, ray_indices, n_rays))
    return trans if prefix_trans is None else trans * prefix_trans


def render_transmittance_from_density(
    t_starts: Tensor,
    t_ends: Tensor,
    sigmas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    prefix_trans: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the transmittance T_i [...] before each sample, and its opacity [...], from density.

    `sigmas` [...] are per unit of distance. `prefix_trans` [...] is what arrives from before the
    samples.
    """
    if packed_info is not None or ray_indices is not None:
        _require(
            t_starts.shape == t_ends.shape == sigmas.shape,
            "t_starts, t_ends and sigmas differ in shape: give [N] each",
        )
    optical = sigmas * (t_ends - t_starts)
    alphas = -torch.expm1(-optical)
    trans = torch.exp(-exclusive_sum(optical, _packed(optical, packed_info, ray_indices, n_rays)))
    return trans if prefix_trans is None else trans * prefix_trans, alphas


def render_weight_from_alpha(
    alphas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    prefix_trans: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Find weights w_i [...] and transmittances T_i [...] from opacities [...]."""
    trans = render_transmittance_from_alpha(alphas, packed_info, ray_indices, n_rays, prefix_trans)
    return trans * alphas, trans


def render_weight_from_density(
    t_starts: Tensor,
    t_ends: Tensor,
    sigmas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    prefix_trans: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find weights w_i, transmittances T_i and opacities, [...] each, from densities [...]."""
    trans, alphas = render_transmittance_from_density(
        t_starts, t_ends, sigmas, packed_info, ray_indices, n_rays, prefix_trans
    )
    return trans * alphas, trans, alphas


@torch.no_grad()
def render_visibility_from_alpha(
    alphas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    early_stop_eps: float = 1e-4,
    alpha_thre: float = 0.0,
    prefix_trans: Tensor | None = None,
) -> Tensor:
    """Tell which samples are seen, bool [...], from opacities [...].

    Seen are those that at least a share `early_stop_eps` of the light reaches and whose opacity is
    at least `alpha_thre`.
    """
    trans = render_transmittance_from_alpha(alphas, packed_info, ray_indices, n_rays, prefix_trans)
    return _visible(trans, alphas, early_stop_eps, alpha_thre)


@torch.no_grad()
def render_visibility_from_density(
    t_starts: Tensor,
    t_ends: Tensor,
    sigmas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    early_stop_eps: float = 1e-4,
    alpha_thre: float = 0.0,
    prefix_trans: Tensor | None = None,
) -> Tensor:
    """Tell which samples are seen, bool [...], from densities (see the one from alpha)."""
    trans, alphas = render_transmittance_from_density(
        t_starts, t_ends, sigmas, packed_info, ray_indices, n_rays, prefix_trans
    )
    return _visible(trans, alphas, early_stop_eps, alpha_thre)


def accumulate_along_rays(
    weights: Tensor,
    values: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
) -> Tensor:
    """Sum weighted values along rays: [R, D], or the weights alone: [R, 1].

    The same bits every time, on CUDA too, and right for ray indices in any order.

    Args:
        weights: [...].
        values: [..., D].
        ray_indices: [N] of flattened weights.
        n_rays: R, together with ray_indices.

    Raises:
        UserError: shapes that do not fit.
    """
    weighted = _weighted(weights, values)
    if ray_indices is None:
        return weighted.sum(-2)
    if n_rays is None:
        raise UserError("ray_indices without n_rays: give the number of rays, too")
    _require(
        weights.shape == ray_indices.shape and weights.dim() == 1,
        "weights and ray_indices differ in shape: give [N] each",
    )
    return sum_along_rays(weighted, ray_indices, n_rays).to(weighted.dtype)


def accumulate_along_rays_(
    weights: Tensor,
    values: Tensor | None = None,
    ray_indices: Tensor | None = None,
    outputs: Tensor | None = None,
) -> None:
    """Add the sums that `accumulate_along_rays` finds to outputs [R, D], in place."""
    if outputs is None:
        raise UserError("nowhere to accumulate: give outputs of shape [n_rays, D]")
    sums = accumulate_along_rays(weights, values, ray_indices, outputs.shape[0])
    _require(
        outputs.shape == sums.shape,
        f"outputs have the shape {list(outputs.shape)}: give {list(sums.shape)}",
    )
    outputs.add_(sums)


def _ask(
    field: Field, t_starts: Tensor, t_ends: Tensor, ray_indices: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Query colours [..., 3] and densities or opacities [...]."""
    if t_starts.numel():
        rgbs, values = field(t_starts, t_ends, ray_indices)
    else:  # leaves, so that the loss of a batch that met nothing has a backward
        rgbs, values = (
            t_starts.new_empty(shape).requires_grad_(torch.is_grad_enabled())
            for shape in ((*t_starts.shape, 3), t_starts.shape)
        )
    _require(
        rgbs.shape == (*t_starts.shape, 3),
        f"the field's colours have the shape {list(rgbs.shape)}, not {[*t_starts.shape, 3]}: sum "
        "other channels by accumulate_along_rays",
    )
    _require(
        values.shape == t_starts.shape,
        f"the field's densities have the shape {list(values.shape)}, not {list(t_starts.shape)}: "
        "squeeze(-1) takes a last axis of 1 away",
    )
    return rgbs, values


def _render_density(
    rgbs: Tensor,
    sigmas: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    ray_indices: Tensor | None,
    n_rays: int | None,
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Tensor]]:
    """Find the sums of `_sums` and the extras: by the compositor, where no t has a gradient."""
    if ray_indices is None or n_rays is None or t_starts.requires_grad or t_ends.requires_grad:
        packed_info = _packed(sigmas, None, ray_indices, n_rays)
        trans, alphas = render_transmittance_from_density(t_starts, t_ends, sigmas, packed_info)
        weights = trans * alphas
        sums = _sums(weights, rgbs, t_starts, t_ends, ray_indices, n_rays)
    else:
        samples = Samples(t_starts, t_ends, ray_indices, ray_offsets(ray_indices, n_rays))
        kind = torch.promote_types(sigmas.dtype, t_starts.dtype)
        out = composite(sigmas.to(kind), rgbs, samples)
        weights, trans, alphas = out.weights, out.transmittance, out.alphas
        sums = (out.channels, out.opacity[:, None], out.depth[:, None])
    extras = {"weights": weights, "alphas": alphas, "trans": trans, "sigmas": sigmas, "rgbs": rgbs}
    return sums, extras


def _sums(
    weights: Tensor,
    rgbs: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    ray_indices: Tensor | None,
    n_rays: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum colours, weights and weighted distances along rays."""
    middle = (t_starts + t_ends)[..., None] / 2
    return (
        accumulate_along_rays(weights, rgbs, ray_indices, n_rays),
        accumulate_along_rays(weights, None, ray_indices, n_rays),
        accumulate_along_rays(weights, middle, ray_indices, n_rays),
    )


def _packed(
    values: Tensor, packed_info: Tensor | None, ray_indices: Tensor | None, n_rays: int | None
) -> Tensor | None:
    if packed_info is None and ray_indices is not None:
        check_shape("ray_indices", ray_indices, tuple(values.shape), "give one for each sample")
        return pack_info(ray_indices, n_rays)
    return packed_info


def _visible(trans: Tensor, alphas: Tensor, early_stop_eps: float, alpha_thre: float) -> Tensor:
    seen = trans >= early_stop_eps
    return seen & (alphas >= alpha_thre) if alpha_thre > 0 else seen


def _weighted(weights: Tensor, values: Tensor | None) -> Tensor:
    if values is None:
        return weights[..., None]
    _require(
        values.shape[:-1] == weights.shape,
        f"values have the shape {list(values.shape)}: give {[*weights.shape, 'D']}",
    )
    return weights[..., None] * values


def _require(holds: bool, remedy: str) -> None:
    if not holds:
        raise UserError(remedy)
