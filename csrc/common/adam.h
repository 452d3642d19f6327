// Adam (arXiv:1412.6980, algorithm 1) that leaves entries without a gradient alone, moments included: a hash table's
// entry moves when it is seen, not on the momentum of when it was last seen (as in tiny-cuda-nn).
#pragma once
#include "macros.h"

namespace nerftrain {

template <class T>
struct AdamEntry {
  T* parameter;
  const T* gradient;
  T* mean;      // of gradients, beta1
  T* variance;  // of squared gradients, beta2
  T rate;       // learning rate over the bias correction of the mean
  T beta1, beta2, eps;
  T correction;  // one over the square root of the bias correction of the variance
  T weight_decay;
  bool skip;  // entries whose gradient is exactly zero

  NT_HD void operator()(int64_t i) const {
    T g = gradient[i];
    if (skip && g == T(0)) return;
    g += weight_decay * parameter[i];
    const T m = mean[i] += (T(1) - beta1) * (g - mean[i]);
    const T v = variance[i] += (T(1) - beta2) * (g * g - variance[i]);
    parameter[i] -= rate * m / (sqrt_of(v) * correction + eps);
  }
};

}  // namespace nerftrain
