#include "composite_kernel.h"

const nerftrain::CompositeKernels nerftrain::composite_portable = {"portable", run, forward, backward};
