#pragma once
#include "../common/colors.h"
#include "tensors.h"

namespace nerftrain {

template <class Backend, class T>
void over_background_fwd_as(const Tensor& channels, const Tensor& opacity, const Tensor& background,
                            const Tensor& colors) {
  const OverBackgroundForward<T> body{read<T>(channels), read<T>(opacity), read<T>(background), write<T>(colors)};
  Backend::for_each(channels, channels.size(0), body);
}

template <class Backend>
Tensor over_background_fwd(const Tensor& channels, const Tensor& opacity, const Tensor& background) {
  Tensor colors = make(channels, {channels.size(0), 3});
  const auto run =
      is_double(channels) ? over_background_fwd_as<Backend, double> : over_background_fwd_as<Backend, float>;
  run(channels, opacity, background, colors);
  return colors;
}

template <class Backend, class T>
void over_background_bwd_as(const Tensor& background, const Tensor& v_colors, const Tensor& v_opacity) {
  const OverBackgroundBackward<T> body{read<T>(background), read<T>(v_colors), write<T>(v_opacity)};
  Backend::for_each(background, background.size(0), body);
}

template <class Backend>
Tensor over_background_bwd(const Tensor& background, const Tensor& v_colors) {
  Tensor v_opacity = make(background, {background.size(0)});
  const auto run =
      is_double(background) ? over_background_bwd_as<Backend, double> : over_background_bwd_as<Backend, float>;
  run(background, v_colors, v_opacity);
  return v_opacity;
}

template <class Backend, class T>
void color_error_as(const Tensor& prediction, const Tensor& target, const Tensor& whole, const Tensor& num_whole,
                    double delta, const Tensor& share, const Tensor& v_prediction) {
  const ColorError<T> body{
      read<T>(prediction), read<T>(target), read_or_none<bool>(whole), read_or_none<int64_t>(num_whole),
      prediction.size(0),  T(delta),        write<T>(share),           write<T>(v_prediction)};
  Backend::for_each(prediction, prediction.size(0), body);
}

template <class Backend>
std::tuple<Tensor, Tensor> color_error(const Tensor& prediction, const Tensor& target, const Tensor& whole,
                                       const Tensor& num_whole, double delta) {
  const int64_t num = prediction.size(0);
  Tensor share = make(prediction, {num}), v_prediction = make(prediction, {num, 3});
  const auto run = is_double(prediction) ? color_error_as<Backend, double> : color_error_as<Backend, float>;
  run(prediction, target, whole, num_whole, delta, share, v_prediction);
  return {share, v_prediction};
}

}  // namespace nerftrain
