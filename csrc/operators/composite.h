#pragma once
#include "../common/composite.h"
#include "tensors.h"

namespace nerftrain {

template <class T>
PackedRays<T> packed_rays(const Tensor& density, const Tensor& channels, const Tensor& t_starts, const Tensor& t_ends,
                          const Tensor& offsets) {
  return {read<T>(density),       read<T>(channels), read<T>(t_starts), read<T>(t_ends),
          read<int64_t>(offsets), channels.size(1),  nullptr,           0};
}

using Composited = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Backend, class T>
Composited composite_fwd_as(const Tensor& density, const Tensor& channels, const Tensor& t_starts, const Tensor& t_ends,
                            const Tensor& offsets) {
  const int64_t num_rays = offsets.size(0) - 1;
  Tensor out = make(density, {num_rays, channels.size(1)}), opacity = make(density, {num_rays});
  Tensor depth = make(density, {num_rays}), distortion = make(density, {num_rays});
  Tensor weights = make(density, {density.size(0)}), alphas = make(density, {density.size(0)});
  Tensor arriving = make(density, {density.size(0)});
  const CompositeForward<T> body{packed_rays<T>(density, channels, t_starts, t_ends, offsets),
                                 write<T>(out),
                                 write<T>(opacity),
                                 write<T>(depth),
                                 write<T>(distortion),
                                 write<T>(weights),
                                 write<T>(alphas),
                                 write<T>(arriving)};
  for_each_ray<Backend>(density, offsets, {weights, alphas, arriving}, body);
  return {out, opacity, depth, distortion, weights, alphas, arriving};
}

template <class Backend>
Composited composite_fwd(const Tensor& density, const Tensor& channels, const Tensor& t_starts, const Tensor& t_ends,
                         const Tensor& offsets) {
  const auto run = is_double(density) ? composite_fwd_as<Backend, double> : composite_fwd_as<Backend, float>;
  return run(density, channels, t_starts, t_ends, offsets);
}

template <class Backend, class T>
std::tuple<Tensor, Tensor> composite_bwd_as(const Tensor& density, const Tensor& channels, const Tensor& t_starts,
                                            const Tensor& t_ends, const Tensor& offsets, const Tensor& weights,
                                            const Tensor& arriving, const Tensor& opacity, const Tensor& depth,
                                            const Tensor& v_channels, const Tensor& v_opacity, const Tensor& v_depth,
                                            const Tensor& v_distortion, const Tensor& v_weights, const Tensor& v_alphas,
                                            const Tensor& v_arriving) {
  Tensor v_density = make(density, {density.size(0)});
  Tensor v_sample_channels = make(density, {channels.size(0), channels.size(1)});
  const CompositeBackward<T> body{packed_rays<T>(density, channels, t_starts, t_ends, offsets),
                                  read<T>(weights),
                                  read<T>(arriving),
                                  read<T>(opacity),
                                  read<T>(depth),
                                  read_or_none<T>(v_channels),
                                  read_or_none<T>(v_opacity),
                                  read_or_none<T>(v_depth),
                                  read_or_none<T>(v_distortion),
                                  read_or_none<T>(v_weights),
                                  read_or_none<T>(v_alphas),
                                  read_or_none<T>(v_arriving),
                                  write<T>(v_density),
                                  write<T>(v_sample_channels)};
  for_each_ray<Backend>(density, offsets, {v_density, v_sample_channels}, body);
  return {v_density, v_sample_channels};
}

template <class Backend>
std::tuple<Tensor, Tensor> composite_bwd(const Tensor& density, const Tensor& channels, const Tensor& t_starts,
                                         const Tensor& t_ends, const Tensor& offsets, const Tensor& weights,
                                         const Tensor& arriving, const Tensor& opacity, const Tensor& depth,
                                         const Tensor& v_channels, const Tensor& v_opacity, const Tensor& v_depth,
                                         const Tensor& v_distortion, const Tensor& v_weights, const Tensor& v_alphas,
                                         const Tensor& v_arriving) {
  const auto run = is_double(density) ? composite_bwd_as<Backend, double> : composite_bwd_as<Backend, float>;
  return run(density, channels, t_starts, t_ends, offsets, weights, arriving, opacity, depth, v_channels, v_opacity,
             v_depth, v_distortion, v_weights, v_alphas, v_arriving);
}

}  // namespace nerftrain
