#define NT_LANES 4
#include "march_kernel.h"

const nerftrain::MarchKernels nerftrain::march_portable = {"portable", march, begin_rays, next_samples};
