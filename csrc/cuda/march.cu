#include "../operators/march.h"
#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("pack_grid", TORCH_BOX(&nerftrain::pack_grid<nerftrain::Cuda>));
  m.impl("visible_cells", TORCH_BOX(&nerftrain::visible_cells<nerftrain::Cuda>));
  m.impl("march_count", TORCH_BOX(&nerftrain::march_count<nerftrain::Cuda>));
  m.impl("march_write", TORCH_BOX(&nerftrain::march_write<nerftrain::Cuda>));
  m.impl("visible_samples", TORCH_BOX(&nerftrain::visible_samples<nerftrain::Cuda>));
}
