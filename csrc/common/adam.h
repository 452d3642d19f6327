// Adam (arXiv:1412.6980, algorithm 1) that leaves entries without a gradient alone, moments included: a hash table's
// entry moves when it is seen, not on the momentum of when it was last seen (as in tiny-cuda-nn).
#pragma once
#include "half.h"
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

  // Without branches, so that compilers turn loops over entries into vectors.
  NT_HD void operator()(int64_t i) const {
    const T p = parameter[i], m = mean[i], v = variance[i], seen = gradient[i];
    const bool stay = skip && seen == T(0);
    const T g = seen + weight_decay * p;
    const T new_m = m + (T(1) - beta1) * (g - m);
    const T new_v = v + (T(1) - beta2) * (g * g - v);
    const T new_p = p - rate * new_m / (sqrt_of(new_v) * correction + eps);
    mean[i] = stay ? m : new_m;
    variance[i] = stay ? v : new_v;
    parameter[i] = stay ? p : new_p;
  }
};

// The same where the learning rate and the step lie in memory: what is recorded once serves every step. A copy in half
// precision, where there is one, follows.
template <class T>
struct AdamPlaced {
  AdamEntry<T> entry;  // without rates
  const float* lr;     // [1]
  const float* step;   // [1] from 1
  Half* copy;

  // 1 - beta^step, which for a beta next to one is the small difference of numbers next to one.
  NT_HD static T bias(T beta, T step) { return beta > T(0) ? -expm1_of(step * log_of(beta)) : T(1); }

  NT_HD void operator()(int64_t i) const {
    if (entry.skip && entry.gradient[i] == T(0)) return;  // a GPU need not even read the rest
    AdamEntry<T> now = entry;
    now.rate = T(*lr) / bias(entry.beta1, T(*step));
    now.correction = T(1) / sqrt_of(bias(entry.beta2, T(*step)));
    now(i);
    if (copy) copy[i] = half_of(float(entry.parameter[i]));
  }
};

}  // namespace nerftrain
