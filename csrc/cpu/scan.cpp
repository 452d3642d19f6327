#include "../operators/scan.h"

#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("scan_sum", TORCH_BOX(&nerftrain::scan_sum<nerftrain::Cpu>));
  m.impl("scan_prod_fwd", TORCH_BOX(&nerftrain::scan_prod_fwd<nerftrain::Cpu>));
  m.impl("scan_prod_bwd", TORCH_BOX(&nerftrain::scan_prod_bwd<nerftrain::Cpu>));
  m.impl("ray_sums", TORCH_BOX(&nerftrain::ray_sums<nerftrain::Cpu>));
}
