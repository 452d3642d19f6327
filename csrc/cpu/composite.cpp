#include "composite.h"

#include <vector>

#include "../operators/composite.h"
#include "backend.h"
#include "isa.h"

namespace nerftrain {

// In float32 a thread works out what the samples of its rays let through before it goes along them.
struct CpuComposite : Cpu {
  using Cpu::for_each;

  template <class Body>
  static void along_rays(int64_t num_rays, const Body& body) {
    const CompositeKernels& kernels = kernels_for(0, composite_portable, composite_avx2, composite_avx512);
    torch::stable::parallel_for(0, num_rays, kGrain, [&](int64_t begin, int64_t end) {
      const PackedRays<float>& in = body.in;
      const int64_t first = in.offsets[begin], last = in.offsets[end];
      std::vector<float> kept(last - first);
      Body own = body;
      own.in.kept = kept.data();
      own.in.kept_first = first;
      kernels.run(in.density + first, in.t_starts + first, in.t_ends + first, kept.data(), 0, last - first);
      for (int64_t r = begin; r < end; ++r) own(r);
    });
  }

  static void for_each(const torch::stable::Tensor&, int64_t n, const CompositeForward<float>& body) {
    along_rays(n, body);
  }
  static void for_each(const torch::stable::Tensor&, int64_t n, const CompositeBackward<float>& body) {
    along_rays(n, body);
  }
};

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("composite_fwd", TORCH_BOX(&nerftrain::composite_fwd<nerftrain::CpuComposite>));
  m.impl("composite_bwd", TORCH_BOX(&nerftrain::composite_bwd<nerftrain::CpuComposite>));
}
