// Adam over a range of entries in float32.
//
// Compiled once per instruction set and chosen at run time (measured on a table of 3.3 M entries, AVX-512 takes half
// the time of the portable one). A step's samples touch a part of a hash table: whole blocks of gradients are zero, and
// finding that out in vectors is faster than asking entry by entry.
#pragma once
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "adam.h"

namespace {

// The copy in half precision that lookups read.
inline void keep_copy(const float* numbers, nerftrain::Half* copy, int64_t first, int64_t last) {
#if defined(__F16C__)
  for (; first + 8 <= last; first += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(copy + first),
                     _mm256_cvtps_ph(_mm256_loadu_ps(numbers + first), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; first < last; ++first) copy[first] = nerftrain::half_of(numbers[first]);
}

constexpr int kBlock = 32;

// AdamEntry for a whole block. What both sides of a choice need is worked out before it: compilers do not move a root
// or a quotient out of a branch, and without branches they turn the loops into vectors.
inline void step_block(const nerftrain::AdamEntry<float>& body, int64_t first) {
  float *parameter = body.parameter + first, *mean = body.mean + first, *variance = body.variance + first;
  const float* gradient = body.gradient + first;
  float new_p[kBlock], new_m[kBlock], new_v[kBlock];
  for (int i = 0; i < kBlock; ++i) {
    const float g = gradient[i] + body.weight_decay * parameter[i];
    new_m[i] = mean[i] + (1.f - body.beta1) * (g - mean[i]);
    new_v[i] = variance[i] + (1.f - body.beta2) * (g * g - variance[i]);
  }
  for (int i = 0; i < kBlock; ++i)
    new_p[i] = parameter[i] - body.rate * new_m[i] / (__builtin_sqrtf(new_v[i]) * body.correction + body.eps);
  if (body.skip)
    for (int i = 0; i < kBlock; ++i) {
      const bool stay = gradient[i] == 0.f;
      new_m[i] = stay ? mean[i] : new_m[i];
      new_v[i] = stay ? variance[i] : new_v[i];
      new_p[i] = stay ? parameter[i] : new_p[i];
    }
  __builtin_memcpy(mean, new_m, sizeof(new_m));
  __builtin_memcpy(variance, new_v, sizeof(new_v));
  __builtin_memcpy(parameter, new_p, sizeof(new_p));
}

inline bool all_zero(const float* numbers) {
  int other = 0;
  for (int i = 0; i < kBlock; ++i) other |= numbers[i] != 0.f;
  return !other;
}

// While it is there, numbers that are too small for full precision count as zero: moments of entries that nobody sees
// any more fade to such, with which some CPUs compute far more slowly, and at zero a block may rest.
class FlushTiny {
#if defined(__SSE2__)
 public:
  FlushTiny() { _mm_setcsr(before_ | 0x8040); }  // of results, of operands
  ~FlushTiny() { _mm_setcsr(before_); }
  FlushTiny(const FlushTiny&) = delete;
  FlushTiny& operator=(const FlushTiny&) = delete;

 private:
  unsigned before_ = _mm_getcsr();
#endif
};

void run(const nerftrain::AdamEntry<float>& entries, nerftrain::Half* copy, float* clear, int64_t begin, int64_t end) {
  const nerftrain::AdamEntry<float> body = entries;  // a copy that no store can alias
  const FlushTiny flush{};
  // Entries at rest, without gradient or moments, stay where they are. Most cells of fine levels are empty space, so a
  // third of a table is never seen at all.
  const bool may_rest = body.weight_decay == 0.f && body.eps > 0.f;
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t last = first + kBlock < end ? first + kBlock : end;
    if (last < first + kBlock) {
      for (int64_t i = first; i < last; ++i) body(i);
    } else {
      const bool unseen = (body.skip || may_rest) && all_zero(body.gradient + first);
      if (unseen && (body.skip || (all_zero(body.mean + first) && all_zero(body.variance + first)))) continue;
      step_block(body, first);
    }
    if (copy) keep_copy(body.parameter, copy, first, last);
    if (clear) __builtin_memset(clear + first, 0, (last - first) * sizeof(float));
  }
}

}  // namespace
