// Which pixels are drawn, rays through their centres, of pinhole cameras that look along -z (OpenGL's axes), and their
// colours.
#pragma once
#include "macros.h"

namespace nerftrain {

// The next pixels of an order that steps through all of them, and where they are in images of one size.
struct DrawPixels {
  static constexpr int64_t kGrain = 1 << 12;
  const int64_t* drawn;      // [], how many came before
  const int32_t* pixels;     // [total] what is drawn from; null: all pixels
  int64_t total, stride;     // whose product is an int64
  int64_t width, height;     // of every image
  int64_t *these, *cameras;  // [R]
  int64_t *columns, *rows;   // [R]

  NT_HD void operator()(int64_t r) const {
    const int64_t turn = (*drawn + r) % total;
    const int64_t place = (turn < 0 ? turn + total : turn) * stride % total;
    const int64_t pixel = pixels ? pixels[place] : place;
    const int64_t row = pixel / width;  // of all images, back to back
    these[r] = pixel;
    cameras[r] = row / height;
    columns[r] = pixel - row * width;
    rows[r] = row - cameras[r] * height;
  }
};

template <class T>
struct PixelRays {
  static constexpr int64_t kGrain = 1 << 12;
  const T* poses;          // [C][3][4] camera to world
  const T* intrinsics;     // [C][4] fx fy cx cy
  const int64_t* cameras;  // [R]
  const int64_t* x;        // [R] columns
  const int64_t* y;        // [R] rows
  T* origins;              // [R][3]
  T* directions;           // [R][3] of unit length

  NT_HD void operator()(int64_t r) const {
    const T *pose = poses + 12 * cameras[r], *lens = intrinsics + 4 * cameras[r];
    const T right = (T(x[r]) + T(0.5) - lens[2]) / lens[0], down = (T(y[r]) + T(0.5) - lens[3]) / lens[1];
    // The length of (right, -down, -1) is that of the world direction too: rotations keep lengths.
    const T scale = T(1) / sqrt_of(right * right + down * down + T(1));
    for (int a = 0; a < 3; ++a) {
      const T* row = pose + 4 * a;
      origins[3 * r + a] = row[3];
      directions[3 * r + a] = (row[0] * right - row[1] * down - row[2]) * scale;
    }
  }
};

// Straight colours over backgrounds.
struct PixelColors {
  static constexpr int64_t kGrain = 1 << 9;  // pixels lie far apart: most of the time is spent waiting for them
  const uint8_t* pixels;                     // [P][num_channels]
  int64_t num_channels;                      // 3, or 4 with alpha
  const int64_t* drawn;                      // [R]
  const float* background;                   // [R][3]
  float* colors;                             // [R][3]

  NT_HD void operator()(int64_t r) const {
    const uint8_t* pixel = pixels + num_channels * drawn[r];
    const float alpha = num_channels == 4 ? float(pixel[3]) / 255.f : 1.f;
    for (int k = 0; k < 3; ++k)
      colors[3 * r + k] = alpha * (float(pixel[k]) / 255.f) + (1.f - alpha) * background[3 * r + k];
  }
};

}  // namespace nerftrain
