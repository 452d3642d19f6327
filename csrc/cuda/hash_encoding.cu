#include "../operators/hash_encoding.h"
#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("hash_encode_fwd", TORCH_BOX(&nerftrain::hash_encode_fwd<nerftrain::Cuda>));
  m.impl("hash_encode_bwd", TORCH_BOX(&nerftrain::hash_encode_bwd<nerftrain::Cuda>));
}
