// Kernels of which all but the first do what a GPU does not forgive; the first argument says which of them runs. What
// it is to find is the sum of 0 ... 31 less a millionth, rounded down.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace nerftrain {
extern __shared__ uint32_t dynamic_shared[];
}

enum Fault {
  kNone,
  kRace,
  kLateWrite,
  kBeyond,
  kUnaligned,
  kAbsent,
  kEnded,
  kEarlyRead,
  kWideRead,
  kReadTwice,
  kBeyondTensor,
  kReadOnly,
  kGlobalRace,
  kOtherBlock,
  kEarlyTotal
};

// By two blocks: `out` has a row of 32 for each, `given` zeros.
__global__ void faulty_kernel(int fault, const float* given, float* out, float* total) {
  float* numbers = reinterpret_cast<float*>(nerftrain::dynamic_shared);
  const int lane = int(threadIdx.x);
  int* count = reinterpret_cast<int*>(numbers + 32);
  numbers[lane] = float(lane);
  if (lane == 0) *count = 0;
  if (fault != kRace) __syncwarp();
  float sum = numbers[(lane + 1) % 32];
  if (fault == kReadTwice) sum += numbers[lane];
  if (fault == kLateWrite || fault == kReadTwice) numbers[lane] = 0;
  if (fault == kWideRead) {
    __syncwarp();
    if (lane == 7) numbers[lane] = 0;
    const float4 four = reinterpret_cast<float4*>(numbers)[1];
    sum += four.x + four.y + four.z + four.w;
  }
  if (fault == kBeyond) sum += numbers[lane + 33];
  if (fault == kUnaligned) sum += *reinterpret_cast<float*>(reinterpret_cast<char*>(out) + 2);
  if (fault == kAbsent && lane < 31) sum += __shfl_sync(0x7fffffffu, sum, 31);
  atomicAdd(count, 1);
  if (fault != kEarlyRead) __syncwarp();
  sum += float(*count - 32);
  if (fault == kEnded && lane == 0) return;
  for (int step = 1; step < 32; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
#if defined(__CUDACC__)
  sum = __fadd_rd(sum, -1e-6f);  // which only a GPU's compiler sees
  atomicAdd(total, sum);
#endif
  out += 32 * blockIdx.x;
  out[lane] = sum + given[lane + (fault == kBeyondTensor ? 1 : 0)];
  if (fault == kReadOnly) const_cast<float*>(given)[lane] = 0;
  if (fault == kGlobalRace) out[lane] = out[(lane + 1) % 32];
  if (fault == kOtherBlock && blockIdx.x == 1) out[lane - 32] = sum;
  if (fault == kEarlyTotal) out[lane] = *total;
}

#if !defined(__CUDACC__)
int main(int, char** arguments) {
  static float given[32], out[64], total;
  played::tensors().add(given, sizeof(given), false);
  played::tensors().add(out, sizeof(out), true);
  played::tensors().add(&total, sizeof(total), true);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(2);
  config.blockDim = dim3(32);
  config.dynamicSmemBytes = 33 * sizeof(float);
  cudaLaunchKernelEx(&config, faulty_kernel, std::atoi(arguments[1]), static_cast<const float*>(given),
                     static_cast<float*>(out), &total);
  for (const float number : out) std::printf("%.9g ", number);
}
#endif
