#include "hash_kernel.h"

const nerftrain::HashKernels nerftrain::hash_avx2 = {"avx2", forward_any, scatter_any, slopes_any};
