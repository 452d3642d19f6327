#include "../operators/histogram.h"

#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("invert_cdf", TORCH_BOX(&nerftrain::invert_cdf<nerftrain::Cpu>));
  m.impl("interlevel_fwd", TORCH_BOX(&nerftrain::interlevel_fwd<nerftrain::Cpu>));
  m.impl("interlevel_bwd", TORCH_BOX(&nerftrain::interlevel_bwd<nerftrain::Cpu>));
}
