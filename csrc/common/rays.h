// Which pixels are drawn, rays through their centres, of cameras that look along -z (OpenGL's axes), and their colours.
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

// From a pose, [3][4] camera to world, and what a camera sees somewhere to the right, down and ahead.
template <class T>
NT_HD void write_ray(const T* pose, T right, T down, T ahead, T* origin, T* direction) {
  // The length of (right, -down, -ahead) is that of the world direction too: rotations keep lengths.
  const T scale = T(1) / sqrt_of(right * right + down * down + ahead * ahead);
  for (int a = 0; a < 3; ++a) {
    const T* row = pose + 4 * a;
    origin[a] = row[3];
    direction[a] = (row[0] * right - row[1] * down - row[2] * ahead) * scale;
  }
}

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
    write_ray(pose, right, down, T(1), origins + 3 * r, directions + 3 * r);
  }
};

// The same of lenses with faults, and of those that are no pinholes: nerftrain/ops/lenses.py has the formulas.
struct LensRays {
  static constexpr int64_t kGrain = 1 << 8;
  static constexpr int kPerspective = 0, kFisheye = 1, kEquirectangular = 2;
  const float* poses;       // [C][3][4] camera to world
  const float* intrinsics;  // [C][4] fx fy cx cy
  const float* distortion;  // [C][terms] k1 k2 p1 p2 k3 k4
  int64_t terms;            // 6, 4, or 0: the lenses have no faults
  int64_t projection;
  int64_t iterations;      // of Newton's method, at most
  const int64_t* cameras;  // [R]
  const int64_t* x;        // [R] columns
  const int64_t* y;        // [R] rows
  float* origins;          // [R][3]
  float* directions;       // [R][3] of unit length

  NT_HD void operator()(int64_t r) const {
    const int64_t camera = cameras[r];
    const float* lens = intrinsics + 4 * camera;
    float right = (float(x[r]) + 0.5f - lens[2]) / lens[0], down = (float(y[r]) + 0.5f - lens[3]) / lens[1],
          ahead = 1.f;
    if (terms) undistort(distortion + terms * camera, right, down);
    if (projection == kFisheye) {
      // Beyond the last point that the lens shows Newton's steps may have led anywhere.
      const float far = 1e18f;  // whose square is a number
      right = right < far && right > -far ? right : 0.f;
      down = down < far && down > -far ? down : 0.f;
      const float off = sqrt_of(right * right + down * down), angle = min_of(off, 3.14159265358979f);
      const float share = off > 0.f ? sin_of(angle) / off : 1.f;
      ahead = cos_of(angle);
      right *= share;
      down *= share;
    } else if (projection == kEquirectangular) {
      const float level = cos_of(down);
      ahead = level * cos_of(right);
      right = level * sin_of(right);
      down = sin_of(down);
    }
    write_ray(poses + 12 * camera, right, down, ahead, origins + 3 * r, directions + 3 * r);
  }

  // Finds the ideal point whose bent one is given.
  NT_HD void undistort(const float* faults, float& at_x, float& at_y) const {
    const float k1 = faults[0], k2 = faults[1], p1 = faults[2], p2 = faults[3];
    const float k3 = terms > 4 ? faults[4] : 0.f, k4 = terms > 4 ? faults[5] : 0.f;
    const float wanted_x = at_x, wanted_y = at_y;
    for (int64_t i = 0; i < iterations; ++i) {
      const float xx = at_x * at_x, xy = at_x * at_y, yy = at_y * at_y, rr = xx + yy;
      const float radial = 1.f + rr * (k1 + rr * (k2 + rr * (k3 + rr * k4)));
      const float slope = 2.f * k1 + rr * (4.f * k2 + rr * (6.f * k3 + rr * 8.f * k4));
      const float error_x = at_x * radial + 2.f * p1 * xy + p2 * (rr + 2.f * xx) - wanted_x;
      const float error_y = at_y * radial + 2.f * p2 * xy + p1 * (rr + 2.f * yy) - wanted_y;
      const float a = radial + slope * xx + 2.f * p1 * at_y + 6.f * p2 * at_x;
      const float b = slope * xy + 2.f * (p1 * at_x + p2 * at_y);
      const float d = radial + slope * yy + 2.f * p2 * at_x + 6.f * p1 * at_y;
      const float inverse = 1.f / (a * d - b * b);
      const float next_x = at_x - (d * error_x - b * error_y) * inverse;
      const float next_y = at_y - (a * error_y - b * error_x) * inverse;
      const bool there = next_x == at_x && next_y == at_y;
      at_x = next_x;
      at_y = next_y;
      if (there) break;
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
