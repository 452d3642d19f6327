// Loops over common/ on PyTorch's threads, so that torch.set_num_threads holds here too.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <vector>

namespace nerftrain {

// Fewer elements than this are not worth waking another thread for. Bodies that do little have a kGrain of their own:
// finding the next samples to visit took 0.7 ms a call while it woke one for each of its loops, 0.2 ms since.
template <class Body>
constexpr int64_t grain_of(int64_t usual) {
  if constexpr (requires { Body::kGrain; })
    return Body::kGrain;
  else
    return usual;
}

struct Cpu {
  static constexpr int64_t kGrain = 256;

  template <class Body>
  static void for_each(const torch::stable::Tensor&, int64_t n, const Body& body) {
    torch::stable::parallel_for(0, n, grain_of<Body>(kGrain), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(i);
    });
  }

  static void clear_rest(const torch::stable::Tensor& offsets, const std::vector<torch::stable::Tensor>& packed) {
    const int64_t num_rays = offsets.size(0) - 1;
    const int64_t first = num_rays < 0 ? 0 : offsets.const_data_ptr<int64_t>()[num_rays];
    for (const torch::stable::Tensor& tensor : packed) {
      const int64_t num_rows = tensor.size(0);
      if (first >= num_rows) continue;
      const size_t row_bytes = size_t(tensor.numel() / num_rows) * tensor.element_size();
      std::memset(static_cast<char*>(tensor.mutable_data_ptr()) + first * row_bytes, 0, (num_rows - first) * row_bytes);
    }
  }

  // Levels inside blocks of samples: a level's table stays in the cache while a block reads it.
  template <class Body>
  static void for_each(const torch::stable::Tensor&, int64_t n, int num_levels, const Body& body) {
    torch::stable::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; block += 2048) {
        const int64_t stop = block + 2048 < end ? block + 2048 : end;
        for (int level = 0; level < num_levels; ++level)
          for (int64_t i = block; i < stop; ++i) body(i, level);
      }
    });
  }
};

}  // namespace nerftrain
