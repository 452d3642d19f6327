#include "../operators/distortion.h"
#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("distortion_fwd", TORCH_BOX(&nerftrain::distortion_fwd<nerftrain::Cuda>));
  m.impl("distortion_bwd", TORCH_BOX(&nerftrain::distortion_bwd<nerftrain::Cuda>));
}
