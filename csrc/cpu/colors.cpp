#include "../operators/colors.h"

#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("over_background_fwd", TORCH_BOX(&nerftrain::over_background_fwd<nerftrain::Cpu>));
  m.impl("over_background_bwd", TORCH_BOX(&nerftrain::over_background_bwd<nerftrain::Cpu>));
  m.impl("color_error", TORCH_BOX(&nerftrain::color_error<nerftrain::Cpu>));
}
