// The native operators by name: the table of contents of csrc/. Shapes are in nerftrain/ops, kernels in common/.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(nerftrain, m) {
  // Occupancy grids: bits from flags, and those of slices of time; which cells the cameras leave open.
  m.def("pack_grid(Tensor occupied) -> (Tensor, Tensor, Tensor)");
  m.def("slice_grid(Tensor cells, Tensor live) -> (Tensor, Tensor, Tensor)");
  m.def(
      "visible_cells(Tensor poses, Tensor intrinsics, Tensor sizes, Tensor counts, float mask_scale, float[] boxes, "
      "int[] resolution, float near) -> Tensor");
  // Marching: how many samples each ray has and where its march ended, then the samples; on the CPU in one pass, with
  // each sample's ray and where each ray's samples begin; which of them are seen.
  m.def(
      "march_count(Tensor origins, Tensor directions, Tensor near, Tensor far, Tensor jitter, Tensor slices, "
      "Tensor cells, Tensor blocks, float[] boxes, int[] resolution, int side, float step, float cone_angle, "
      "int max_steps, int max_samples) -> (Tensor, Tensor)");
  m.def(
      "march_write(Tensor origins, Tensor directions, Tensor near, Tensor far, Tensor jitter, Tensor slices, "
      "Tensor cells, Tensor blocks, float[] boxes, int[] resolution, int side, float step, float cone_angle, "
      "int max_steps, int max_samples, Tensor offsets, SymInt num_samples) -> (Tensor, Tensor, Tensor)");
  // On a GPU in one pass: runs of steps that are samples; then the samples.
  m.def(
      "march_runs(Tensor origins, Tensor directions, Tensor near, Tensor far, Tensor jitter, Tensor slices, "
      "Tensor cells, Tensor blocks, float[] boxes, int[] resolution, int side, float step, float cone_angle, "
      "int max_steps, int max_samples, Tensor empty, Tensor begin) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "march_fill(Tensor near, Tensor jitter, Tensor runs, Tensor nums, float step, float cone_angle, "
      "int max_steps, Tensor offsets, SymInt num_samples) -> (Tensor, Tensor, Tensor)");
  m.def(
      "march(Tensor origins, Tensor directions, Tensor near, Tensor far, Tensor jitter, Tensor slices, Tensor cells, "
      "Tensor blocks, float[] boxes, int[] resolution, int side, float step, float cone_angle, int max_steps, "
      "int max_samples) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "visible_samples(Tensor density, Tensor t_starts, Tensor t_ends, Tensor offsets, Tensor least, "
      "float early_stop_eps, Tensor arriving) -> (Tensor, Tensor)");
  m.def("alpha_shares(Tensor density, Tensor t_starts, Tensor t_ends, Tensor offsets) -> Tensor");
  // Visiting samples front to back: how many of each ray are next, which these are, what was found there; and keeping
  // those that are wanted, on the CPU in one pass, with the row that each was in.
  m.def("visit_count(Tensor offsets, Tensor num, Tensor transmittance, float early_stop_eps, int most) -> Tensor");
  m.def(
      "visit_pick(Tensor t_starts, Tensor t_ends, Tensor offsets, Tensor num, Tensor round_offsets, "
      "SymInt num_samples) -> (Tensor, Tensor, Tensor)");
  m.def(
      "visit_take_(Tensor round_density, Tensor round_starts, Tensor round_ends, Tensor round_offsets, "
      "Tensor offsets, Tensor(a!) num, Tensor(b!) transmittance, Tensor(c!) sum_alpha, Tensor(d!) density) -> ()");
  m.def(
      "select(Tensor keep, Tensor t_starts, Tensor t_ends, Tensor offsets) -> (Tensor, Tensor, Tensor, Tensor, "
      "Tensor)");
  m.def("select_count(Tensor keep, Tensor offsets) -> Tensor");
  m.def(
      "select_pick(Tensor keep, Tensor t_starts, Tensor t_ends, Tensor offsets, Tensor kept_offsets, "
      "SymInt num_samples) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "select_more_(Tensor keep, Tensor t_starts, Tensor t_ends, Tensor offsets, Tensor kept_offsets, Tensor before, "
      "SymInt first_row, Tensor(a!) kept_starts, Tensor(b!) kept_ends, Tensor(c!) kept_rays, Tensor(d!) kept_rows) -> "
      "()");
  m.def("gather_rows(Tensor numbers, Tensor rows, Tensor more) -> Tensor");
  // Where rays' samples begin in a buffer of a fixed size, and which rays have room in it.
  m.def("fit(Tensor ends, int room) -> (Tensor, Tensor)");
  // The next pixels to train on and where they are (camera, column, row); rays through the centres of pixels, of
  // pinholes and of other lenses, and the pixels' colours; where samples lie and along what they are seen.
  m.def(
      "draw_pixels(Tensor drawn, SymInt num_rays, int total, int stride, Tensor pixels, int width, int height) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "pixel_rays(Tensor poses, Tensor intrinsics, Tensor cameras, Tensor x, Tensor y) -> (Tensor origins, "
      "Tensor directions)");
  m.def(
      "lens_rays(Tensor poses, Tensor intrinsics, Tensor distortion, int projection, int iterations, Tensor cameras, "
      "Tensor x, Tensor y) -> (Tensor origins, Tensor directions)");
  m.def("pixel_colors(Tensor pixels, Tensor drawn, Tensor background) -> Tensor");
  m.def(
      "sample_points(Tensor origins, Tensor directions, Tensor t_starts, Tensor t_ends, Tensor ray_indices) -> "
      "(Tensor, Tensor)");
  m.def(
      "unit_points(Tensor origins, Tensor directions, Tensor t_starts, Tensor t_ends, Tensor ray_indices, Tensor box, "
      "int folding) -> Tensor");
  // Compositing: channels, opacity, depth and distortion of each ray; weight, opacity and arriving light of each
  // sample.
  m.def(
      "composite_fwd(Tensor density, Tensor channels, Tensor t_starts, Tensor t_ends, Tensor offsets) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "composite_bwd(Tensor density, Tensor channels, Tensor t_starts, Tensor t_ends, Tensor offsets, "
      "Tensor weights, Tensor transmittance, Tensor opacity, Tensor depth, Tensor v_channels, Tensor v_opacity, "
      "Tensor v_depth, Tensor v_distortion, Tensor v_weights, Tensor v_alphas, Tensor v_transmittance) -> "
      "(Tensor, Tensor)");
  // Colours over their backgrounds; each ray's share of their error, and its gradient.
  m.def("over_background_fwd(Tensor channels, Tensor opacity, Tensor background) -> Tensor");
  m.def("over_background_bwd(Tensor background, Tensor v_colors) -> Tensor");
  m.def(
      "color_error(Tensor prediction, Tensor target, Tensor whole, Tensor num_whole, float delta) -> (Tensor, "
      "Tensor)");
  // Encodings: the hash grid over 3 or 4 axes (a resolution per level and axis), its backward into a new table or, on
  // the CPU, added to one that is there; and spherical harmonics of directions.
  m.def("hash_encode_fwd(Tensor positions, Tensor table, int[] resolutions, int[] offsets) -> Tensor");
  m.def(
      "hash_encode_bwd(Tensor positions, Tensor table, Tensor v_features, int[] resolutions, int[] offsets, "
      "bool to_positions) -> (Tensor, Tensor)");
  m.def(
      "hash_encode_bwd_(Tensor positions, Tensor(a!) v_table, Tensor v_features, int[] resolutions, int[] offsets) -> "
      "()");
  m.def("spherical_harmonics_fwd(Tensor directions, int degree) -> Tensor");
  m.def("spherical_harmonics_bwd(Tensor directions, Tensor v_features, int degree) -> Tensor");
  // All of space folded into a bounded one.
  m.def("contract_fwd(Tensor positions, bool infinity_norm) -> Tensor");
  m.def("contract_bwd(Tensor positions, Tensor v_out, bool infinity_norm) -> Tensor");
  // Histograms along rays: intervals where a coarse one has its mass; how far it fails to bound a fine one.
  m.def("invert_cdf(Tensor edges, Tensor weights, Tensor jitter, SymInt num_intervals, float padding) -> Tensor");
  m.def("interlevel_fwd(Tensor edges, Tensor weights, Tensor coarse_edges, Tensor coarse_weights) -> Tensor");
  m.def(
      "interlevel_bwd(Tensor edges, Tensor weights, Tensor coarse_edges, Tensor coarse_weights, Tensor v_loss) -> "
      "Tensor");
  // Samples and intervals where a distribution along each ray has its mass; between which edges of its ray a value
  // lies.
  m.def(
      "sample_importance(Tensor edges, Tensor cdf, Tensor chunks, Tensor jitter, Tensor sample_chunks, "
      "Tensor interval_chunks, SymInt num_samples, SymInt num_bounds) -> (Tensor, Tensor)");
  m.def("search_edges(Tensor edges, Tensor chunks, Tensor values, Tensor value_chunks) -> (Tensor, Tensor)");
  // How spread out the weights along each ray are.
  m.def("distortion_fwd(Tensor weights, Tensor starts, Tensor ends, Tensor offsets) -> Tensor");
  m.def("distortion_bwd(Tensor weights, Tensor starts, Tensor ends, Tensor offsets, Tensor v_distortion) -> Tensor");
  // Running sums and products within chunks of a flattened tensor; sums over the samples of each ray.
  m.def("scan_sum(Tensor values, Tensor starts, Tensor counts, bool inclusive, bool reverse) -> Tensor");
  m.def("scan_prod_fwd(Tensor values, Tensor starts, Tensor counts, bool inclusive) -> Tensor");
  m.def("scan_prod_bwd(Tensor values, Tensor starts, Tensor counts, Tensor v_out, bool inclusive) -> Tensor");
  m.def("ray_offsets(Tensor ray_indices, SymInt num_rays) -> Tensor");  // on the CPU only
  m.def("ray_sums(Tensor values, Tensor ray_indices, Tensor in_order, SymInt num_rays) -> Tensor");
  // One step of Adam, in place.
  m.def(
      "adam_(Tensor(a!) parameter, Tensor gradient, Tensor(b!) mean, Tensor(c!) variance, float lr, float beta1, "
      "float beta2, float eps, float weight_decay, int step, bool skip) -> ()");
  m.def(
      "adam_with_copy_(Tensor(a!) parameter, Tensor(b!) gradient, Tensor(c!) mean, Tensor(d!) variance, "
      "Tensor(e!) copy, float lr, float beta1, float beta2, float eps, float weight_decay, int step, bool skip, "
      "bool clear) -> ()");
  m.def(
      "adam_placed_(Tensor(a!) parameter, Tensor gradient, Tensor(b!) mean, Tensor(c!) variance, Tensor(d!) copy, "
      "Tensor lr, Tensor step, float beta1, float beta2, float eps, float weight_decay, bool skip) -> ()");
  // A small MLP, on the CPU only: elsewhere the vendor's matrix library serves.
  m.def("mlp_fwd(Tensor x, Tensor weights, int[] widths, int lanes) -> Tensor");
  m.def("mlp_bwd(Tensor x, Tensor weights, Tensor v_y, int[] widths, int lanes) -> (Tensor, Tensor)");
  // Instant-NGP's two MLPs from encoded positions and directions, fused, on the CPU only.
  m.def("ngp_density(Tensor features, Tensor weights, int[] widths, int lanes) -> Tensor");
  m.def(
      "ngp_fwd(Tensor features, Tensor directions, Tensor density_weights, Tensor color_weights, int[] density_widths, "
      "int[] color_widths, int degree, int lanes) -> (Tensor, Tensor)");
  m.def(
      "ngp_bwd(Tensor features, Tensor directions, Tensor density_weights, Tensor color_weights, Tensor v_channels, "
      "Tensor v_density, int[] density_widths, int[] color_widths, int degree, int lanes) -> (Tensor, Tensor, Tensor)");
  // The same on a GPU's tensor cores, from features in half precision, for networks 64 wide; gradients are multiplied
  // by `scale` while they are in half precision. And such features, from a table in half precision. Rows from used[-1]
  // on are nobody's, unless `used` is empty.
  m.def("ngp_half_density(Tensor features, Tensor weights, int[] widths, Tensor used) -> Tensor");
  m.def(
      "ngp_half_density_bwd(Tensor features, Tensor weights, Tensor v_density, int[] widths, Tensor used, float scale) "
      "-> (Tensor, Tensor)");
  m.def(
      "ngp_half_fwd(Tensor features, Tensor directions, Tensor density_weights, Tensor color_weights, "
      "int[] density_widths, int[] color_widths, int degree, Tensor used) -> (Tensor, Tensor)");
  m.def(
      "ngp_half_bwd(Tensor features, Tensor directions, Tensor density_weights, Tensor color_weights, "
      "Tensor v_channels, Tensor v_density, int[] density_widths, int[] color_widths, int degree, Tensor used, "
      "float scale) -> (Tensor, Tensor, Tensor)");
  // Positions moved by a warp field of four hidden layers 64 wide, on a GPU's tensor cores: likewise.
  m.def(
      "warp_half_fwd(Tensor positions, Tensor times, Tensor weights, int position_frequencies, int time_frequencies, "
      "float reach, Tensor used) -> Tensor");
  m.def(
      "warp_half_bwd(Tensor positions, Tensor times, Tensor weights, Tensor v_moved, int position_frequencies, "
      "int time_frequencies, float reach, Tensor used, float scale) -> Tensor");
  m.def("hash_encode_half(Tensor positions, Tensor table, int[] resolutions, int[] offsets, Tensor used) -> Tensor");
  // The samples of rays that count by its densities, front to back until rays are opaque, or everything visited, and
  // what was looked up there; tables in float32 or half precision, the second of space and time, and a warp field, each
  // without elements where there is none. Contraction: 0 none, 1 L2, 2 L infinity. Gives starts, ends, rays, offsets,
  // densities, places and features of samples, and how many of a ray were visited, with the sum of their opacities.
  m.def(
      "find_ngp(Tensor origins, Tensor directions, Tensor times, Tensor table, int[] resolutions, "
      "int[] level_offsets, Tensor moving_table, int[] moving_resolutions, int[] moving_offsets, Tensor warp_weights, "
      "int[] warp_widths, int position_frequencies, int time_frequencies, float reach, Tensor weights, int[] widths, "
      "Tensor box, int contraction, float early_stop_eps, int lanes, Tensor near, Tensor far, "
      "Tensor jitter, Tensor slices, Tensor cells, Tensor blocks, float[] boxes, int[] resolution, int side, "
      "float step, float cone_angle, int max_steps, int max_samples, float alpha_thre, float min_weight, bool "
      "everything, "
      "bool remember) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // What rays see of it: channels, opacity, depth and distortion of each ray, and how many samples were visited.
  m.def(
      "render_ngp(Tensor origins, Tensor directions, Tensor times, Tensor table, int[] resolutions, "
      "int[] level_offsets, Tensor moving_table, int[] moving_resolutions, int[] moving_offsets, Tensor warp_weights, "
      "int[] warp_widths, int position_frequencies, int time_frequencies, float reach, Tensor weights, int[] widths, "
      "Tensor box, int contraction, float early_stop_eps, int lanes, Tensor near, Tensor far, "
      "Tensor jitter, Tensor slices, Tensor cells, Tensor blocks, float[] boxes, int[] resolution, int side, "
      "float step, float cone_angle, int max_steps, int max_samples, Tensor color_weights, int[] color_widths, int "
      "degree, "
      "float alpha_thre, float min_weight) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  // Which of the CPU's instruction sets serve: lanes as in csrc/cpu/isa.h, 0 for the most there is, -1 for those in
  // use; gives what serves.
  m.def("use_lanes(int lanes) -> int");
}
