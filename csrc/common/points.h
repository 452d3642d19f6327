// Where samples lie: the middles of intervals along rays.
#pragma once
#include "macros.h"

namespace nerftrain {

template <class T>
struct SamplePoints {
  static constexpr int64_t kGrain = 1 << 13;
  const T* origins;            // [R][3]
  const T* directions;         // [R][3]
  const T* t_starts;           // [N]
  const T* t_ends;             // [N]
  const int64_t* ray_indices;  // [N]
  T* positions;                // [N][3]
  T* views;                    // [N][3] the rays' directions

  NT_HD void operator()(int64_t i) const {
    const T middle = (t_starts[i] + t_ends[i]) * T(0.5);
    const T *origin = origins + 3 * ray_indices[i], *direction = directions + 3 * ray_indices[i];
    for (int a = 0; a < 3; ++a) {
      positions[3 * i + a] = origin[a] + middle * direction[a];
      views[3 * i + a] = direction[a];
    }
  }
};

}  // namespace nerftrain
