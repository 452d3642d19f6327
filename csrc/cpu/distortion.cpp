#include "../operators/distortion.h"

#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("distortion_fwd", TORCH_BOX(&nerftrain::distortion_fwd<nerftrain::Cpu>));
  m.impl("distortion_bwd", TORCH_BOX(&nerftrain::distortion_bwd<nerftrain::Cpu>));
}
