// The small MLP on the CPU; kernels in mlp_kernel.h.
#include <stdexcept>

#include "../operators/tensors.h"
#include "isa.h"
#include "ngp_shape.h"
#include "ranges.h"

namespace nerftrain {

const MlpKernels& mlp_kernels(int64_t lanes) {
  return kernels_for(lanes, mlp_portable, mlp_avx2, mlp_avx512, mlp_avx512bf16, mlp_amx);
}

MlpShape mlp_shape(const std::vector<int64_t>& widths) {
  if (widths.size() < 2 || widths.size() > kMlpMaxLayers + 1) throw std::runtime_error("mlp: 1 to 8 layers");
  MlpShape shape{int(widths.size()) - 1, {}};
  for (size_t l = 0; l < widths.size(); ++l) shape.widths[l] = int(widths[l]);
  return shape;
}

Tensor mlp_fwd(const Tensor& x, const Tensor& weights, std::vector<int64_t> widths, int64_t lanes) {
  const MlpShape shape = mlp_shape(widths);
  const MlpKernels& kernels = mlp_kernels(lanes);
  Tensor y = make(x, {x.size(0), shape.widths[shape.num_layers]});
  const Ranges ranges(x.size(0));
  const int64_t room = kernels.scratch_floats(shape);
  Tensor scratch = make(x, {ranges.parts, room});
  const float *px = read<float>(x), *pw = read<float>(weights);
  float *py = write<float>(y), *ps = write<float>(scratch);
  ranges.each([&](int64_t part, int64_t begin, int64_t end) {
    kernels.forward(shape, pw, px, py, begin, end, ps + part * room);
  });
  return y;
}

std::tuple<Tensor, Tensor> mlp_bwd(const Tensor& x, const Tensor& weights, const Tensor& v_y,
                                   std::vector<int64_t> widths, int64_t lanes) {
  const MlpShape shape = mlp_shape(widths);
  const MlpKernels& kernels = mlp_kernels(lanes);
  Tensor v_x = make(x, {x.size(0), x.size(1)}), v_weights = make(weights, {weights.size(0)});
  const Ranges ranges(x.size(0));
  const int64_t room = kernels.scratch_floats(shape), gradient = kernels.gradient_floats(shape);
  Tensor scratch = make(x, {ranges.parts, room});
  Tensor parts = torch::stable::new_zeros(x, std::vector<int64_t>{ranges.parts, gradient});
  const float *px = read<float>(x), *pw = read<float>(weights), *pv = read<float>(v_y);
  float *vx = write<float>(v_x), *ps = write<float>(scratch), *pg = write<float>(parts);
  ranges.each([&](int64_t part, int64_t begin, int64_t end) {
    kernels.backward(shape, pw, px, pv, vx, pg + part * gradient, begin, end, ps + part * room);
  });
  kernels.reduce(shape, pg, int(ranges.parts), write<float>(v_weights));
  return {v_x, v_weights};
}

int64_t use_lanes(int64_t lanes) {
  if (lanes < 0) return lanes_for(0);
  if (lanes != 0) lanes_for(lanes);  // throws where the CPU lacks them
  default_lanes() = lanes;
  return lanes_for(0);
}

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CompositeExplicitAutograd, m) {
  m.impl("use_lanes", TORCH_BOX(&nerftrain::use_lanes));
}

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("mlp_fwd", TORCH_BOX(&nerftrain::mlp_fwd));
  m.impl("mlp_bwd", TORCH_BOX(&nerftrain::mlp_bwd));
}
