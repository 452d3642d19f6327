// Numbers of 16 bits (IEEE 754 binary16), as tables are stored in to take half the memory.
#pragma once
#include "macros.h"

#if defined(__aarch64__) && !defined(__CUDACC__)
#define NT_CPU_HAS_HALF  // of its own, with an instruction for each way
#endif

namespace nerftrain {

struct Half {
  uint16_t bits;
};

// Exact; by scaling, so that numbers below the normal ones need no branch.
NT_HD float float_of(Half half) {
#ifdef NT_CPU_HAS_HALF
  __fp16 number;
  __builtin_memcpy(&number, &half, sizeof(number));
  return number;
#else
  const uint32_t magnitude = uint32_t(half.bits & 0x7fffu) << 13, sign = uint32_t(half.bits & 0x8000u) << 16;
  union {
    uint32_t bits;
    float number;
  } value{magnitude}, scaled{};
  scaled.number = value.number * 5.192296858534828e33f;      // 2^112
  if (scaled.number >= 65536.f) scaled.bits |= 0x7f800000u;  // infinity and what is not a number
  scaled.bits |= sign;
  return scaled.number;
#endif
}

// To the nearest, ties to even; beyond the largest, infinity.
NT_HD Half half_of(float number) {
#ifdef NT_CPU_HAS_HALF
  const __fp16 rounded = number;
  Half half;
  __builtin_memcpy(&half, &rounded, sizeof(half));
  return half;
#else
  union {
    float number;
    uint32_t bits;
  } value{number}, small{};
  const uint32_t sign = value.bits >> 16 & 0x8000u;
  value.bits &= 0x7fffffffu;
  uint32_t bits;
  if (value.bits >= 0x7f800000u) {
    bits = value.bits > 0x7f800000u ? 0x7e00u : 0x7c00u;
  } else if (value.bits >= 0x477ff000u) {
    bits = 0x7c00u;
  } else if (value.bits < 0x38800000u) {  // below the normal ones: adding 2^-1's unit aligns the digits
    small.number = value.number + 0.5f;
    bits = small.bits - 0x3f000000u;
  } else {
    bits = (value.bits - 0x38000000u + 0xfffu + (value.bits >> 13 & 1u)) >> 13;
  }
  return {uint16_t(bits | sign)};
#endif
}

}  // namespace nerftrain
