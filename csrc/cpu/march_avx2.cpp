#define NT_LANES 8
#include "march_kernel.h"

const nerftrain::MarchKernels nerftrain::march_avx2 = {"avx2", march, begin_rays, next_samples};
