// The interface between the Adam operator and its kernels for each instruction set.
#pragma once
#include "../common/adam.h"

namespace nerftrain {

struct AdamKernels {
  const char* name;
  void (*run)(const AdamEntry<float>&, int64_t begin, int64_t end);
};

extern const AdamKernels adam_portable, adam_avx2, adam_avx512;

}  // namespace nerftrain
