// AVX-512 with products of bfloat16 pairs: twice the numbers in a register.
#define NT_LANES 16
#define NT_VECTORS 4
#define NT_ROWS 6
#define NT_BF16
#include "ngp_kernel.h"

const nerftrain::NgpKernels nerftrain::ngp_avx512bf16 = {"avx512bf16", scratch_floats, gradient_floats, density,
                                                         color,        forward,        backward,        reduce};
