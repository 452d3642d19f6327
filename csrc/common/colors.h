// Rays' colours over what lies behind them, and how far they are from those they should have.
#pragma once
#include "macros.h"

namespace nerftrain {

template <class T>
struct OverBackgroundForward {
  static constexpr int64_t kGrain = 1 << 12;
  const T* channels;    // [R][3]
  const T* opacity;     // [R]
  const T* background;  // [R][3]
  T* colors;            // [R][3]

  NT_HD void operator()(int64_t r) const {
    // Not background * (1 - opacity): where a ray sees nothing the background stays as it is, to the last bit.
    for (int64_t i = 3 * r; i < 3 * r + 3; ++i) colors[i] = channels[i] + (background[i] - opacity[r] * background[i]);
  }
};

// The gradient of the channels is that of the colours.
template <class T>
struct OverBackgroundBackward {
  static constexpr int64_t kGrain = 1 << 12;
  const T* background;  // [R][3]
  const T* v_colors;    // [R][3]
  T* v_opacity;         // [R]

  NT_HD void operator()(int64_t r) const {
    const T *b = background + 3 * r, *v = v_colors + 3 * r;
    v_opacity[r] = -(v[0] * b[0] + v[1] * b[1] + v[2] * b[2]);
  }
};

// Huber's loss, e^2 / 2 up to an error of delta and delta (|e| - delta / 2) beyond, of each ray: the mean over its
// colours, divided by the number of rays that count, so that the sum over rays is the mean. And its gradient.
template <class T>
struct ColorError {
  static constexpr int64_t kGrain = 1 << 12;
  const T* prediction;       // [R][3]
  const T* target;           // [R][3]
  const bool* whole;         // [R], the rays that count; null: all
  const int64_t* num_whole;  // [], how many they are; null where all are
  int64_t num_rays;
  T delta;          // may be infinite
  T* share;         // [R]
  T* v_prediction;  // [R][3]

  NT_HD void operator()(int64_t r) const {
    const T scale = T(1) / (T(3) * T(max_of(num_whole ? *num_whole : num_rays, int64_t(1))));
    const bool counts = !whole || whole[r];
    T sum = 0;
    for (int64_t i = 3 * r; i < 3 * r + 3; ++i) {
      const T error = prediction[i] - target[i], size = error < T(0) ? -error : error;
      const bool far = size > delta;
      sum += far ? delta * (size - T(0.5) * delta) : T(0.5) * error * error;
      const T slope = far ? (error < T(0) ? -delta : delta) : error;
      v_prediction[i] = counts ? slope * scale : T(0);
    }
    share[r] = counts ? sum * scale : T(0);
  }
};

}  // namespace nerftrain
