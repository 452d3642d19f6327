// AMX: products of bfloat16 tiles; what lies between them is AVX-512's.
#include "mlp.h"

#if defined(__AMX_BF16__)
#define NT_LANES 16
#define NT_VECTORS 4
#define NT_ROWS 16
#define NT_BF16
#define NT_AMX
#include "mlp_kernel.h"

const nerftrain::MlpKernels nerftrain::mlp_amx = {"amx", scratch_floats, gradient_floats, forward, backward, reduce};
#else  // a compiler or a machine that knows no AMX
const nerftrain::MlpKernels nerftrain::mlp_amx = {};
#endif
