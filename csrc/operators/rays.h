#pragma once
#include <stdexcept>

#include "../common/rays.h"
#include "tensors.h"

namespace nerftrain {

template <class Backend, class T>
void pixel_rays_as(const Tensor& poses, const Tensor& intrinsics, const Tensor& cameras, const Tensor& x,
                   const Tensor& y, const Tensor& origins, const Tensor& directions) {
  const PixelRays<T> body{read<T>(poses),   read<T>(intrinsics), read<int64_t>(cameras), read<int64_t>(x),
                          read<int64_t>(y), write<T>(origins),   write<T>(directions)};
  Backend::for_each(poses, cameras.size(0), body);
}

template <class Backend>
std::tuple<Tensor, Tensor> pixel_rays(const Tensor& poses, const Tensor& intrinsics, const Tensor& cameras,
                                      const Tensor& x, const Tensor& y) {
  const int64_t num = cameras.size(0);
  Tensor origins = make(poses, {num, 3}), directions = make(poses, {num, 3});
  const auto run = is_double(poses) ? pixel_rays_as<Backend, double> : pixel_rays_as<Backend, float>;
  run(poses, intrinsics, cameras, x, y, origins, directions);
  return {origins, directions};
}

template <class Backend>
Tensor pixel_colors(const Tensor& pixels, const Tensor& drawn, const Tensor& background) {
  if (pixels.size(1) != 3 && pixels.size(1) != 4) throw std::runtime_error("pixel_colors: pixels have 3 or 4 channels");
  Tensor colors = make(background, {drawn.size(0), 3});
  Backend::for_each(background, drawn.size(0),
                    PixelColors{read<uint8_t>(pixels), pixels.size(1), read<int64_t>(drawn), read<float>(background),
                                write<float>(colors)});
  return colors;
}

}  // namespace nerftrain
