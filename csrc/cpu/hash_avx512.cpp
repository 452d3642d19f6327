#include "hash_kernel.h"

const nerftrain::HashKernels nerftrain::hash_avx512 = {"avx512", forward_any<float>, forward_any<nerftrain::Half>,
                                                       scatter_any, slopes_any};
