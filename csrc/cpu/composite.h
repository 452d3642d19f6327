// The interface between the compositing operators and their kernels for each instruction set.
#pragma once
#include <cstdint>

namespace nerftrain {

struct CompositeKernels {
  const char* name;
  // kept = exp(-density (t_ends - t_starts)) for samples [begin, end).
  void (*run)(const float* density, const float* t_starts, const float* t_ends, float* kept, int64_t begin,
              int64_t end);
};

extern const CompositeKernels composite_portable, composite_avx2, composite_avx512;

}  // namespace nerftrain
