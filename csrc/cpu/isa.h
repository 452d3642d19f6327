// Which instruction set serves: the best that the CPU has, or the one that a call asks for by its lanes.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <stdexcept>

namespace nerftrain {

// NERFTRAIN_LANES in the environment takes the place of "the most there is", so that every path can be tested.
inline int64_t default_lanes() {
  static const int64_t lanes = [] {
    const char* text = std::getenv("NERFTRAIN_LANES");
    return text ? std::atoi(text) : 0;
  }();
  return lanes;
}

// lanes: floats in a vector, 4, 8 or 16; 0 for the most there is.
template <class Kernels>
const Kernels& kernels_for(int64_t lanes, const Kernels& portable, const Kernels& avx2, const Kernels& avx512) {
  if (lanes == 0) lanes = default_lanes();
#if defined(__x86_64__)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  if ((lanes == 0 || lanes == 16) && has_avx512) return avx512;
  if ((lanes == 0 || lanes == 8) && has_avx2) return avx2;
#endif
  if (lanes != 0 && lanes != 4) throw std::runtime_error("this CPU lacks the instruction set asked for");
  return portable;
}

}  // namespace nerftrain
