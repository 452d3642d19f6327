// Which instruction set serves: the best that the CPU has, or the one that is asked for.
//
// An instruction set goes by how many numbers one operand of its products holds: 4 (whatever the compiler's default
// target has), 8 (AVX2), 16 (AVX-512), 32 (AVX-512 with bfloat16), and 64 stands for AMX.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <stdexcept>

#include "x86.h"
#ifdef NT_X86
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace nerftrain {

bool amx_computes();  // ngp.h

// Whether the CPU has AMX for bfloat16 and the system lends its registers to this process.
inline bool has_amx() {
#if defined(NT_X86) && defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  const unsigned bf16 = 1u << 22, tiles = 1u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (bf16 | tiles)) != (bf16 | tiles)) return false;
  constexpr long kAskForPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kAskForPermission, kTileData) == 0 && amx_computes();
#else
  return false;
#endif
}

inline bool cpu_has(int64_t lanes) {
#ifdef NT_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  if (lanes == 8) return avx2;
  if (lanes == 16) return avx512;
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  if (lanes == 32) return bf16;
  if (lanes == 64) {
    static const bool amx = bf16 && has_amx();
    return amx;
  }
#endif
  return lanes == 4;
}

inline int64_t most_lanes() {
  static const int64_t most = cpu_has(64) ? 64 : cpu_has(32) ? 32 : cpu_has(16) ? 16 : cpu_has(8) ? 8 : 4;
  return most;
}

// What a call gets that asks for no instruction set; 0: the most there is. NERFTRAIN_LANES in the environment sets it,
// so that every path can be tested.
inline int64_t& default_lanes() {
  static int64_t lanes = [] {
    const char* text = std::getenv("NERFTRAIN_LANES");
    return text ? std::atoll(text) : 0;
  }();
  return lanes;
}

// Resolves a call's wish, 0 for the default.
inline int64_t lanes_for(int64_t lanes) {
  if (lanes == 0) lanes = default_lanes();
  if (lanes == 0) return most_lanes();
  if (!cpu_has(lanes)) throw std::runtime_error("this CPU lacks the instruction set asked for");
  return lanes;
}

template <class Kernels>
const Kernels& kernels_for(int64_t lanes, const Kernels& portable, const Kernels& avx2, const Kernels& avx512) {
  lanes = lanes_for(lanes);
  return lanes >= 16 ? avx512 : lanes == 8 ? avx2 : portable;
}

// The same for what products of bfloat16 numbers serve.
template <class Kernels>
const Kernels& kernels_for(int64_t lanes, const Kernels& portable, const Kernels& avx2, const Kernels& avx512,
                           const Kernels& avx512bf16, const Kernels& amx) {
  lanes = lanes_for(lanes);
  if (lanes >= 32) return lanes == 64 ? amx : avx512bf16;
  return kernels_for(lanes, portable, avx2, avx512);
}

}  // namespace nerftrain
