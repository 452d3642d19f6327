// Whatever the compiler's default target offers: 4 lanes, 16 registers or more.
#define NT_LANES 4
#define NT_VECTORS 2
#define NT_ROWS 6
#include "mlp_kernel.h"

const nerftrain::MlpKernels nerftrain::mlp_portable = {"portable", scratch_floats, gradient_floats,
                                                       forward,    backward,       reduce};
