// Instant-NGP's two MLPs on the CPU; kernels in ngp_kernel.h.
#include <stdexcept>

#include "../operators/tensors.h"
#include "isa.h"
#include "ngp_shape.h"
#include "ranges.h"

namespace nerftrain {

const NgpKernels& ngp_kernels(int64_t lanes) {
  return kernels_for(lanes, ngp_portable, ngp_avx2, ngp_avx512, ngp_avx512bf16, ngp_amx);
}

NgpShape ngp_shape(const std::vector<int64_t>& density, const std::vector<int64_t>& color, int64_t degree) {
  const NgpShape shape{mlp_shape(density), mlp_shape(color), int(degree)};
  if (degree < 1 || degree > 4) throw std::runtime_error("ngp: harmonics of degree 1 to 4");
  if (shape.color.widths[0] != shape.num_geometry() + degree * degree)
    throw std::runtime_error("ngp: the colour MLP takes the geometry's features and the harmonics");
  return shape;
}

Tensor ngp_density(const Tensor& features, const Tensor& weights, std::vector<int64_t> widths, int64_t lanes) {
  widths.back() = 1;  // the density; what colour knows of it is not asked for
  // Of the colour MLP nothing is used but its room.
  const NgpShape shape{mlp_shape(widths), mlp_shape({1, 1}), 1};
  const NgpKernels& kernels = ngp_kernels(lanes);
  Tensor density = make(features, {features.size(0)});
  const Ranges ranges(features.size(0));
  const int64_t room = kernels.scratch_floats(shape);
  Tensor scratch = make(features, {ranges.parts, room});
  const float nothing = 0.f;
  const NgpWeights both{read<float>(weights), &nothing};
  const float* pf = read<float>(features);
  float *pd = write<float>(density), *ps = write<float>(scratch);
  ranges.each([&](int64_t part, int64_t begin, int64_t end) {
    kernels.density(shape, both, pf, pd, nullptr, begin, end, ps + part * room);
  });
  return density;
}

std::tuple<Tensor, Tensor> ngp_fwd(const Tensor& features, const Tensor& directions, const Tensor& density_weights,
                                   const Tensor& color_weights, std::vector<int64_t> density_widths,
                                   std::vector<int64_t> color_widths, int64_t degree, int64_t lanes) {
  const NgpShape shape = ngp_shape(density_widths, color_widths, degree);
  const NgpKernels& kernels = ngp_kernels(lanes);
  const int64_t num = features.size(0);
  Tensor channels = make(features, {num, shape.num_channels()}), density = make(features, {num});
  const Ranges ranges(num);
  const int64_t room = kernels.scratch_floats(shape);
  Tensor scratch = make(features, {ranges.parts, room});
  const NgpWeights weights{read<float>(density_weights), read<float>(color_weights)};
  const float *pf = read<float>(features), *pv = read<float>(directions);
  float *pc = write<float>(channels), *pd = write<float>(density), *ps = write<float>(scratch);
  ranges.each([&](int64_t part, int64_t begin, int64_t end) {
    kernels.forward(shape, weights, pf, pv, pc, pd, begin, end, ps + part * room);
  });
  return {channels, density};
}

std::tuple<Tensor, Tensor, Tensor> ngp_bwd(const Tensor& features, const Tensor& directions,
                                           const Tensor& density_weights, const Tensor& color_weights,
                                           const Tensor& v_channels, const Tensor& v_density,
                                           std::vector<int64_t> density_widths, std::vector<int64_t> color_widths,
                                           int64_t degree, int64_t lanes) {
  const NgpShape shape = ngp_shape(density_widths, color_widths, degree);
  const NgpKernels& kernels = ngp_kernels(lanes);
  const int64_t num = features.size(0);
  Tensor v_features = make(features, {num, features.size(1)});
  Tensor v_density_weights = make(density_weights, {density_weights.size(0)});
  Tensor v_color_weights = make(color_weights, {color_weights.size(0)});
  const Ranges ranges(num);
  const int64_t room = kernels.scratch_floats(shape), gradient = kernels.gradient_floats(shape);
  Tensor scratch = make(features, {ranges.parts, room});
  Tensor parts = torch::stable::new_zeros(features, std::vector<int64_t>{ranges.parts, gradient});
  const NgpWeights weights{read<float>(density_weights), read<float>(color_weights)};
  const float *pf = read<float>(features), *pv = read<float>(directions);
  const float *pvc = read<float>(v_channels), *pvd = read<float>(v_density);
  float *pvf = write<float>(v_features), *ps = write<float>(scratch), *pg = write<float>(parts);
  ranges.each([&](int64_t part, int64_t begin, int64_t end) {
    kernels.backward(shape, weights, pf, pv, pvc, pvd, pvf, pg + part * gradient, begin, end, ps + part * room);
  });
  kernels.reduce(shape, pg, int(ranges.parts), write<float>(v_density_weights), write<float>(v_color_weights));
  return {v_features, v_density_weights, v_color_weights};
}

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("ngp_density", TORCH_BOX(&nerftrain::ngp_density));
  m.impl("ngp_fwd", TORCH_BOX(&nerftrain::ngp_fwd));
  m.impl("ngp_bwd", TORCH_BOX(&nerftrain::ngp_bwd));
}
