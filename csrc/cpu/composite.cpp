#include "composite.h"

#include "../operators/composite.h"
#include "backend.h"
#include "isa.h"

namespace nerftrain {

// In float32 what the samples of some rays let through is worked out before the way along them.
struct CpuComposite : Cpu {
  using Cpu::for_each;
  static constexpr int64_t kSamples = 2048;  // what stays in the first cache

  static void for_each(const torch::stable::Tensor&, int64_t n, const CompositeForward<float>& body) {
    const CompositeKernels& kernels = kernels_for(0, composite_portable, composite_avx2, composite_avx512);
    torch::stable::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
      const PackedRays<float>& in = body.in;
      CompositeForward<float> own = body;
      float kept[kSamples];
      for (int64_t ray = begin; ray < end;) {
        const int64_t first = in.offsets[ray];
        int64_t stop = ray + 1;
        while (stop < end && in.offsets[stop + 1] - first <= kSamples) ++stop;
        const int64_t num_samples = in.offsets[stop] - first;
        own.in.kept = num_samples <= kSamples ? kept : nullptr;  // a single ray may have more
        own.in.kept_first = first;
        if (own.in.kept) kernels.run(in.density + first, in.t_starts + first, in.t_ends + first, kept, 0, num_samples);
        for (; ray < stop; ++ray) own(ray);
      }
    });
  }
};

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("composite_fwd", TORCH_BOX(&nerftrain::composite_fwd<nerftrain::CpuComposite>));
  m.impl("composite_bwd", TORCH_BOX(&nerftrain::composite_bwd<nerftrain::CpuComposite>));
}
