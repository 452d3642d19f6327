#pragma once
#include <stdexcept>

#include "../common/spherical_harmonics.h"
#include "tensors.h"

namespace nerftrain {

inline void check_degree(int64_t degree) {
  if (degree < 1 || degree > kMaxShDegree) throw std::runtime_error("spherical harmonics: degree must be 1 to 4");
}

template <class Backend>
Tensor spherical_harmonics_fwd(const Tensor& directions, int64_t degree) {
  check_degree(degree);
  const int64_t num = directions.size(0);
  Tensor out = make(directions, {num, degree * degree});
  if (is_double(directions))
    Backend::for_each(directions, num, ShForward<double>{read<double>(directions), int(degree), write<double>(out)});
  else
    Backend::for_each(directions, num, ShForward<float>{read<float>(directions), int(degree), write<float>(out)});
  return out;
}

template <class Backend, class T>
void spherical_harmonics_bwd_as(const Tensor& directions, const Tensor& v_features, int64_t degree, Tensor& out) {
  const ShBackward<T> body{read<T>(directions), read<T>(v_features), int(degree), write<T>(out)};
  Backend::for_each(directions, directions.size(0), body);
}

template <class Backend>
Tensor spherical_harmonics_bwd(const Tensor& directions, const Tensor& v_features, int64_t degree) {
  check_degree(degree);
  Tensor out = make(directions, {directions.size(0), 3});
  const auto run =
      is_double(directions) ? spherical_harmonics_bwd_as<Backend, double> : spherical_harmonics_bwd_as<Backend, float>;
  run(directions, v_features, degree, out);
  return out;
}

}  // namespace nerftrain
