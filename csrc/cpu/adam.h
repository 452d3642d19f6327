// The interface between the Adam operator and its kernels for each instruction set.
#pragma once
#include "../common/adam.h"
#include "../common/half.h"
#include "x86.h"

namespace nerftrain {

struct AdamKernels {
  const char* name;
  // Copy and clear, where gradients are zeroed once they have been taken in, may be none.
  void (*run)(const AdamEntry<float>&, Half* copy, float* clear, int64_t begin, int64_t end);
};

extern const AdamKernels adam_portable;
NT_X86_KERNELS(AdamKernels, adam, avx2);
NT_X86_KERNELS(AdamKernels, adam, avx512);

}  // namespace nerftrain
