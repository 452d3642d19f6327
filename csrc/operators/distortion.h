#pragma once
#include "../common/distortion.h"
#include "tensors.h"

namespace nerftrain {

template <class T>
WeightedIntervals<T> weighted_intervals(const Tensor& weights, const Tensor& starts, const Tensor& ends,
                                        const Tensor& offsets) {
  return {read<T>(weights), read<T>(starts), read<T>(ends), read<int64_t>(offsets)};
}

template <class Backend, class T>
void distortion_fwd_as(const Tensor& weights, const Tensor& starts, const Tensor& ends, const Tensor& offsets,
                       const Tensor& out) {
  const DistortionForward<T> body{weighted_intervals<T>(weights, starts, ends, offsets), write<T>(out)};
  Backend::for_each(weights, offsets.size(0) - 1, body);
}

template <class Backend>
Tensor distortion_fwd(const Tensor& weights, const Tensor& starts, const Tensor& ends, const Tensor& offsets) {
  Tensor out = make(weights, {offsets.size(0) - 1});
  const auto run = is_double(weights) ? distortion_fwd_as<Backend, double> : distortion_fwd_as<Backend, float>;
  run(weights, starts, ends, offsets, out);
  return out;
}

template <class Backend, class T>
void distortion_bwd_as(const Tensor& weights, const Tensor& starts, const Tensor& ends, const Tensor& offsets,
                       const Tensor& v_distortion, const Tensor& v_weights) {
  const DistortionBackward<T> body{weighted_intervals<T>(weights, starts, ends, offsets), read<T>(v_distortion),
                                   write<T>(v_weights)};
  for_each_ray<Backend>(weights, offsets, {v_weights}, body);
}

template <class Backend>
Tensor distortion_bwd(const Tensor& weights, const Tensor& starts, const Tensor& ends, const Tensor& offsets,
                      const Tensor& v_distortion) {
  Tensor v_weights = make(weights, {weights.size(0)});
  const auto run = is_double(weights) ? distortion_bwd_as<Backend, double> : distortion_bwd_as<Backend, float>;
  run(weights, starts, ends, offsets, v_distortion, v_weights);
  return v_weights;
}

}  // namespace nerftrain
