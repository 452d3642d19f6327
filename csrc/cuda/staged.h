// Rays with a thread each that goes along its samples one after the other, though memory is read and written side by
// side: the samples of neighbouring rays lie one behind the other, so a warp brings those of its rays into shared
// memory together. What a sample needs of itself alone, an exponential, say, is worked out by all lanes on the way.
#pragma once
#include "ray_warps.h"

namespace nerftrain {

constexpr int kStaged = 512;     // samples of a warp at a time
constexpr int kStagedWarps = 2;  // of a block
constexpr int kStagedThreads = kStagedWarps * kWarp;

// The samples that are in shared memory: of the warp's from `base` on so many, of this lane's ray the places from
// `from` to `to`.
struct StagedPart {
  int num, from, to;

  __device__ __forceinline__ StagedPart(const RaysOfWarp& rays, int64_t base)
      : num(int(min_of(rays.end - base, int64_t(kStaged)))),
        from(place_of(rays.first - base)),
        to(place_of(rays.last - base)) {}

 private:
  __device__ __forceinline__ int place_of(int64_t i) const { return int(min_of(max_of(i, int64_t(0)), int64_t(num))); }
};

// The warp's part of shared memory.
__device__ __forceinline__ float* staged_numbers() {
  return reinterpret_cast<float*>(dynamic_shared) + int(threadIdx.x) / kWarp * kStaged;
}

// Calls each(place) for 0 ... num - 1, by all lanes, neighbours with neighbouring places.
template <class Each>
__device__ __forceinline__ void side_by_side(int num, Each each) {
#pragma unroll 4
  for (int place = lane_of_warp(); place < num; place += kWarp) each(place);
}

}  // namespace nerftrain
