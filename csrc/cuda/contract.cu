#include "../operators/contract.h"
#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("contract_fwd", TORCH_BOX(&nerftrain::contract_fwd<nerftrain::Cuda>));
  m.impl("contract_bwd", TORCH_BOX(&nerftrain::contract_bwd<nerftrain::Cuda>));
}
