#include "composite.h"

#include "../operators/composite.h"
#include "backend.h"
#include "isa.h"

namespace nerftrain {

// Float32 goes by the kernels of the instruction set in use.
struct CpuComposite : Cpu {
  using Cpu::for_each;

  static const CompositeKernels& kernels() {
    return kernels_for(0, composite_portable, composite_avx2, composite_avx512);
  }
  static void for_each(const torch::stable::Tensor&, int64_t n, const CompositeForward<float>& body) {
    torch::stable::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) { kernels().forward(body, begin, end); });
  }
  static void for_each(const torch::stable::Tensor&, int64_t n, const CompositeBackward<float>& body) {
    torch::stable::parallel_for(0, n, kGrain,
                                [&](int64_t begin, int64_t end) { kernels().backward(body, begin, end); });
  }
};

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("composite_fwd", TORCH_BOX(&nerftrain::composite_fwd<nerftrain::CpuComposite>));
  m.impl("composite_bwd", TORCH_BOX(&nerftrain::composite_bwd<nerftrain::CpuComposite>));
}
