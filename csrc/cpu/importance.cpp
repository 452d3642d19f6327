#include "../operators/importance.h"

#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("sample_importance", TORCH_BOX(&nerftrain::sample_importance<nerftrain::Cpu>));
  m.impl("search_edges", TORCH_BOX(&nerftrain::search_edges<nerftrain::Cpu>));
}
