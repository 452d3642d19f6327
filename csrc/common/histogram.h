// Histograms along rays: drawing intervals where a coarse one has its mass, and holding a coarse one to a fine one.
//
// A histogram has edges s_0 <= ... <= s_S and weights w_i of the bins [s_i, s_{i+1}]. Every body takes one ray.
#pragma once
#include "macros.h"

namespace nerftrain {

// Inverse transform sampling (NeRF, arXiv:2003.08934, section 5.2): edge k of the new intervals lies where the
// cumulated weight, linear within bins, is (k + jitter) / (K + 1) of the whole.
template <class T>
struct InvertCdf {
  const T* edges;    // [R][S + 1]
  const T* weights;  // [R][S] not negative; NaN counts as 0
  const T* jitter;   // [R] in 0..1
  int64_t num_bins;  // S
  int64_t num_intervals;
  T padding;  // added to every weight
  T* out;     // [R][K + 1]

  NT_HD T weight(int64_t r, int64_t i) const {
    const T w = weights[r * num_bins + i];
    return (w > T(0) ? w : T(0)) + padding;
  }

  NT_HD void operator()(int64_t r) const {
    const T* s = edges + r * (num_bins + 1);
    T total = 0;
    for (int64_t i = 0; i < num_bins; ++i) total += weight(r, i);
    const bool empty = !(total > T(0));  // then all bins count alike
    if (empty) total = T(num_bins);
    int64_t bin = 0;
    T before = 0, here = empty ? T(1) : weight(r, 0);
    for (int64_t k = 0; k <= num_intervals; ++k) {
      const T target = (T(k) + jitter[r]) / T(num_intervals + 1) * total;
      while (bin < num_bins - 1 && before + here < target) {
        before += here;
        ++bin;
        here = empty ? T(1) : weight(r, bin);
      }
      const T share = here > T(0) ? min_of(max_of((target - before) / here, T(0)), T(1)) : T(0);
      const T end = s[min_of(bin + 1, num_bins)];  // without a bin all edges are the one
      out[r * (num_intervals + 1) + k] = s[bin] + share * (end - s[bin]);
    }
  }
};

// The bins low .. high - 1 of a coarse histogram that a fine bin overlaps, found for one fine bin after the other: both
// ascend, so all fine bins together overlap at most as many as there are fine and coarse ones.
template <class T>
struct Overlap {
  const T* edges;    // [S + 1] of the coarse histogram
  int64_t num_bins;  // S
  int64_t low = 0, high = 0;

  NT_HD void move_to(T start, T end) {
    while (low < num_bins - 1 && edges[low + 1] <= start) ++low;
    // The bin in which it starts at least, where there is one: a fine bin may have no length.
    high = min_of(max_of(high, low + 1), num_bins);
    while (high < num_bins && edges[high] < end) ++high;
  }
};

// The loss by which a coarse histogram learns to bound a fine one (mip-NeRF 360, arXiv:2111.12077, eq. 13):
//   sum_i max(0, w_i - bound_i)^2 / (w_i + eps),  bound_i = the weight of the coarse bins that bin i overlaps.
template <class T>
struct Interlevel {
  const T* edges;           // [R][S + 1] fine
  const T* weights;         // [R][S]
  const T* coarse_edges;    // [R][P + 1]
  const T* coarse_weights;  // [R][P]
  int64_t num_bins;         // S
  int64_t num_coarse;       // P

  static constexpr double kEps = 1e-7;  // of the division alone: empty bins of the fine histogram ask for nothing

  // Calls each(excess, weight, low, high) for every fine bin that the coarse bins low .. high - 1 do not bound.
  template <class Each>
  NT_HD void unbounded(int64_t r, Each each) const {
    Overlap<T> overlap{coarse_edges + r * (num_coarse + 1), num_coarse};
    const T *s = edges + r * (num_bins + 1), *w = weights + r * num_bins, *coarse = coarse_weights + r * num_coarse;
    for (int64_t i = 0; i < num_bins; ++i) {
      overlap.move_to(s[i], s[i + 1]);
      T excess = w[i];
      for (int64_t j = overlap.low; j < overlap.high; ++j) excess -= coarse[j];
      if (excess > T(0)) each(excess, w[i] + T(kEps), overlap.low, overlap.high);
    }
  }
};

template <class T>
struct InterlevelForward {
  Interlevel<T> in;
  T* loss;  // [R]

  NT_HD void operator()(int64_t r) const {
    T sum = 0;
    in.unbounded(r, [&](T excess, T weight, int64_t, int64_t) { sum += excess * excess / weight; });
    loss[r] = sum;
  }
};

template <class T>
struct InterlevelBackward {
  Interlevel<T> in;
  const T* v_loss;      // [R]
  T* v_coarse_weights;  // [R][P]

  NT_HD void operator()(int64_t r) const {
    T* v = v_coarse_weights + r * in.num_coarse;
    for (int64_t j = 0; j < in.num_coarse; ++j) v[j] = 0;
    in.unbounded(r, [&](T excess, T weight, int64_t low, int64_t high) {
      for (int64_t j = low; j < high; ++j) v[j] -= T(2) * excess / weight * v_loss[r];
    });
  }
};

}  // namespace nerftrain
