// AVX-512: 16 lanes, 32 registers.
#define NT_LANES 16
#define NT_VECTORS 4
#define NT_ROWS 6
#include "mlp_kernel.h"

const nerftrain::MlpKernels nerftrain::mlp_avx512 = {"avx512", scratch_floats, gradient_floats,
                                                     forward,  backward,       reduce};
