#include "hash_kernel.h"

const nerftrain::HashKernels nerftrain::hash_avx2 = {"avx2", forward_any<float>, forward_any<nerftrain::Half>,
                                                     scatter_any, slopes_any};
