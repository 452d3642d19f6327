// Selection with a warp for each ray: lanes take neighbouring samples, 32 at a time.
#include "../operators/visit.h"
#include "backend.h"
#include "rest.h"
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
__global__ void select_pick_kernel(int64_t num_rays, SelectPick<T> body, ClearRest rest) {
  rest.clear_by_grid();
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

struct ClearRestAlone {
  ClearRest rest;
  int64_t num_threads;

  NT_HD void operator()(int64_t thread) const { rest.clear(thread, num_threads); }
};

void Cuda::clear_rest(const Tensor& offsets, const std::vector<Tensor>& packed) {
  const ClearRest rest(offsets, packed);
  const int64_t num_threads = min_of(rest.most_words(), int64_t(1) << 15);
  for_each(offsets, num_threads, ClearRestAlone{rest, num_threads});
}

struct CudaVisit : Cuda {
  using Cuda::for_each;

  static void for_each(const torch::stable::Tensor& like, int64_t n, const SelectCount& body) {
    for_each_warp(like, n, select_count_kernel, body);
  }
  template <class T>
  static void for_each(const torch::stable::Tensor& like, int64_t n, const SelectPick<T>& body) {
    for_each_warp(like, n, select_pick_kernel<T>, body, ClearRest());
  }
  template <class T>
  static void for_each_ray(const Tensor& like, const Tensor& offsets, const std::vector<Tensor>& packed,
                           const SelectPick<T>& body) {
    const int64_t n = offsets.size(0) - 1;
    if (n == 0) return clear_rest(offsets, packed);
    for_each_warp(like, n, select_pick_kernel<T>, body, ClearRest(offsets, packed));
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
