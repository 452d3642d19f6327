#include "../operators/points.h"
#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("sample_points", TORCH_BOX(&nerftrain::sample_points<nerftrain::Cuda>));
  m.impl("unit_points", TORCH_BOX(&nerftrain::unit_points<nerftrain::Cuda>));
}
