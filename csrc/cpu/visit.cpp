#include "../operators/visit.h"

#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("visit_count", TORCH_BOX(&nerftrain::visit_count<nerftrain::Cpu>));
  m.impl("visit_pick", TORCH_BOX(&nerftrain::visit_pick<nerftrain::Cpu>));
  m.impl("visit_take_", TORCH_BOX(&nerftrain::visit_take_<nerftrain::Cpu>));
  m.impl("select_count", TORCH_BOX(&nerftrain::select_count<nerftrain::Cpu>));
  m.impl("select_pick", TORCH_BOX(&nerftrain::select_pick<nerftrain::Cpu>));
}
