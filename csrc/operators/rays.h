#pragma once
#include <stdexcept>

#include "../common/rays.h"
#include "tensors.h"

namespace nerftrain {

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> draw_pixels(const Tensor& drawn, int64_t num_rays, int64_t total,
                                                       int64_t stride, const Tensor& pixels, int64_t width,
                                                       int64_t height) {
  if (total < 1 || stride < 1 || stride > INT64_MAX / total)
    throw std::runtime_error("draw_pixels: total and stride are at least 1, and their product is an int64");
  if (pixels.numel() && pixels.numel() < total) throw std::runtime_error("draw_pixels: total is more than the pixels");
  if (width < 1 || height < 1) throw std::runtime_error("draw_pixels: images have at least one pixel");
  const auto numbers = [&] { return make(drawn, {num_rays}); };
  Tensor these = numbers(), cameras = numbers(), x = numbers(), y = numbers();
  const DrawPixels body{read<int64_t>(drawn),
                        read_or_none<int32_t>(pixels),
                        total,
                        stride,
                        width,
                        height,
                        write<int64_t>(these),
                        write<int64_t>(cameras),
                        write<int64_t>(x),
                        write<int64_t>(y)};
  Backend::for_each(drawn, num_rays, body);
  return {these, cameras, x, y};
}

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
std::tuple<Tensor, Tensor> lens_rays(const Tensor& poses, const Tensor& intrinsics, const Tensor& distortion,
                                     int64_t projection, int64_t iterations, const Tensor& cameras, const Tensor& x,
                                     const Tensor& y) {
  const int64_t num = cameras.size(0), terms = distortion.numel() ? distortion.size(1) : 0;
  if (terms != 0 && terms != 4 && terms != 6) throw std::runtime_error("lens_rays: distortion has 4 or 6 columns");
  if (projection < LensRays::kPerspective || projection > LensRays::kEquirectangular)
    throw std::runtime_error("lens_rays: projections are 0, 1 and 2");
  Tensor origins = make(poses, {num, 3}), directions = make(poses, {num, 3});
  const LensRays body{read<float>(poses),
                      read<float>(intrinsics),
                      read<float>(distortion),
                      terms,
                      projection,
                      iterations,
                      read<int64_t>(cameras),
                      read<int64_t>(x),
                      read<int64_t>(y),
                      write<float>(origins),
                      write<float>(directions)};
  Backend::for_each(poses, num, body);
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
