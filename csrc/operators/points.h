#pragma once
#include "../common/points.h"
#include "tensors.h"

namespace nerftrain {

template <class Backend, class T>
void sample_points_as(const Tensor& origins, const Tensor& directions, const Tensor& t_starts, const Tensor& t_ends,
                      const Tensor& ray_indices, const Tensor& positions, const Tensor& views) {
  const SamplePoints<T> body{read<T>(origins),           read<T>(directions), read<T>(t_starts), read<T>(t_ends),
                             read<int64_t>(ray_indices), write<T>(positions), write<T>(views)};
  Backend::for_each(t_starts, t_starts.size(0), body);
}

template <class Backend>
std::tuple<Tensor, Tensor> sample_points(const Tensor& origins, const Tensor& directions, const Tensor& t_starts,
                                         const Tensor& t_ends, const Tensor& ray_indices) {
  const int64_t num = t_starts.size(0);
  Tensor positions = make(origins, {num, 3}), views = make(origins, {num, 3});
  const auto run = is_double(origins) ? sample_points_as<Backend, double> : sample_points_as<Backend, float>;
  run(origins, directions, t_starts, t_ends, ray_indices, positions, views);
  return {positions, views};
}

template <class Backend, class T>
void unit_points_as(const Tensor& origins, const Tensor& directions, const Tensor& t_starts, const Tensor& t_ends,
                    const Tensor& ray_indices, const Tensor& box, int64_t folding, const Tensor& positions) {
  const UnitPoints<T> body{read<T>(origins),           read<T>(directions), read<T>(t_starts), read<T>(t_ends),
                           read<int64_t>(ray_indices), read<T>(box),        int(folding),      write<T>(positions)};
  Backend::for_each(t_starts, t_starts.size(0), body);
}

template <class Backend>
Tensor unit_points(const Tensor& origins, const Tensor& directions, const Tensor& t_starts, const Tensor& t_ends,
                   const Tensor& ray_indices, const Tensor& box, int64_t folding) {
  Tensor positions = make(origins, {t_starts.size(0), 3});
  const auto run = is_double(origins) ? unit_points_as<Backend, double> : unit_points_as<Backend, float>;
  run(origins, directions, t_starts, t_ends, ray_indices, box, folding, positions);
  return positions;
}

}  // namespace nerftrain
