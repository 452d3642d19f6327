// Kernels of which it is known how long a processor takes; the first argument says which of them runs, by one warp. A
// line of what was counted is printed.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

enum What { kChain, kFourChains, kLoadsInTurn, kLoadsAtOnce, kSharedConflicts };

namespace nerftrain {
extern __shared__ uint32_t dynamic_shared[];
}

__global__ void timed_kernel(int what, const int* next, float* out) {
  const int lane = int(threadIdx.x);
  float sums[4] = {float(lane), 1, 2, 3};
  if (what == kChain) {
#pragma unroll
    for (int i = 0; i < 256; ++i) sums[0] = sums[0] * sums[1] + sums[2];
  } else if (what == kFourChains) {
#pragma unroll
    for (int i = 0; i < 256; ++i) sums[i % 4] = sums[i % 4] * 1.5f + 0.25f;
  } else if (what == kLoadsInTurn) {
    int at = lane;
#pragma unroll
    for (int i = 0; i < 8; ++i) at = next[at];
    sums[0] = float(at);
  } else if (what == kLoadsAtOnce) {
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[0] += float(next[lane + 1024 * i]);
  } else {
    nerftrain::dynamic_shared[lane] = uint32_t(lane);
#pragma unroll
    for (int i = 0; i < 64; ++i) nerftrain::dynamic_shared[32 * lane + 32 * 32 * (1 + i % 32) + i / 32] = uint32_t(i);
  }
  out[lane] = sums[0] + sums[1] + sums[2] + sums[3];
}

#if !defined(__CUDACC__)
int main(int, char** arguments) {
  float out[32];
  std::vector<int> next(1 << 14);
  for (size_t i = 0; i < next.size(); ++i) next[i] = int((i + 1024) % next.size());
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(32);
  config.dynamicSmemBytes = 33 * 32 * 32 * sizeof(uint32_t);
  time_on_processors(1);
  cudaLaunchKernelEx(&config, timed_kernel, std::atoi(arguments[1]), static_cast<const int*>(next.data()),
                     static_cast<float*>(out));
  std::fputs(played_counts(), stdout);
}
#endif
