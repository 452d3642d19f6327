#pragma once
#include <stdexcept>

#include "../common/adam.h"
#include "tensors.h"

namespace nerftrain {

struct AdamRates {
  double lr, beta1, beta2, eps, weight_decay;
  int64_t step;  // from 1
  bool skip;
};

template <class T>
AdamEntry<T> adam_entry(const Tensor& parameter, const Tensor& gradient, const Tensor& mean, const Tensor& variance,
                        const AdamRates& r) {
  const double mean_bias = 1 - std::pow(r.beta1, double(r.step)), variance_bias = 1 - std::pow(r.beta2, double(r.step));
  return {write<T>(parameter),
          read<T>(gradient),
          write<T>(mean),
          write<T>(variance),
          T(r.lr / mean_bias),
          T(r.beta1),
          T(r.beta2),
          T(r.eps),
          T(1 / std::sqrt(variance_bias)),
          T(r.weight_decay),
          r.skip};
}

template <class Backend>
void adam_(const Tensor& parameter, const Tensor& gradient, const Tensor& mean, const Tensor& variance, double lr,
           double beta1, double beta2, double eps, double weight_decay, int64_t step, bool skip) {
  const AdamRates rates{lr, beta1, beta2, eps, weight_decay, step, skip};
  const auto run = [&](auto zero) {
    Backend::for_each(parameter, parameter.numel(),
                      adam_entry<decltype(zero)>(parameter, gradient, mean, variance, rates));
  };
  is_double(parameter) ? run(0.0) : run(0.f);
}

template <class Backend>
void adam_placed_(const Tensor& parameter, const Tensor& gradient, const Tensor& mean, const Tensor& variance,
                  const Tensor& copy, const Tensor& lr, const Tensor& step, double beta1, double beta2, double eps,
                  double weight_decay, bool skip) {
  if (copy.numel() && (copy.numel() != parameter.numel() || copy.scalar_type() != ScalarType::Half))
    throw std::runtime_error("adam: the copy must have the parameter's shape, in half precision");
  const AdamRates rates{0, beta1, beta2, eps, weight_decay, 1, skip};
  Half* to = copy.numel() ? static_cast<Half*>(copy.mutable_data_ptr()) : nullptr;
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const AdamPlaced<T> body{adam_entry<T>(parameter, gradient, mean, variance, rates), read<float>(lr),
                             read<float>(step), to};
    Backend::for_each(parameter, parameter.numel(), body);
  };
  is_double(parameter) ? run(0.0) : run(0.f);
}

}  // namespace nerftrain
