// What the threads of a warp do together, and products of small matrices on tensor cores.
#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "../common/macros.h"

namespace nerftrain {

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;

__device__ __forceinline__ int lane_of_warp() { return int(threadIdx.x) % kWarp; }

// What follows goes over teams of lanes side by side, a power of two of them; all lanes of the warp take part, and
// `lane` counts within the team.

// The sums over a team of kSums numbers, a power of two and no more than the team has lanes; lane l gets the sum of
// numbers[l % kSums]. Each exchange halves the numbers that a lane still adds up.
template <int kTeam, int kSums>
__device__ __forceinline__ float team_sums(float (&numbers)[kSums], int lane) {
#pragma unroll
  for (int half = kSums / 2; half > 0; half /= 2) {
    const bool upper = lane & half;
#pragma unroll
    for (int k = 0; k < half; ++k) {
      const float kept = upper ? numbers[k + half] : numbers[k], given = upper ? numbers[k] : numbers[k + half];
      numbers[k] = kept + __shfl_xor_sync(kAll, given, half);
    }
  }
  float sum = numbers[0];
#pragma unroll
  for (int step = kSums; step < kTeam; step *= 2) sum += __shfl_xor_sync(kAll, sum, step);
  return sum;
}

// What the last lane of a team has.
template <int kTeam>
__device__ __forceinline__ float of_last(float x) {
  return __shfl_sync(kAll, x, lane_of_warp() | (kTeam - 1));
}

// What its first lane has.
template <int kTeam>
__device__ __forceinline__ float of_first(float x) {
  return __shfl_sync(kAll, x, lane_of_warp() & ~(kTeam - 1));
}

// Of a team's lanes up to this one.
template <int kTeam>
__device__ __forceinline__ float product_so_far(float x, int lane) {
#pragma unroll
  for (int step = 1; step < kTeam; step *= 2) {
    const float other = __shfl_up_sync(kAll, x, step);
    x = lane >= step ? x * other : x;
  }
  return x;
}

// Of this lane and all after it.
template <int kTeam>
__device__ __forceinline__ float sum_from_here(float x, int lane) {
#pragma unroll
  for (int step = 1; step < kTeam; step *= 2) {
    const float other = __shfl_down_sync(kAll, x, step);
    x = lane + step < kTeam ? x + other : x;
  }
  return x;
}

// Of a scan, what the lane before or after has: what a sum less one's own part would be but for rounding.
__device__ __forceinline__ float of_lane_before(float so_far, int lane, float none) {
  const float other = __shfl_up_sync(kAll, so_far, 1);
  return lane > 0 ? other : none;
}

template <int kTeam>
__device__ __forceinline__ float of_lane_after(float from_here, int lane, float none) {
  const float other = __shfl_down_sync(kAll, from_here, 1);
  return lane + 1 < kTeam ? other : none;
}

// Two numbers in half precision, the first in the lower bits; what is beyond its range becomes the largest in it, and
// NaN stays NaN.
__device__ __forceinline__ uint32_t pack_halves(float low, float high) {
  const float limit = 65504.f;
  union {
    __half2 halves;
    uint32_t bits;
  } packed{__floats2half2_rn(min_of(limit, max_of(-limit, low)), min_of(limit, max_of(-limit, high)))};
  return packed.bits;
}

__device__ __forceinline__ float2 unpack_halves(uint32_t bits) {
  union {
    uint32_t bits;
    __half2 halves;
  } packed{bits};
  return __half22float2(packed.halves);
}

// c += a b for a of 16 x 16, b of 16 x 8 and c of 16 x 8 numbers, spread over the lanes of a warp (PTX ISA, "Matrix
// fragments for mma.m16n8k16"): with group = lane / 4 and place = lane % 4 a lane has
//   a[0..3]: rows group, group + 8, group, group + 8; columns 2 place and the next, those + 8 in the last two
//   b[0..1]: rows 2 place and the next, those + 8; column group
//   c[0..3]: row group, columns 2 place and the next; row group + 8, the same
// so that two neighbouring c are an a of the next product. Only what has tensor cores for it runs it: sm_80 and later.
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if !defined(__CUDACC__)
  emulated::mma_16x8x16(c, a, b, [](uint16_t bits) { return float_of(Half{bits}); });
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  c[0] = c[1] = c[2] = c[3] = nanf("");
#endif
}

}  // namespace nerftrain
