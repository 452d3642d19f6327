// AVX-512 with products of bfloat16 pairs: twice the numbers in a register.
#define NT_LANES 16
#define NT_VECTORS 4
#define NT_ROWS 6
#define NT_BF16
#include "mlp_kernel.h"

const nerftrain::MlpKernels nerftrain::mlp_avx512bf16 = {"avx512bf16", scratch_floats, gradient_floats,
                                                         forward,      backward,       reduce};
