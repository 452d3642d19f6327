#include "../operators/points.h"

#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("sample_points", TORCH_BOX(&nerftrain::sample_points<nerftrain::Cpu>));
  m.impl("unit_points", TORCH_BOX(&nerftrain::unit_points<nerftrain::Cpu>));
}
