// What the threads of a warp do together, and products of small matrices on tensor cores.
#pragma once
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "../common/macros.h"

namespace nerftrain {

extern __shared__ uint32_t dynamic_shared[];

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;

__device__ __forceinline__ int lane_of_warp() { return int(threadIdx.x) % kWarp; }

// Over all lanes of a warp. GPUs since sm_80 have them as an instruction.
#if !defined(__CUDACC__) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800)
__device__ __forceinline__ unsigned any_of_warp(unsigned bits) { return __reduce_or_sync(kAll, bits); }
__device__ __forceinline__ int least_of_warp(int n) { return __reduce_min_sync(kAll, n); }
__device__ __forceinline__ int greatest_of_warp(int n) { return __reduce_max_sync(kAll, n); }
#else
template <class T, class Of>
__device__ __forceinline__ T reduce_warp(T n, Of of) {
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) n = of(n, __shfl_xor_sync(kAll, n, step));
  return n;
}
__device__ __forceinline__ unsigned any_of_warp(unsigned bits) {
  return reduce_warp(bits, [](unsigned a, unsigned b) { return a | b; });
}
__device__ __forceinline__ int least_of_warp(int n) { return reduce_warp(n, min_of<int>); }
__device__ __forceinline__ int greatest_of_warp(int n) { return reduce_warp(n, max_of<int>); }
#endif

// The sum of a warp's numbers on lanes before this one.
__device__ __forceinline__ int sum_before(int n) {
  int sum = n;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const int before = __shfl_up_sync(kAll, sum, step);
    sum += lane_of_warp() >= step ? before : 0;
  }
  return sum - n;
}

// Two numbers in half precision, the first in the lower bits; what is beyond its range becomes the largest in it, and
// NaN stays NaN. GPUs since sm_80 do it, and leave out what is less than zero, by one instruction.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
__device__ __forceinline__ uint32_t pack_halves(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
__device__ __forceinline__ uint32_t pack_rectified(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.relu.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
#else
__device__ __forceinline__ uint32_t pack_halves(float low, float high) {
  const float limit = 65504.f;
  union {
    __half2 halves;
    uint32_t bits;
  } packed{__floats2half2_rn(min_of(limit, max_of(-limit, low)), min_of(limit, max_of(-limit, high)))};
  return packed.bits;
}
__device__ __forceinline__ uint32_t pack_rectified(float low, float high) {
  return pack_halves(max_of(0.f, low), max_of(0.f, high));
}
#endif

// All bits of those of two numbers that are not zero.
__device__ __forceinline__ uint32_t mask_of(uint32_t halves) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t mask;
  asm("set.neu.u32.f16x2 %0, %1, %2;" : "=r"(mask) : "r"(halves), "r"(0));
  return mask;
#else
  return (halves & 0x7fffu ? 0xffffu : 0u) | (halves & 0x7fff0000u ? 0xffff0000u : 0u);
#endif
}

__device__ __forceinline__ float2 unpack_halves(uint32_t bits) {
  union {
    uint32_t bits;
    __half2 halves;
  } packed{bits};
  return __half22float2(packed.halves);
}

// Brings kNum matrices of 8 x 8 numbers from shared memory: lane 8 m + i tells where row i of matrix m begins, lanes
// get of each matrix what they would of a b (below), or of its transpose.
template <bool kTransposed, int kNum>
__device__ __forceinline__ void load_matrices(uint32_t (&words)[kNum], const uint32_t* row) {
  static_assert(kNum == 2 || kNum == 4);
#if !defined(__CUDACC__)
  emulated::load_matrices<kTransposed>(words, row);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750
  const auto address = uint32_t(__cvta_generic_to_shared(row));
  if constexpr (kNum == 4 && kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address));
  else if constexpr (kNum == 4)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address));
  else if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(words[0]), "=r"(words[1])
                 : "r"(address));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(words[0]), "=r"(words[1])
                 : "r"(address));
#endif
}

// c += a b for a of 16 x 16, b of 16 x 8 and c of 16 x 8 numbers, spread over the lanes of a warp (PTX ISA, "Matrix
// fragments for mma.m16n8k16"): with group = lane / 4 and place = lane % 4 a lane has
//   a[0..3]: rows group, group + 8, group, group + 8; columns 2 place and the next, those + 8 in the last two
//   b[0..1]: rows 2 place and the next, those + 8; column group
//   c[0..3]: row group, columns 2 place and the next; row group + 8, the same
// so that two neighbouring c are an a of the next product. Those of sm_75 take 8 columns of a and 8 rows of b at a
// time; what came before has no matrices of this kind, and does not run it.
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if !defined(__CUDACC__)
  emulated::mma_16x8x16(c, a, b, [](uint16_t bits) { return float_of(Half{bits}); });
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750
#pragma unroll
  for (int half = 0; half < 2; ++half)
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#else
  c[0] = c[1] = c[2] = c[3] = nanf("");
#endif
}

}  // namespace nerftrain
