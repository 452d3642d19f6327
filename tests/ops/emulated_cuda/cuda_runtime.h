// A GPU played by the host: every thread of a block is a fiber, blocks come one after the other. With it the CUDA
// sources compile as C++ and run where there is no GPU, so that what warps hand to each other is tested too.
//
// Full warps alone take part in what they do together, and no thread ends while others of its warp still do.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#ifdef PLAYED_PTX
#include <dlfcn.h>

#include "../timed_ptx.h"
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

struct float2 {
  float x, y;
};
struct uint2 {
  unsigned x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct uint4 {
  unsigned x, y, z, w;
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin
};
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}
// As those of the smallest of the GPUs for which kernels are compiled the same.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
  int major = 8, processors = 2, shared = 100 << 10;
#ifdef PLAYED_PTX
  major = played::target() / 10;
  if (major < 8) shared = 64 << 10;
  if (const int num = played::num_timed()) processors = num, shared = 228 << 10;
#endif
  const int of_block = shared - (major < 8 ? 0 : 1 << 10);
  *value = what == cudaDevAttrComputeCapabilityMajor         ? major
           : what == cudaDevAttrMultiProcessorCount          ? processors
           : what == cudaDevAttrMaxSharedMemoryPerBlockOptin ? of_block
                                                             : shared;
  return cudaSuccess;
}
inline int atomicAdd(int* address, int n) {  // fibers are not interrupted
  const int before = *address;
  *address += n;
  return before;
}

namespace nerftrain {
inline uint32_t dynamic_shared[25600];  // 100 KiB, as much as a block of sm_86 may have
}

namespace emulated {

constexpr int kWarp = 32, kStack = 256 << 10;

struct Group {  // threads that wait for each other
  int alive = 0, arrived = 0;
  int64_t round = 0;
};

struct Fiber {
  ucontext_t start;  // of its first block; from then on it goes on where it was
  jmp_buf place;     // swapcontext would ask the kernel for the mask of signals at every turn
  std::unique_ptr<char[]> stack;
  bool done = false;
  const Group* waits_for = nullptr;
  int64_t round = 0;
};

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Group> warps;
  Group everyone;
  std::vector<std::vector<uint64_t>> handed;  // [warp][32 * 8] what lanes show each other
  jmp_buf scheduler;
  int current = 0;
  std::function<void()> work;
};
inline Machine machine;

inline void pause() {
  if (!_setjmp(machine.fibers[machine.current].place)) _longjmp(machine.scheduler, 1);
}

inline void wait_for(Group& group) {
  Fiber& fiber = machine.fibers[machine.current];
  fiber.round = group.round;
  if (++group.arrived == group.alive) {
    group.arrived = 0;
    ++group.round;
    return;
  }
  fiber.waits_for = &group;
  pause();
}

inline int lane() { return machine.current % kWarp; }
inline void wait_for_warp() { wait_for(machine.warps[machine.current / kWarp]); }

// Shows a value to the warp in a slot of its own; then `read` looks at what lanes have shown.
template <class T, class Read>
auto exchange(const T& value, Read read) {
  static_assert(sizeof(T) <= 8 * sizeof(uint64_t));
  uint64_t* shown = machine.handed[machine.current / kWarp].data();
  std::memcpy(shown + 8 * lane(), &value, sizeof(T));
  wait_for_warp();
  const auto of = [shown](int lane) {
    T other;
    std::memcpy(&other, shown + 8 * lane, sizeof(T));
    return other;
  };
  auto result = read(of);
  wait_for_warp();
  return result;
}

inline void live() {
  for (;; pause()) {  // a block at a time
    machine.work();
    machine.fibers[machine.current].done = true;
    --machine.warps[machine.current / kWarp].alive;
    --machine.everyone.alive;
  }
}

__attribute__((noinline)) inline void resume(Fiber& fiber) {
  if (_setjmp(machine.scheduler)) return;
  if (fiber.stack) _longjmp(fiber.place, 1);
  fiber.stack.reset(new char[kStack]);
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStack;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, live, 0);
  setcontext(&fiber.start);
}

inline void run_block(int num_threads) {
  if (num_threads % kWarp) throw std::runtime_error("emulated CUDA: blocks are of whole warps");
  machine.warps.assign(num_threads / kWarp, Group{kWarp, 0, 0});
  machine.everyone = {num_threads, 0, 0};
  machine.handed.assign(num_threads / kWarp, std::vector<uint64_t>(8 * kWarp));
  if (int(machine.fibers.size()) < num_threads) machine.fibers.resize(num_threads);
  for (Fiber& fiber : machine.fibers) fiber.done = false, fiber.waits_for = nullptr;
  for (int left = num_threads; left;) {
    bool moved = false;
    for (int i = 0; i < num_threads; ++i) {
      Fiber& fiber = machine.fibers[i];
      if (fiber.done || (fiber.waits_for && fiber.waits_for->round == fiber.round)) continue;
      fiber.waits_for = nullptr;
      machine.current = i;
      threadIdx = dim3(unsigned(i), 0, 0);
      resume(fiber);
      left -= fiber.done;
      moved = true;
    }
    if (moved) continue;
    machine.fibers.clear();
    throw std::runtime_error("emulated CUDA: threads wait for each other for ever");
  }
}

