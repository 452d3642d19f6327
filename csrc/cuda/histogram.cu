#include "../operators/histogram.h"
#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("invert_cdf", TORCH_BOX(&nerftrain::invert_cdf<nerftrain::Cuda>));
  m.impl("interlevel_fwd", TORCH_BOX(&nerftrain::interlevel_fwd<nerftrain::Cuda>));
  m.impl("interlevel_bwd", TORCH_BOX(&nerftrain::interlevel_bwd<nerftrain::Cuda>));
}
