#define NT_LANES 16
#include "march_kernel.h"

const nerftrain::MarchKernels nerftrain::march_avx512 = {"avx512", march, begin_rays, next_samples};
