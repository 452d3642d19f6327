// Rays with a thread each that goes along its samples one after the other, though memory is read and written side by
// side: the samples of neighbouring rays lie one behind the other, so a warp brings those of its rays into shared
// memory together. What a sample needs of itself alone, an exponential, say, is worked out by all lanes on the way.
#pragma once
#include "backend.h"
#include "warp.h"

namespace nerftrain {

constexpr int kStaged = 512;     // samples of a warp at a time
constexpr int kStagedWarps = 2;  // of a block
constexpr int kStagedThreads = kStagedWarps * kWarp;
constexpr int kEnoughWarps = 8;  // of a processor

// The rays of a warp, one for each of its first lanes.
struct StagedRays {
  int64_t ray;
  bool there;
  int64_t first, last;  // samples of this lane's ray; there are none where there is no ray
  int64_t begin, end;   // of all of the warp's

  __device__ __forceinline__ StagedRays(int64_t num_rays, int rays_of_warp, const int64_t* offsets)
      : ray(piece_of_warp() * rays_of_warp + min_of(lane_of_warp(), rays_of_warp)),
        there(lane_of_warp() < rays_of_warp && ray < num_rays),
        first(offsets[min_of(ray, num_rays)]),
        last(there ? offsets[ray + 1] : first),
        begin(__shfl_sync(kAll, first, 0)),
        end(__shfl_sync(kAll, last, rays_of_warp - 1)) {}

  __device__ __forceinline__ int64_t last_base() const { return begin + (end - begin - 1) / kStaged * kStaged; }
};

// The samples that are in shared memory: of the warp's from `base` on so many, of this lane's ray the places from
// `from` to `to`.
struct StagedPart {
  int num, from, to;

  __device__ __forceinline__ StagedPart(const StagedRays& rays, int64_t base)
      : num(int(min_of(rays.end - base, int64_t(kStaged)))),
        from(place_of(rays.first - base)),
        to(place_of(rays.last - base)) {}

 private:
  __device__ __forceinline__ int place_of(int64_t i) const { return int(min_of(max_of(i, int64_t(0)), int64_t(num))); }
};

// The warp's part of shared memory, of kRows rows of kStaged numbers.
template <int kRows>
__device__ __forceinline__ float* staged_rows() {
  return reinterpret_cast<float*>(dynamic_shared) + int(threadIdx.x) / kWarp * kRows * kStaged;
}

// Calls each(place) for 0 ... num - 1, by all lanes, neighbours with neighbouring places.
template <class Each>
__device__ __forceinline__ void side_by_side(int num, Each each) {
#pragma unroll 4
  for (int place = lane_of_warp(); place < num; place += kWarp) each(place);
}

// Launches kernel(num_rays, rays of a warp, body) with kRows rows of numbers for each warp. Warps take fewer rays where
// these are few and long, so that there are enough of them to keep memory busy.
template <int kRows, class Body>
void for_each_staged(const torch::stable::Tensor& samples, int64_t num_rays, void (*kernel)(int64_t, int, Body),
                     const Body& body) {
  if (num_rays == 0) return;
  const int64_t enough = int64_t(Cuda::num_processors(samples)) * kEnoughWarps, mean = samples.size(0) / num_rays;
  int rays_of_warp = kWarp;
  while (num_rays / rays_of_warp < enough && mean * rays_of_warp > kStaged / 2 && rays_of_warp > 1) rays_of_warp /= 2;
  Cuda::launch(samples, kernel, Cuda::grid_of(blocks_for(num_rays, rays_of_warp) * kWarp, 1, kStagedThreads),
               kStagedThreads, kStagedWarps * kRows * kStaged * sizeof(float), num_rays, rays_of_warp, body);
}

}  // namespace nerftrain
