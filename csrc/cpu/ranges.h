// How work is split among PyTorch's threads.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

namespace nerftrain {

// One range of samples per thread. The split follows the number of threads alone, so results repeat.
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

// How many threads `share` puts to work.
inline int64_t num_workers(int64_t parts) { return std::min<int64_t>(parts, torch::stable::get_num_threads()); }

// Calls body(part, worker) for parts of which none knows how long they take: whichever thread is free takes the next.
// What a part writes may not depend on the worker, of which each is one thread.
template <class Body>
void share(int64_t parts, const Body& body) {
  std::atomic<int64_t> next = 0;
  torch::stable::parallel_for(0, num_workers(parts), 1, [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker)
      for (int64_t part; (part = next.fetch_add(1, std::memory_order_relaxed)) < parts;) body(part, worker);
  });
}

}  // namespace nerftrain
