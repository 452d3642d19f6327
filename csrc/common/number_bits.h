// Integers as the bits of floats: those of 2^23 + n are those of 2^23 and n, for n below 2^23. Additions that round
// down or up make them, so that nothing is converted.
#pragma once
#include <math.h>

#include "macros.h"

namespace nerftrain {

constexpr int kNumber = 0x4b000000;    // the bits of 2^23
constexpr int kMaxNumbered = 1 << 22;  // more than any grid has cells, or any ray steps

union NumberBits {
  float number;
  int bits;
};

// The bits of the greatest or the least integer of 0 ... kMaxNumbered on this side of x; beyond these, less or more.
NT_HD int floor_bits(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_int(__fadd_rd(x, 8388608.f));
#else
  const NumberBits sum{x + 8388608.f};
  return sum.bits - (sum.number - 8388608.f > x);
#endif
}

NT_HD int ceil_bits(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_int(__fadd_ru(x, 8388608.f));
#else
  const NumberBits sum{x + 8388608.f};
  return sum.bits + (sum.number - 8388608.f < x);
#endif
}

// x y + z, rounded once wherever it is asked for: a compiler may fuse what stands in one place and not in another.
NT_HD float fused(float x, float y, float z) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(x, y, z);
#else
  return fmaf(x, y, z);
#endif
}

// x y, rounded, whatever it is added to.
NT_HD float product(float x, float y) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(x, y);
#else
  return x * y;
#endif
}

// 2^23 + n of its bits.
NT_HD float with_bits(int bits) {
  NumberBits number;
  number.bits = bits;
  return number.number;
}

// n of the bits of 2^23 + n.
NT_HD float number_of(int bits) { return with_bits(bits) - 8388608.f; }

}  // namespace nerftrain
