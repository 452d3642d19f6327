// Warps that have some neighbouring rays each, whose samples lie one behind the other.
#pragma once
#include "backend.h"
#include "warp.h"

namespace nerftrain {

constexpr int kEnoughWarps = 12;  // of a processor

// The rays of a warp, one for each of its first lanes.
struct RaysOfWarp {
  int64_t ray;
  bool there;
  int64_t first, last;  // samples of this lane's ray; there are none where there is no ray
  int64_t begin, end;   // of all of the warp's
  int64_t num_samples;  // of all rays

  __device__ __forceinline__ RaysOfWarp(int64_t num_rays, int rays_of_warp, const int64_t* offsets)
      : ray(piece_of_warp() * rays_of_warp + min_of(lane_of_warp(), rays_of_warp)),
        there(lane_of_warp() < rays_of_warp && ray < num_rays),
        first(offsets[min_of(ray, num_rays)]),
        last(there ? offsets[ray + 1] : first),
        begin(__shfl_sync(kAll, first, 0)),
        end(__shfl_sync(kAll, last, rays_of_warp - 1)),
        num_samples(offsets[num_rays]) {}
};

// Launches kernel(num_rays, rays of a warp, body, more ...) with so many bytes of shared memory for each warp. Warps
// take fewer rays where these are few and have more samples than a warp has at a time, so that there are enough of them
// to keep memory busy.
template <class Body, class... More>
void for_each_ray_warp(const torch::stable::Tensor& samples, int64_t num_rays, int64_t samples_at_a_time,
                       int warps_of_block, size_t shared, void (*kernel)(int64_t, int, Body, More...), const Body& body,
                       const std::type_identity_t<More>&... more) {
  const int64_t enough = int64_t(Cuda::num_processors(samples)) * kEnoughWarps,
                mean = samples.size(0) / max_of(num_rays, int64_t(1));
  int rays_of_warp = kWarp;
  while (num_rays / rays_of_warp < enough && mean * rays_of_warp > samples_at_a_time / 2 && rays_of_warp > 1)
    rays_of_warp /= 2;
  const int threads = warps_of_block * kWarp;
  const int64_t num_warps = max_of(blocks_for(num_rays, rays_of_warp), int64_t(1));  // no rays leave a rest, too
  Cuda::launch(samples, kernel, Cuda::grid_of(num_warps * kWarp, 1, threads), threads, warps_of_block * shared,
               num_rays, rays_of_warp, body, more...);
}

}  // namespace nerftrain
