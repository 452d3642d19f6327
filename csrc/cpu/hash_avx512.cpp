#include "hash_kernel.h"

const nerftrain::HashKernels nerftrain::hash_avx512 = {"avx512", forward_any, scatter_any, slopes_any};
