#include "../operators/march.h"

#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("pack_grid", TORCH_BOX(&nerftrain::pack_grid<nerftrain::Cpu>));
  m.impl("visible_cells", TORCH_BOX(&nerftrain::visible_cells<nerftrain::Cpu>));
  m.impl("march_count", TORCH_BOX(&nerftrain::march_count<nerftrain::Cpu>));
  m.impl("march_write", TORCH_BOX(&nerftrain::march_write<nerftrain::Cpu>));
  m.impl("visible_samples", TORCH_BOX(&nerftrain::visible_samples<nerftrain::Cpu>));
}
