#include "../operators/adam.h"
#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("adam_", TORCH_BOX(&nerftrain::adam_<nerftrain::Cuda>));
  m.impl("adam_placed_", TORCH_BOX(&nerftrain::adam_placed_<nerftrain::Cuda>));
}
