// The interface between the MLP operators and their kernels for each instruction set. Includes macros alone.
#pragma once
#include "x86.h"

namespace nerftrain {

constexpr int kMlpMaxLayers = 8;

struct MlpShape {
  int num_layers;
  int widths[kMlpMaxLayers + 1];  // inputs, hidden layers, outputs
};

struct MlpKernels {
  const char* name;
  long (*scratch_floats)(const MlpShape&);   // of one thread
  long (*gradient_floats)(const MlpShape&);  // of one range's padded weight gradient
  void (*forward)(const MlpShape&, const float* weights, const float* x, float* y, long begin, long end,
                  float* scratch);
  void (*backward)(const MlpShape&, const float* weights, const float* x, const float* v_y, float* v_x,
                   float* v_weights, long begin, long end, float* scratch);
  void (*reduce)(const MlpShape&, const float* padded_parts, int parts, float* v_weights);
};

extern const MlpKernels mlp_portable;
NT_X86_KERNELS(MlpKernels, mlp, avx2);
NT_X86_KERNELS(MlpKernels, mlp, avx512);
NT_X86_KERNELS(MlpKernels, mlp, avx512bf16);
NT_X86_KERNELS(MlpKernels, mlp, amx);

}  // namespace nerftrain
