// Zeros from a row on that only the GPU knows: what is packed there is nobody's. Most often there is little of it.
#pragma once
#include <stdexcept>
#include <vector>

#include "../common/launch.h"
#include "../operators/tensors.h"

namespace nerftrain {

struct ClearRest {
  struct Packed {
    uint32_t* words;
    int64_t row_words, num_words;
  };
  static constexpr int kMost = 4;
  const int64_t* first;  // [1] the row
  Packed packed[kMost];  // those that are not have no words

  // Nothing.
  ClearRest() : first(nullptr), packed{} {}

  // Of numbers of four bytes or more; the row is offsets[R].
  ClearRest(const Tensor& offsets, const std::vector<Tensor>& all)
      : first(read<int64_t>(offsets) + offsets.size(0) - 1), packed{} {
    if (all.size() > size_t(kMost)) throw std::runtime_error("clear_rest: too many tensors");
    for (size_t k = 0; k < all.size(); ++k) {
      if (all[k].element_size() % sizeof(uint32_t)) throw std::runtime_error("clear_rest: of numbers of four bytes");
      const int64_t words = all[k].numel() * int64_t(all[k].element_size() / sizeof(uint32_t));
      if (words) packed[k] = {static_cast<uint32_t*>(all[k].mutable_data_ptr()), words / all[k].size(0), words};
    }
  }

  int64_t most_words() const {
    int64_t most = 0;
    for (const Packed& each : packed) most = max_of(most, each.num_words);
    return most;
  }

  // The share of one of so many threads.
  NT_HD void clear(int64_t thread, int64_t num_threads) const {
#pragma unroll
    for (int k = 0; first && k < kMost; ++k)
      for (int64_t i = *first * packed[k].row_words + thread; i < packed[k].num_words; i += num_threads)
        packed[k].words[i] = 0;
  }

  // That of a thread of a launch.
  __device__ __forceinline__ void clear_by_grid() const {
    clear(piece_of(blockIdx.x, blockDim.x, threadIdx.x), int64_t(gridDim.x) * blockDim.x);
  }
};

}  // namespace nerftrain
