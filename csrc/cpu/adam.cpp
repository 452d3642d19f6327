#include "../operators/adam.h"

#include "adam.h"
#include "backend.h"
#include "isa.h"

namespace nerftrain {

struct CpuAdam : Cpu {
  using Cpu::for_each;

  static void for_each(const torch::stable::Tensor&, int64_t n, const AdamEntry<float>& body) {
    const AdamKernels& kernels = kernels_for(0, adam_portable, adam_avx2, adam_avx512);
    torch::stable::parallel_for(0, n, 1 << 14, [&](int64_t begin, int64_t end) { kernels.run(body, begin, end); });
  }
};

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) { m.impl("adam_", TORCH_BOX(&nerftrain::adam_<nerftrain::CpuAdam>)); }
