#include "hash_kernel.h"

const nerftrain::HashKernels nerftrain::hash_portable = {"portable", forward_any, scatter_any, slopes_any};
