// Where samples lie: the middles of intervals along rays, in world units or in the unit cube of a field.
#pragma once
#include "contract.h"

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

template <class T>
struct UnitPoints {
  static constexpr int64_t kGrain = 1 << 13;
  const T* origins;            // [R][3]
  const T* directions;         // [R][3]
  const T* t_starts;           // [N]
  const T* t_ends;             // [N]
  const int64_t* ray_indices;  // [N]
  const T* box;                // [6] lower and upper corner
  int folding;                 // of Folding
  T* positions;                // [N][3]

  NT_HD void operator()(int64_t i) const {
    const T middle = (t_starts[i] + t_ends[i]) * T(0.5);
    const T *origin = origins + 3 * ray_indices[i], *direction = directions + 3 * ray_indices[i];
    T at[3];
    for (int a = 0; a < 3; ++a) {
      const T low = box[a], high = box[3 + a], x = origin[a] + middle * direction[a];
      at[a] = (folding == kUnfolded ? x - low : x * T(2) - (low + high)) / (high - low);
    }
    T* to = positions + 3 * i;
    if (folding != kUnfolded) ContractForward<T>{at, folding == kCube, to}(0);
    for (int a = 0; a < 3; ++a) to[a] = folding == kUnfolded ? at[a] : to[a] * T(0.25) + T(0.5);
  }
};

}  // namespace nerftrain
