// Real spherical harmonics up to degree 4 (16 numbers) of a unit direction, with Instant-NGP's signs and order.
// The polynomials are written once, for a number type that may carry derivatives.
#pragma once
#include "macros.h"

namespace nerftrain {

constexpr int kMaxShDegree = 4;

// A number and its gradient with respect to (x, y, z): forward-mode differentiation.
template <class T>
struct Dual {
  T v, d[3];
  NT_HD Dual(T value = 0, T dx = 0, T dy = 0, T dz = 0) : v(value), d{dx, dy, dz} {}
};
template <class T>
NT_HD Dual<T> operator+(const Dual<T>& a, const Dual<T>& b) {
  return {a.v + b.v, a.d[0] + b.d[0], a.d[1] + b.d[1], a.d[2] + b.d[2]};
}
template <class T>
NT_HD Dual<T> operator*(const Dual<T>& a, const Dual<T>& b) {
  return {a.v * b.v, a.v * b.d[0] + a.d[0] * b.v, a.v * b.d[1] + a.d[1] * b.v, a.v * b.d[2] + a.d[2] * b.v};
}

// T is the number type, S the type of the constants.
template <class S, class T>
NT_HD void spherical_harmonics(T x, T y, T z, int degree, T* out) {
  out[0] = T(S(0.28209479177387814));
  if (degree < 2) return;
  out[1] = T(S(-0.48860251190291987)) * y;
  out[2] = T(S(0.48860251190291987)) * z;
  out[3] = T(S(-0.48860251190291987)) * x;
  if (degree < 3) return;
  const T xx = x * x, yy = y * y, zz = z * z, minus = T(S(-1));
  out[4] = T(S(1.0925484305920792)) * (x * y);
  out[5] = T(S(-1.0925484305920792)) * (y * z);
  out[6] = T(S(0.94617469575755997)) * zz + T(S(-0.31539156525251999));
  out[7] = T(S(-1.0925484305920792)) * (x * z);
  out[8] = T(S(0.54627421529603959)) * (xx + minus * yy);
  if (degree < 4) return;
  const T one = T(S(1)), three = T(S(3)), five = T(S(5));
  out[9] = T(S(0.59004358992664352)) * y * (yy + minus * (three * xx));
  out[10] = T(S(2.8906114426405538)) * (x * y) * z;
  out[11] = T(S(0.45704579946446572)) * y * (one + minus * (five * zz));
  out[12] = T(S(0.3731763325901154)) * z * (five * zz + minus * three);
  out[13] = T(S(0.45704579946446572)) * x * (one + minus * (five * zz));
  out[14] = T(S(1.4453057213202769)) * z * (xx + minus * yy);
  out[15] = T(S(0.59004358992664352)) * x * (three * yy + minus * xx);
}

template <class T>
struct ShForward {
  const T* directions;  // [N][3]
  int degree;
  T* features;  // [N][degree^2]

  NT_HD void operator()(int64_t i) const {
    const T* d = directions + 3 * i;
    spherical_harmonics<T>(d[0], d[1], d[2], degree, features + i * degree * degree);
  }
};

template <class T>
struct ShBackward {
  const T* directions;  // [N][3]
  const T* v_features;  // [N][degree^2]
  int degree;
  T* v_directions;  // [N][3]

  NT_HD void operator()(int64_t i) const {
    const T* d = directions + 3 * i;
    Dual<T> out[kMaxShDegree * kMaxShDegree];
    spherical_harmonics<T>(Dual<T>(d[0], 1, 0, 0), Dual<T>(d[1], 0, 1, 0), Dual<T>(d[2], 0, 0, 1), degree, out);
    const int num = degree * degree;
    T sum[3] = {};
    // Bounds known to the compiler, which unrolls it: else `out` would lie in a GPU's local memory.
    for (int k = 0; k < kMaxShDegree * kMaxShDegree; ++k) {
      const T v = k < num ? v_features[i * num + k] : T(0);
      for (int a = 0; a < 3; ++a) sum[a] += v * out[k].d[a];
    }
    for (int a = 0; a < 3; ++a) v_directions[3 * i + a] = sum[a];
  }
};

}  // namespace nerftrain
