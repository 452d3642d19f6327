#include "../operators/scan.h"

#include "backend.h"

namespace nerftrain {

// Where each ray's samples begin among those in the order of their rays: int64 [R + 1], which never decrease, whatever
// the indices. One pass that leaps over samples of one ray.
Tensor ray_offsets(const Tensor& ray_indices, int64_t num_rays) {
  constexpr int64_t kLeap = 16;
  Tensor offsets = make(ray_indices, {num_rays + 1});
  const int64_t* rays = read<int64_t>(ray_indices);
  int64_t* begin = write<int64_t>(offsets);
  const int64_t num_samples = ray_indices.size(0);
  int64_t next = 0;  // the first ray whose beginning is not known
  for (int64_t i = 0; i < num_samples && next <= num_rays; ++i) {
    while (i + kLeap <= num_samples && rays[i + kLeap - 1] < next) i += kLeap;
    if (i < num_samples)
      for (; next <= rays[i] && next <= num_rays; ++next) begin[next] = i;
  }
  for (; next <= num_rays; ++next) begin[next] = num_samples;
  return offsets;
}

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("scan_sum", TORCH_BOX(&nerftrain::scan_sum<nerftrain::Cpu>));
  m.impl("scan_prod_fwd", TORCH_BOX(&nerftrain::scan_prod_fwd<nerftrain::Cpu>));
  m.impl("scan_prod_bwd", TORCH_BOX(&nerftrain::scan_prod_bwd<nerftrain::Cpu>));
  m.impl("ray_offsets", TORCH_BOX(&nerftrain::ray_offsets));
  m.impl("ray_sums", TORCH_BOX(&nerftrain::ray_sums<nerftrain::Cpu>));
}
