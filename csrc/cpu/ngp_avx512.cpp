// AVX-512: 16 lanes, 32 registers.
#define NT_LANES 16
#define NT_VECTORS 4
#define NT_ROWS 6
#include "ngp_kernel.h"

const nerftrain::NgpKernels nerftrain::ngp_avx512 = {"avx512", scratch_floats, gradient_floats, density,
                                                     color,    forward,        backward,        reduce};