// D = A B + C of 16 x 8 numbers over 16: PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type".
template <class ToFloat>
void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], ToFloat to_float) {
  struct Operands {
    uint32_t a[4], b[2];
  } own{};
  std::memcpy(own.a, a, sizeof(own.a));
  std::memcpy(own.b, b, sizeof(own.b));
  exchange(own, [&](auto of) {
    const int group = lane() / 4, place = lane() % 4;
    for (int i = 0; i < 4; ++i) {
      const int column = 2 * place + i % 2;
      for (int k = 0; k < 16; k += 2) {
        const uint32_t word_a = of(group * 4 + k % 8 / 2).a[i / 2 + k / 8 * 2];
        const uint32_t word_b = of(column * 4 + k % 8 / 2).b[k / 8];
        c[i] += to_float(uint16_t(word_a)) * to_float(uint16_t(word_b));
        c[i] += to_float(uint16_t(word_a >> 16)) * to_float(uint16_t(word_b >> 16));
      }
    }
    return 0;
  });
}

// PTX ISA, "ldmatrix": of matrix m a lane gets the pair of numbers of row lane / 4 at lane % 4, or of the transpose's.
template <bool kTransposed, int kNum>
void load_matrices(uint32_t (&words)[kNum], const uint32_t* row) {
  exchange(row, [&](auto of) {
    const int group = lane() / 4, place = lane() % 4;
    for (int m = 0; m < kNum; ++m) {
      if (!kTransposed) {
        words[m] = of(8 * m + group)[place];
        continue;
      }
      const auto number = [&](int i) { return of(8 * m + i)[group / 2] >> 16 * (group % 2) & 0xffffu; };
      words[m] = number(2 * place) | number(2 * place + 1) << 16;
    }
    return 0;
  });
}

}  // namespace emulated

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

#ifdef PLAYED_PTX
// As the compiler has made it, which is found by its name.
template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... arguments) {
  Dl_info info{};
  if (!dladdr(reinterpret_cast<void*>(kernel), &info) || !info.dli_sname) played::fail("a kernel without a name");
  const auto place = played::kernels().find(info.dli_sname);
  if (place == played::kernels().end()) played::fail(std::string("no PTX of ") + info.dli_sname);
  std::vector<uint8_t> parameters(place->second.parameter_bytes);
  size_t end = 0;
  const auto add = [&]<class T>(const T& argument) {
    const size_t offset = (end + alignof(T) - 1) / alignof(T) * alignof(T);
    end = offset + sizeof(T);
    if (end > parameters.size()) played::fail(std::string("other parameters than those of ") + info.dli_sname);
    std::memcpy(parameters.data() + offset, &argument, sizeof(T));
  };
  (add(static_cast<P>(arguments)), ...);
  const dim3 &grid = config->gridDim, &block = config->blockDim;
  int most = 0;
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
  if (config->dynamicSmemBytes > size_t(most))
    played::fail(std::string("too much shared memory for ") + info.dli_sname);
  played::launch(place->second, {grid.x, grid.y, block.x, config->dynamicSmemBytes}, parameters.data());
  return cudaSuccess;
}
#else
template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... arguments) {
  using emulated::machine;
  if (config->dynamicSmemBytes > sizeof(nerftrain::dynamic_shared))
    throw std::runtime_error("emulated CUDA: too much shared memory");
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  machine.work = [&] { kernel(arguments...); };
  for (unsigned y = 0; y < gridDim.y; ++y)
    for (unsigned x = 0; x < gridDim.x; ++x) {
      blockIdx = dim3(x, y, 0);
      std::memset(nerftrain::dynamic_shared, 0x7f, config->dynamicSmemBytes);  // nobody may count on zeros
      emulated::run_block(int(blockDim.x));
    }
  return cudaSuccess;
}

#endif

inline void __syncthreads() { emulated::wait_for(emulated::machine.everyone); }
inline void __syncwarp(unsigned = ~0u) { emulated::wait_for_warp(); }

template <class T>
T __shfl_sync(unsigned, T value, int from) {
  return emulated::exchange(value, [&](auto of) { return of(from & 31); });
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return emulated::exchange(value, [&](auto of) { return of(emulated::lane() ^ mask); });
}
template <class T>
T __shfl_up_sync(unsigned, T value, int by) {
  return emulated::exchange(
      value, [&](auto of) { return of(emulated::lane() >= by ? emulated::lane() - by : emulated::lane()); });
}
template <class T>
T __shfl_down_sync(unsigned, T value, int by) {
  return emulated::exchange(
      value, [&](auto of) { return of(emulated::lane() + by < 32 ? emulated::lane() + by : emulated::lane()); });
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  return emulated::exchange(int(predicate != 0), [](auto of) {
    unsigned bits = 0;
    for (int i = 0; i < 32; ++i) bits |= unsigned(of(i)) << i;
    return bits;
  });
}
template <class T, class Of>
T reduced(T value, Of each) {
  return emulated::exchange(value, [&](auto of) {
    T all = of(0);
    for (int i = 1; i < 32; ++i) all = each(all, of(i));
    return all;
  });
}
inline unsigned __reduce_or_sync(unsigned, unsigned value) { return reduced(value, std::bit_or<unsigned>()); }
inline int __reduce_min_sync(unsigned, int value) {
  return reduced(value, [](int a, int b) { return std::min(a, b); });
}
inline int __reduce_max_sync(unsigned, int value) {
  return reduced(value, [](int a, int b) { return std::max(a, b); });
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __sinf(float x) { return std::sin(x); }
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __clz(int bits) { return std::countl_zero(unsigned(bits)); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
template <class T>
void __stcg(T* address, T value) {
  *address = value;
}
template <class T>
T __ldg(const T* address) {
  return *address;
}
