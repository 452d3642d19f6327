#include "composite_kernel.h"

const nerftrain::CompositeKernels nerftrain::composite_avx2 = {"avx2", run, forward, backward};
