// Launches over common/ on the current CUDA stream.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include <stdexcept>

#include "../common/launch.h"

namespace nerftrain {

template <class Body>
__global__ void each_kernel(int64_t n, Body body) {
  const int64_t i = piece_of(blockIdx.x, blockDim.x, threadIdx.x);
  if (i < n) body(i);
}

// The level is the slow index, so that the blocks in flight share a level's table.
template <class Body>
__global__ void each_level_kernel(int64_t n, Body body) {
  const int64_t i = piece_of(blockIdx.x, blockDim.x, threadIdx.x);
  if (i < n) body(i, int(blockIdx.y));
}

struct Cuda {
  static constexpr int kThreads = 256;

  static cudaStream_t stream_of(const torch::stable::Tensor& like) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &stream));
    return static_cast<cudaStream_t>(stream);
  }

  static dim3 grid_of(int64_t n, int num_levels) {
    if (!fits_grid(n, kThreads) || num_levels > kMaxBlocksY) throw std::runtime_error("too large for one CUDA launch");
    return dim3(unsigned(blocks_for(n, kThreads)), unsigned(num_levels));
  }

  template <class Body>
  static void for_each(const torch::stable::Tensor& like, int64_t n, const Body& body) {
    if (n == 0) return;
    torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    each_kernel<<<grid_of(n, 1), kThreads, 0, stream_of(like)>>>(n, body);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  template <class Body>
  static void for_each(const torch::stable::Tensor& like, int64_t n, int num_levels, const Body& body) {
    if (n == 0) return;
    torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    each_level_kernel<<<grid_of(n, num_levels), kThreads, 0, stream_of(like)>>>(n, body);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  // All of it: how much is nobody's only the GPU knows.
  static void clear_rest(const torch::stable::Tensor& packed, const torch::stable::Tensor&) {
    torch::stable::accelerator::DeviceGuard guard(packed.get_device_index());
    const size_t bytes = size_t(packed.numel()) * packed.element_size();
    STD_CUDA_CHECK(cudaMemsetAsync(packed.mutable_data_ptr(), 0, bytes, stream_of(packed)));
  }

  template <class Body>
  static void scatter(const torch::stable::Tensor& like, int64_t n, const Body& body) {
    for_each(like, n, body.levels.num_levels, body);
  }
};

}  // namespace nerftrain
