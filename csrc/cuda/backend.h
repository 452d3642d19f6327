// Launches over common/ on the current CUDA stream.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include <stdexcept>
#include <type_traits>
#include <vector>

#include "../common/launch.h"

namespace nerftrain {

template <class Body>
__global__ void each_kernel(int64_t n, Body body) {
  const int64_t i = piece_of(blockIdx.x, blockDim.x, threadIdx.x);
  if (i < n) body(i);
}

// The piece of work of a thread's warp.
__device__ __forceinline__ int64_t piece_of_warp() { return piece_of(blockIdx.x, blockDim.x, threadIdx.x) / 32; }

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

  static dim3 grid_of(int64_t n, int num_levels, int threads = kThreads) {
    if (!fits_grid(n, threads) || num_levels > kMaxBlocksY) throw std::runtime_error("too large for one CUDA launch");
    return dim3(unsigned(blocks_for(n, threads)), unsigned(num_levels));
  }

  static int attribute_of(const torch::stable::Tensor& like, cudaDeviceAttr what) {
    int value = 1;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, what, like.get_device_index()));
    return value;
  }
  static int num_processors(const torch::stable::Tensor& like) {
    return attribute_of(like, cudaDevAttrMultiProcessorCount);
  }
  // Bytes that all blocks on a processor have together.
  static int shared_of_processor(const torch::stable::Tensor& like) {
    return attribute_of(like, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  }
  // Those that a block can ask for.
  static int shared_of_block(const torch::stable::Tensor& like) {
    return attribute_of(like, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  }

  // As many blocks as the device runs at once, `each` to a processor, but no more than there are tiles of the work.
  static dim3 standing_grid(const torch::stable::Tensor& like, int64_t n, int64_t tile, int each) {
    return dim3(unsigned(min_of(blocks_for(n, tile), int64_t(num_processors(like)) * each)));
  }

  // On the device and the current stream of a tensor, with so many bytes of shared memory.
  template <class... P, class... A>
  static void launch(const torch::stable::Tensor& like, void (*kernel)(P...), dim3 grid, int threads, size_t shared,
                     const A&... arguments) {
    torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(unsigned(threads));
    config.dynamicSmemBytes = shared;
    config.stream = stream_of(like);
    // More than 48 KiB have to be asked for: all that there is, or a launch that has more may find that another, from
    // another thread, has just asked for less.
    if (shared > 48 << 10)
      STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_of_block(like)));
    STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
  }

  template <class Body>
  static void for_each(const torch::stable::Tensor& like, int64_t n, const Body& body, int threads = kThreads) {
    if (n) launch(like, each_kernel<Body>, grid_of(n, 1, threads), threads, 0, n, body);
  }

  template <class Body>
  static void for_each(const torch::stable::Tensor& like, int64_t n, int num_levels, const Body& body) {
    if (n) launch(like, each_level_kernel<Body>, grid_of(n, num_levels), kThreads, 0, n, body);
  }

  // A warp for each of n pieces of work: kernel(n, body, more ...).
  template <class Body, class... More>
  static void for_each_warp(const torch::stable::Tensor& like, int64_t n, void (*kernel)(int64_t, Body, More...),
                            const Body& body, const std::type_identity_t<More>&... more) {
    if (n) launch(like, kernel, grid_of(n * 32, 1), kThreads, 0, n, body, more...);
  }

  // Of numbers of four bytes or more, by one launch (visit.cu).
  static void clear_rest(const torch::stable::Tensor& offsets, const std::vector<torch::stable::Tensor>& packed);

  template <class Body>
  static void scatter(const torch::stable::Tensor& like, int64_t n, const Body& body) {
    for_each(like, n, body.levels.num_levels, body);
  }
};

}  // namespace nerftrain
