// What lets one source compile for the host and for CUDA. Free of torch.
//
// Letters, as in nerftrain/types.py: R rays, N packed samples, C cameras, D features, K channels, L levels.
#pragma once
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define NT_HD __host__ __device__ __forceinline__
#else
#define NT_HD inline __attribute__((always_inline))
#endif

namespace nerftrain {

template <class T>
NT_HD T min_of(T a, T b) {
  return a < b ? a : b;
}

template <class T>
NT_HD T max_of(T a, T b) {
  return a > b ? a : b;
}

NT_HD float exp_of(float x) { return expf(x); }
NT_HD double exp_of(double x) { return exp(x); }

NT_HD float expm1_of(float x) { return expm1f(x); }
NT_HD double expm1_of(double x) { return expm1(x); }

NT_HD float log_of(float x) { return logf(x); }
NT_HD double log_of(double x) { return log(x); }

NT_HD float sqrt_of(float x) { return sqrtf(x); }
NT_HD double sqrt_of(double x) { return sqrt(x); }

// The sine and the cosine of an angle of at most some turns. CUDA's own of any angle at all need a stack.
#if defined(__CUDA_ARCH__)
NT_HD float sin_of(float x) { return sinpif(x * 0.318309886183790672f); }
NT_HD float cos_of(float x) { return cospif(x * 0.318309886183790672f); }
#else
NT_HD float sin_of(float x) { return sinf(x); }
NT_HD float cos_of(float x) { return cosf(x); }
#endif

// Converting a float outside the range of int is undefined: clamp first. NaN becomes `high`.
NT_HD int to_int_clamped(float x, int low, int high) {
  if (!(x < float(high))) return high;
  return x > float(low) ? int(x) : low;
}

// The least integer not below x, likewise clamped: without ceilf, which not every instruction set has.
NT_HD int ceil_clamped(float x, int low, int high) {
  const int below = to_int_clamped(x, low, high);
  return below + (below < high && float(below) < x);
}

// Adds to memory that other threads may be adding to. On the CPU the loops own what they add to.
template <class T>
NT_HD void atomic_add(T* address, T value) {
#if defined(__CUDA_ARCH__)
  atomicAdd(address, value);
#else
  *address += value;
#endif
}

// The same for N neighbouring numbers: newer GPUs add two or four of them at once.
template <int N, class T>
NT_HD void atomic_add_row(T* address, const T* values) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (sizeof(T) == 4 && N % 4 == 0) {
    for (int k = 0; k < N; k += 4)
      atomicAdd(reinterpret_cast<float4*>(address + k),
                make_float4(values[k], values[k + 1], values[k + 2], values[k + 3]));
    return;
  } else if constexpr (sizeof(T) == 4 && N == 2) {
    atomicAdd(reinterpret_cast<float2*>(address), make_float2(values[0], values[1]));
    return;
  }
#endif
  for (int k = 0; k < N; ++k) atomic_add(address + k, values[k]);
}

}  // namespace nerftrain
