// The interface between the compositing operators and their kernels for each instruction set.
#pragma once
#include <cstdint>

#include "../common/composite.h"
#include "x86.h"

namespace nerftrain {

struct CompositeKernels {
  const char* name;
  // kept = exp(-density (t_ends - t_starts)) for samples [begin, end).
  void (*run)(const float* density, const float* t_starts, const float* t_ends, float* kept, int64_t begin,
              int64_t end);
  // Along rays [begin, end).
  void (*forward)(const CompositeForward<float>&, int64_t begin, int64_t end);
  void (*backward)(const CompositeBackward<float>&, int64_t begin, int64_t end);
};

extern const CompositeKernels composite_portable;
NT_X86_KERNELS(CompositeKernels, composite, avx2);
NT_X86_KERNELS(CompositeKernels, composite, avx512);

}  // namespace nerftrain
