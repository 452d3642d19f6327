// exp in float32 without branches or calls, so that compilers turn loops over it into vectors. Internal linkage.
#pragma once
#include <cstdint>

namespace {

// Within 2 units in the last place; 0 below -87, huge above 88; NaN stays NaN. Range reduction to |r| <= ln 2 / 2 and
// the polynomial of Cephes' expf.
inline float exponential(float x) {
  const float low = x < -87.3f ? -87.3f : x, bounded = low > 88.3f ? 88.3f : low;
  const float magic = 12582912.f;  // adding it rounds to a whole number
  const float shifted = bounded * 1.44269504f + magic, whole = shifted - magic;
  const float r = (bounded - whole * 0.693359375f) - whole * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float mantissa = p * r * r + r + 1.f;
  uint32_t bits;
  __builtin_memcpy(&bits, &shifted, 4);
  bits = (bits + 127u) << 23;
  float power;
  __builtin_memcpy(&power, &bits, 4);
  return x < -87.3f ? 0.f : mantissa * power;
}

}  // namespace
