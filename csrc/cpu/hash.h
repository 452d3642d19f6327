// The interface between the hash-encoding operators and their kernels for each instruction set.
#pragma once
#include "../common/half.h"
#include "../common/hash_encoding.h"
#include "x86.h"

namespace nerftrain {

struct HashKernels {
  const char* name;
  void (*forward)(int features, const HashLevels&, const float* positions, const float* table, float* out,
                  int64_t begin, int64_t end);
  void (*forward_half)(int features, const HashLevels&, const float* positions, const Half* table, float* out,
                       int64_t begin, int64_t end);
  void (*scatter)(int features, const HashLevels&, int level, const float* positions, const float* v_features,
                  float* v_table, int64_t num_samples);
  void (*slopes)(int features, const HashLevels&, const float* positions, const float* table, const float* v_features,
                 float* v_positions, int64_t begin, int64_t end);
};

extern const HashKernels hash_portable;
NT_X86_KERNELS(HashKernels, hash, avx2);
NT_X86_KERNELS(HashKernels, hash, avx512);

}  // namespace nerftrain
