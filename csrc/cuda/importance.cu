#include "../operators/importance.h"
#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("sample_importance", TORCH_BOX(&nerftrain::sample_importance<nerftrain::Cuda>));
  m.impl("search_edges", TORCH_BOX(&nerftrain::search_edges<nerftrain::Cuda>));
}
