"""nerfacc's public names over this project's ops, on the CPU and on CUDA.

`from nerftrain.nerfacc import rendering` stands in for `from nerfacc import rendering`: names,
arguments, shapes and defaults are those of nerfacc 0.5.3. `__version__` is the version of that
contract, not of this project.
"""

from nerftrain.nerfacc.data_specs import RayIntervals, RaySamples
from nerftrain.nerfacc.estimators.occ_grid import OccGridEstimator
from nerftrain.nerfacc.estimators.prop_net import PropNetEstimator
from nerftrain.nerfacc.grid import ray_aabb_intersect, traverse_grids
from nerftrain.nerfacc.pack import pack_info
from nerftrain.nerfacc.pdf import importance_sampling, searchsorted
from nerftrain.nerfacc.scan import exclusive_prod, exclusive_sum, inclusive_prod, inclusive_sum
from nerftrain.nerfacc.volrend import (
    accumulate_along_rays,
    render_transmittance_from_alpha,
    render_transmittance_from_density,
    render_visibility_from_alpha,
    render_visibility_from_density,
    render_weight_from_alpha,
    render_weight_from_density,
    rendering,
)

__version__ = "0.5.3"

__all__ = [
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
]
