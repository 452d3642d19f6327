#include "../operators/scan.h"
#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("scan_sum", TORCH_BOX(&nerftrain::scan_sum<nerftrain::Cuda>));
  m.impl("scan_prod_fwd", TORCH_BOX(&nerftrain::scan_prod_fwd<nerftrain::Cuda>));
  m.impl("scan_prod_bwd", TORCH_BOX(&nerftrain::scan_prod_bwd<nerftrain::Cuda>));
  m.impl("ray_sums", TORCH_BOX(&nerftrain::ray_sums<nerftrain::Cuda>));
}
