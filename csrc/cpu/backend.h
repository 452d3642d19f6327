// Loops over common/ on PyTorch's threads, so that torch.set_num_threads holds here too.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

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
