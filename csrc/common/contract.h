// Folding all of space into a ball (L2) or a cube (L infinity) of radius 2; what lies within radius 1 stays as it is.
//
//   contract(x) = x                          where |x| <= 1
//               = (2 - 1 / |x|) x / |x|      elsewhere        (mip-NeRF 360, arXiv:2111.12077, eq. 10)
#pragma once
#include "macros.h"

namespace nerftrain {

// What a field's unit cube holds: a box; or all of space, folded around the box into a ball or a cube.
enum Folding { kUnfolded, kBall, kCube };

// A point as norm * unit. Scaled by its largest coordinate first: the square of 1e30 is no float.
template <class T>
struct NormAndUnit {
  T norm, unit[3];
  int axis;  // of the largest coordinate

  NT_HD NormAndUnit(const T* x, bool infinity_norm) : norm(0), unit{0, 0, 0}, axis(0) {
    T largest = 0;
    for (int a = 0; a < 3; ++a) {
      const T size = x[a] < T(0) ? -x[a] : x[a];
      if (size > largest) largest = size, axis = a;
    }
    if (!(largest > T(0))) return;
    T length = 0;
    for (int a = 0; a < 3; ++a) {
      unit[a] = x[a] / largest;
      length += unit[a] * unit[a];
    }
    length = infinity_norm ? T(1) : sqrt_of(length);
    norm = largest * length;
    for (int a = 0; a < 3; ++a) unit[a] /= length;
  }
};

template <class T>
struct ContractForward {
  const T* positions;  // [N][3]
  bool infinity_norm;
  T* out;  // [N][3]

  NT_HD void operator()(int64_t i) const {
    const NormAndUnit<T> p(positions + 3 * i, infinity_norm);
    const bool inside = !(p.norm > T(1));
    for (int a = 0; a < 3; ++a) out[3 * i + a] = inside ? positions[3 * i + a] : (T(2) - T(1) / p.norm) * p.unit[a];
  }
};

// With f = (2 - 1 / n) / n:  v_x = f v + n f' (unit . v) dn/dx,  n f' = 2 / n^2 - 2 / n.
template <class T>
struct ContractBackward {
  const T* positions;  // [N][3]
  const T* v_out;      // [N][3]
  bool infinity_norm;
  T* v_positions;  // [N][3]

  NT_HD void operator()(int64_t i) const {
    const NormAndUnit<T> p(positions + 3 * i, infinity_norm);
    const T* v = v_out + 3 * i;
    T* out = v_positions + 3 * i;
    const bool inside = !(p.norm > T(1));
    const T inverse = inside ? T(1) : T(1) / p.norm, factor = inside ? T(1) : (T(2) - inverse) * inverse;
    const T slope = inside ? T(0) : T(2) * (inverse - T(1)) * inverse;
    const T along = slope * (p.unit[0] * v[0] + p.unit[1] * v[1] + p.unit[2] * v[2]);
    for (int a = 0; a < 3; ++a) {
      const T direction = infinity_norm ? T(a == p.axis) * (p.unit[a] < T(0) ? T(-1) : T(1)) : p.unit[a];
      out[a] = factor * v[a] + along * direction;
    }
  }
};

}  // namespace nerftrain
