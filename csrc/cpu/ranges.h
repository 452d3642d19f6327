// One range of samples per thread. The split follows the number of threads alone, so results repeat.
#pragma once
#include <torch/csrc/stable/ops.h>

namespace nerftrain {

struct Ranges {
  int64_t num, parts, size;
  explicit Ranges(int64_t n) : num(n) {
    const int64_t threads = torch::stable::get_num_threads();
    parts = n < 1024 ? 1 : threads;
    size = (n + parts - 1) / parts;
  }
  template <class Body>
  void each(const Body& body) const {
    torch::stable::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
      for (int64_t p = first; p < last; ++p) body(p, p * size, (p + 1) * size < num ? (p + 1) * size : num);
    });
  }
};

}  // namespace nerftrain
