// How spread out the weights along a ray are, in time linear in its samples.
//
//   distortion = sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 d_i       (mip-NeRF 360, arXiv:2111.12077, eq. 15)
// with midpoints m_i and lengths d_i of the intervals. Midpoints ascend, so running sums of w and w m serve for the
// double sum (DVGOv2, arXiv:2206.05085, eq. 6).
#pragma once
#include "macros.h"

namespace nerftrain {

template <class T>
struct WeightedIntervals {
  const T* weights;        // [N]
  const T* starts;         // [N]
  const T* ends;           // [N]
  const int64_t* offsets;  // [R + 1]

  NT_HD T middle(int64_t i) const { return (starts[i] + ends[i]) * T(0.5); }
};

template <class T>
struct DistortionForward {
  WeightedIntervals<T> in;
  T* distortion;  // [R]

  NT_HD void operator()(int64_t r) const {
    T sum_w = 0, sum_wm = 0, sum = 0;
    for (int64_t i = in.offsets[r]; i < in.offsets[r + 1]; ++i) {
      const T w = in.weights[i], m = in.middle(i);
      sum += T(2) * w * (m * sum_w - sum_wm) + w * w * (in.ends[i] - in.starts[i]) / T(3);
      sum_w += w;
      sum_wm += w * m;
    }
    distortion[r] = sum;
  }
};

template <class T>
struct DistortionBackward {
  WeightedIntervals<T> in;
  const T* v_distortion;  // [R]
  T* v_weights;           // [N]

  NT_HD void operator()(int64_t r) const {
    T all_w = 0, all_wm = 0;
    for (int64_t i = in.offsets[r]; i < in.offsets[r + 1]; ++i) {
      all_w += in.weights[i];
      all_wm += in.weights[i] * in.middle(i);
    }
    T sum_w = 0, sum_wm = 0;
    for (int64_t i = in.offsets[r]; i < in.offsets[r + 1]; ++i) {
      const T w = in.weights[i], m = in.middle(i);
      const T nearer = m * sum_w - sum_wm, farther = (all_wm - sum_wm - w * m) - m * (all_w - sum_w - w);
      v_weights[i] = v_distortion[r] * T(2) * (nearer + farther + w * (in.ends[i] - in.starts[i]) / T(3));
      sum_w += w;
      sum_wm += w * m;
    }
  }
};

}  // namespace nerftrain
