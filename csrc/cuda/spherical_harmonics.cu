#include "../operators/spherical_harmonics.h"
#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("spherical_harmonics_fwd", TORCH_BOX(&nerftrain::spherical_harmonics_fwd<nerftrain::Cuda>));
  m.impl("spherical_harmonics_bwd", TORCH_BOX(&nerftrain::spherical_harmonics_bwd<nerftrain::Cuda>));
}
