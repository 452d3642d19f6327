#include "composite_kernel.h"

const nerftrain::CompositeKernels nerftrain::composite_avx512 = {"avx512", run, forward, backward};
