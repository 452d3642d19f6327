#pragma once
#include "../common/histogram.h"
#include "tensors.h"

namespace nerftrain {

template <class Backend, class T>
void invert_cdf_as(const Tensor& edges, const Tensor& weights, const Tensor& jitter, double padding,
                   const Tensor& out) {
  const InvertCdf<T> body{read<T>(edges),  read<T>(weights), read<T>(jitter), weights.size(1),
                          out.size(1) - 1, T(padding),       write<T>(out)};
  Backend::for_each(edges, edges.size(0), body);
}

template <class Backend>
Tensor invert_cdf(const Tensor& edges, const Tensor& weights, const Tensor& jitter, int64_t num_intervals,
                  double padding) {
  Tensor out = make(edges, {edges.size(0), num_intervals + 1});
  const auto run = is_double(edges) ? invert_cdf_as<Backend, double> : invert_cdf_as<Backend, float>;
  run(edges, weights, jitter, padding, out);
  return out;
}

template <class T>
Interlevel<T> interlevel_of(const Tensor& edges, const Tensor& weights, const Tensor& coarse_edges,
                            const Tensor& coarse_weights) {
  return {read<T>(edges),          read<T>(weights), read<T>(coarse_edges),
          read<T>(coarse_weights), weights.size(1),  coarse_weights.size(1)};
}

template <class Backend, class T>
void interlevel_fwd_as(const Tensor& edges, const Tensor& weights, const Tensor& coarse_edges,
                       const Tensor& coarse_weights, const Tensor& loss) {
  const auto in = interlevel_of<T>(edges, weights, coarse_edges, coarse_weights);
  Backend::for_each(edges, edges.size(0), InterlevelForward<T>{in, write<T>(loss)});
}

template <class Backend>
Tensor interlevel_fwd(const Tensor& edges, const Tensor& weights, const Tensor& coarse_edges,
                      const Tensor& coarse_weights) {
  Tensor loss = make(edges, {edges.size(0)});
  const auto run = is_double(edges) ? interlevel_fwd_as<Backend, double> : interlevel_fwd_as<Backend, float>;
  run(edges, weights, coarse_edges, coarse_weights, loss);
  return loss;
}

template <class Backend, class T>
void interlevel_bwd_as(const Tensor& edges, const Tensor& weights, const Tensor& coarse_edges,
                       const Tensor& coarse_weights, const Tensor& v_loss, const Tensor& v_coarse_weights) {
  const auto in = interlevel_of<T>(edges, weights, coarse_edges, coarse_weights);
  Backend::for_each(edges, edges.size(0), InterlevelBackward<T>{in, read<T>(v_loss), write<T>(v_coarse_weights)});
}

template <class Backend>
Tensor interlevel_bwd(const Tensor& edges, const Tensor& weights, const Tensor& coarse_edges,
                      const Tensor& coarse_weights, const Tensor& v_loss) {
  Tensor v_coarse_weights = make(edges, {edges.size(0), coarse_weights.size(1)});
  const auto run = is_double(edges) ? interlevel_bwd_as<Backend, double> : interlevel_bwd_as<Backend, float>;
  run(edges, weights, coarse_edges, coarse_weights, v_loss, v_coarse_weights);
  return v_coarse_weights;
}

}  // namespace nerftrain
