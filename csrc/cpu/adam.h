// The interface between the Adam operator and its kernels for each instruction set.
#pragma once
#include "../common/adam.h"
#include "../common/half.h"

namespace nerftrain {

struct AdamKernels {
  const char* name;
  void (*run)(const AdamEntry<float>&, Half* copy, int64_t begin, int64_t end);  // copy may be none
};

extern const AdamKernels adam_portable, adam_avx2, adam_avx512;

}  // namespace nerftrain
