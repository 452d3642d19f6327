#include "../operators/scan.h"

#include <algorithm>

#include "backend.h"

namespace nerftrain {

// Where each ray's samples begin among those in the order of their rays: int64 [R + 1], which never decrease, whatever
// the indices: each range of rays stays between the samples that bisection finds for its ends. One pass that leaps over
// samples of one ray.
Tensor ray_offsets(const Tensor& ray_indices, int64_t num_rays) {
  constexpr int64_t kLeap = 16, kRays = 2048;
  Tensor offsets = make(ray_indices, {num_rays + 1});
  const int64_t* rays = read<int64_t>(ray_indices);
  int64_t* begin = write<int64_t>(offsets);
  const int64_t num_samples = ray_indices.size(0);
  torch::stable::parallel_for(0, num_rays + 1, kRays, [&](int64_t next, int64_t last) {
    int64_t i = std::lower_bound(rays, rays + num_samples, next) - rays;
    const int64_t stop = last > num_rays ? num_samples : std::lower_bound(rays, rays + num_samples, last) - rays;
    for (; i < stop && next < last; ++i) {
      while (i + kLeap <= stop && rays[i + kLeap - 1] < next) i += kLeap;
      if (i < stop)
        for (; next <= rays[i] && next < last; ++next) begin[next] = i;
    }
    for (; next < last; ++next) begin[next] = stop;
  });
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
