#include "../operators/visit.h"
#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("visit_count", TORCH_BOX(&nerftrain::visit_count<nerftrain::Cuda>));
  m.impl("visit_pick", TORCH_BOX(&nerftrain::visit_pick<nerftrain::Cuda>));
  m.impl("visit_take_", TORCH_BOX(&nerftrain::visit_take_<nerftrain::Cuda>));
  m.impl("select_count", TORCH_BOX(&nerftrain::select_count<nerftrain::Cuda>));
  m.impl("select_pick", TORCH_BOX(&nerftrain::select_pick<nerftrain::Cuda>));
}
