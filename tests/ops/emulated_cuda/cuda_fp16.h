// Numbers in half precision by csrc/common/half.h.
#pragma once
#include "half.h"

struct __half2 {
  nerftrain::Half x, y;
};
inline __half2 __floats2half2_rn(float low, float high) { return {nerftrain::half_of(low), nerftrain::half_of(high)}; }
inline float2 __half22float2(__half2 pair) { return {nerftrain::float_of(pair.x), nerftrain::float_of(pair.y)}; }
