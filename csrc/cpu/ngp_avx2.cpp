// AVX2 with fused multiply-add: 8 lanes, 16 registers.
#define NT_LANES 8
#define NT_VECTORS 2
#define NT_ROWS 6
#include "ngp_kernel.h"

const nerftrain::NgpKernels nerftrain::ngp_avx2 = {"avx2", scratch_floats, gradient_floats, density,
                                                   color,  forward,        backward,        reduce};
