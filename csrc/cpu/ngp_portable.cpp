// Whatever the compiler's default target offers: 4 lanes, 16 registers or more.
#define NT_LANES 4
#define NT_VECTORS 2
#define NT_ROWS 6
#include "ngp_kernel.h"

const nerftrain::NgpKernels nerftrain::ngp_portable = {"portable", scratch_floats, gradient_floats, density,
                                                       color,      forward,        backward,        reduce};
