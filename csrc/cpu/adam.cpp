#include "../operators/adam.h"

#include <stdexcept>

#include "adam.h"
#include "backend.h"
#include "isa.h"
#include "ranges.h"

namespace nerftrain {

struct CpuAdam : Cpu {
  using Cpu::for_each;

  static void run(int64_t n, const AdamEntry<float>& body, Half* copy, float* clear) {
    const AdamKernels& kernels = kernels_for(0, adam_portable, adam_avx2, adam_avx512);
    constexpr int64_t kPart = 1 << 16;
    share((n + kPart - 1) / kPart, [&](int64_t part, int64_t) {
      kernels.run(body, copy, clear, part * kPart, std::min((part + 1) * kPart, n));
    });
  }

  static void for_each(const torch::stable::Tensor&, int64_t n, const AdamEntry<float>& body) {
    run(n, body, nullptr, nullptr);
  }
};

// The same that keeps a copy of the parameter in half precision up to date and, where it is to, leaves zeros of the
// gradient: the next one can be added to them.
void adam_with_copy_(const Tensor& parameter, const Tensor& gradient, const Tensor& mean, const Tensor& variance,
                     const Tensor& copy, double lr, double beta1, double beta2, double eps, double weight_decay,
                     int64_t step, bool skip, bool clear) {
  if (copy.numel() != parameter.numel() || copy.scalar_type() != ScalarType::Half)
    throw std::runtime_error("adam: the copy must have the parameter's shape, in half precision");
  const AdamRates rates{lr, beta1, beta2, eps, weight_decay, step, skip};
  CpuAdam::run(parameter.numel(), adam_entry<float>(parameter, gradient, mean, variance, rates),
               static_cast<Half*>(copy.mutable_data_ptr()), clear ? write<float>(gradient) : nullptr);
}

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("adam_", TORCH_BOX(&nerftrain::adam_<nerftrain::CpuAdam>));
  m.impl("adam_placed_", TORCH_BOX(&nerftrain::adam_placed_<nerftrain::Cpu>));
  m.impl("adam_with_copy_", TORCH_BOX(&nerftrain::adam_with_copy_));
}
