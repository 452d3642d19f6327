#include "adam_kernel.h"

const nerftrain::AdamKernels nerftrain::adam_avx2 = {"avx2", run};
