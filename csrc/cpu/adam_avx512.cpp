#include "adam_kernel.h"

const nerftrain::AdamKernels nerftrain::adam_avx512 = {"avx512", run};
