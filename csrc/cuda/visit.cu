// Selection with a warp for each ray: lanes take neighbouring samples, 32 at a time.
#include "../operators/visit.h"
#include "backend.h"
#include "warp.h"

namespace nerftrain {

__global__ void select_count_kernel(int64_t num_rays, SelectCount body) {
  const int64_t r = piece_of_warp();
  if (r >= num_rays) return;
  const int lane = lane_of_warp();
  const int64_t last = body.offsets[r + 1];
  int64_t count = 0;
  for (int64_t base = body.offsets[r]; base < last; base += kWarp) {
    const int64_t i = base + lane;
    count += __popc(__ballot_sync(kAll, i < last && body.keep[i]));
  }
  if (lane == 0) body.counts[r] = count;
}

template <class T>
__global__ void select_pick_kernel(int64_t num_rays, SelectPick<T> body) {
  const int64_t r = piece_of_warp();
  if (r >= num_rays) return;
  const int lane = lane_of_warp();
  const int64_t last = body.offsets[r + 1], end = body.kept_offsets[r + 1];
  int64_t to = body.kept_offsets[r] + (body.before ? body.before[r] : 0);
  for (int64_t base = body.offsets[r]; base < last && to < end; base += kWarp) {
    const int64_t i = base + lane;
    const bool keep = i < last && body.keep[i];
    const unsigned kept = __ballot_sync(kAll, keep);
    const int64_t place = to + __popc(kept & ((1u << lane) - 1));
    if (keep && place < end) {
      body.kept_starts[place] = body.t_starts[i];
      body.kept_ends[place] = body.t_ends[i];
      body.kept_rays[place] = r;
      body.kept_rows[place] = body.first_row + i;
    }
    to += __popc(kept);
  }
}

// Zeros from a row on that only the GPU knows: most often there are few.
struct ClearRest {
  struct Packed {
    uint32_t* words;
    int64_t row_words, num_words;
  };
  static constexpr int kMost = 4;
  const int64_t* first;  // [1]
  Packed packed[kMost];  // those that are not have no words
  int64_t num_threads;

  NT_HD void operator()(int64_t thread) const {
#pragma unroll
    for (int k = 0; k < kMost; ++k)
      for (int64_t i = *first * packed[k].row_words + thread; i < packed[k].num_words; i += num_threads)
        packed[k].words[i] = 0;
  }
};

void Cuda::clear_rest(const Tensor& offsets, const std::vector<Tensor>& packed) {
  if (packed.size() > size_t(ClearRest::kMost)) throw std::runtime_error("clear_rest: too many tensors");
  ClearRest body{read<int64_t>(offsets) + offsets.size(0) - 1, {}, 0};
  for (size_t k = 0; k < packed.size(); ++k) {
    const int64_t words = packed[k].numel() * int64_t(packed[k].element_size() / sizeof(uint32_t));
    if (words == 0) continue;
    body.packed[k] = {static_cast<uint32_t*>(packed[k].mutable_data_ptr()), words / packed[k].size(0), words};
    body.num_threads = max_of(body.num_threads, min_of(words, int64_t(1) << 15));
  }
  for_each(offsets, body.num_threads, body);
}

struct CudaVisit : Cuda {
  using Cuda::for_each;

  static void for_each(const torch::stable::Tensor& like, int64_t n, const SelectCount& body) {
    for_each_warp(like, n, select_count_kernel, body);
  }
  template <class T>
  static void for_each(const torch::stable::Tensor& like, int64_t n, const SelectPick<T>& body) {
    for_each_warp(like, n, select_pick_kernel<T>, body);
  }
};

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("visit_count", TORCH_BOX(&nerftrain::visit_count<nerftrain::Cuda>));
  m.impl("visit_pick", TORCH_BOX(&nerftrain::visit_pick<nerftrain::Cuda>));
  m.impl("visit_take_", TORCH_BOX(&nerftrain::visit_take_<nerftrain::Cuda>));
  m.impl("gather_rows", TORCH_BOX(&nerftrain::gather_rows<nerftrain::Cuda>));
  m.impl("fit", TORCH_BOX(&nerftrain::fit<nerftrain::Cuda>));
  m.impl("select_count", TORCH_BOX(&nerftrain::select_count<nerftrain::CudaVisit>));
  m.impl("select_pick", TORCH_BOX(&nerftrain::select_pick<nerftrain::CudaVisit>));
  m.impl("select_more_", TORCH_BOX(&nerftrain::select_more<nerftrain::CudaVisit>));
}
