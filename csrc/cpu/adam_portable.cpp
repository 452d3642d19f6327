#include "adam_kernel.h"

const nerftrain::AdamKernels nerftrain::adam_portable = {"portable", run};
