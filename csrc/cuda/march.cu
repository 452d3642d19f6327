// What is made of marches: samples in their rows, and which of them are seen.
#include "../common/box_march.h"
#include "../operators/march.h"
#include "backend.h"
#include "rest.h"
#include "staged.h"
#include "warp.h"

namespace nerftrain {

struct MarchFill {
  MarchSettings settings;
  int64_t num_rays;
  const float* near;    // [R]
  const float* jitter;  // [R]
  const int64_t* runs;  // [R][most]
  const int32_t* nums;  // [R]
  int64_t most;
  const int64_t* offsets;  // [R + 1]; a ray without room has none
  float* t_starts;         // [N]
  float* t_ends;           // [N]
  int64_t* ray_indices;    // [N]
  ClearRest rest;          // of the three
};

// A run of a warp's, as what the rows of its samples need.
struct alignas(16) RunOfRows {
  int to_step;  // what a row of the warp's lacks to the step of its sample
  float near, jitter;
  int ray;  // among those of the warp
};

constexpr int kFillWarps = 4;    // of a block: few, so that the last ones of a launch are short
constexpr int kFillEnough = 16;  // of a processor

// A warp for some neighbouring rays, whose samples lie one behind the other. Lanes read a run each; then they write row
// by row, side by side, and tell by the rows at which runs begin which of them is theirs.
template <class Steps>
__global__ void march_fill_kernel(int64_t num_rays, MarchFill body, Steps steps, int rays_of_warp) {
  body.rest.clear_by_grid();
  const int64_t first_ray = piece_of_warp() * rays_of_warp;
  if (first_ray >= num_rays) return;
  const int lane = lane_of_warp();
  RunOfRows* runs = reinterpret_cast<RunOfRows*>(dynamic_shared) + int(threadIdx.x) / kWarp * kWarp;
  const int64_t r = min_of(first_ray + min_of(lane, rays_of_warp - 1), num_rays - 1);
  const bool there = lane < rays_of_warp && first_ray + lane < num_rays;
  const float near = body.near[r], jitter = body.jitter[r];
  const int64_t first_row = body.offsets[first_ray];
  const int row = int(body.offsets[r] - first_row), end = int(body.offsets[r + 1] - first_row);
  const int num = there && end > row ? body.nums[r] : 0;
  const int upto = sum_before(num) + num, total = __shfl_sync(kAll, upto, kWarp - 1);
  for (int base = 0; base < total; base += kWarp) {
    const int run = base + lane;
    int ray = 0;  // how many rays have all of theirs before this run
    for (int step = kWarp / 2; step > 0; step /= 2)
      if (__shfl_sync(kAll, upto, ray + step - 1) <= run) ray += step;
    const bool is_run = run < total;
    const int its_upto = __shfl_sync(kAll, upto, ray), its_num = __shfl_sync(kAll, num, ray);
    const int its_row = __shfl_sync(kAll, row, ray), its_end = __shfl_sync(kAll, end, ray);
    const int64_t* words = body.runs + (first_ray + ray) * body.most + (run - (its_upto - its_num));
    const int64_t word = is_run ? *words : 0;
    const int begins = its_row + int(word);
    const bool is_last = lane == kWarp - 1 || run + 1 == total;
    const int ends = is_run && is_last && run + 1 < its_upto ? its_row + int(words[1]) : its_end;
    runs[lane] = {int(word >> 32) - begins, __shfl_sync(kAll, near, ray), __shfl_sync(kAll, jitter, ray), ray};
    __syncwarp();
    const int to = __shfl_sync(kAll, ends, min_of(kWarp - 1, total - 1 - base));
    int begun = -1;
    const int first = __shfl_sync(kAll, begins, 0);
    // From a row on at which a line of memory begins, so that what lanes write side by side lies in as few as can be.
    for (int from = first - (int(first_row) + first & kWarp - 1); from < to; from += kWarp) {
      const unsigned offset = unsigned(begins - from);
      const unsigned marks = any_of_warp(is_run && offset < kWarp ? 1u << offset : 0);
      const int i = from + lane, of_run = begun + __popc(marks & (2u << lane) - 1);
      begun += __popc(marks);
      if (i >= first && i < to) {
        const RunOfRows its = runs[of_run];
        const auto on = steps.of(its.near, its.jitter, body.settings);
        const float k = float(i + its.to_step);
        body.t_starts[first_row + i] = steps.start(on, k);
        body.t_ends[first_row + i] = steps.start(on, k + 1.f);
        body.ray_indices[first_row + i] = first_ray + its.ray;
      }
    }
    __syncwarp();
  }
}

std::tuple<Tensor, Tensor, Tensor> march_fill(const Tensor& near, const Tensor& jitter, const Tensor& runs,
                                              const Tensor& nums, double step, double cone_angle, int64_t max_steps,
                                              const Tensor& offsets, int64_t num_samples) {
  Tensor t_starts = make(near, {num_samples}), t_ends = make(near, {num_samples});
  Tensor ray_indices = make(offsets, {num_samples});
  const MarchFill body{{float(step), float(cone_angle), int(max_steps), 0},
                       near.size(0),
                       read<float>(near),
                       read<float>(jitter),
                       read<int64_t>(runs),
                       read<int32_t>(nums),
                       runs.size(1),
                       read<int64_t>(offsets),
                       write<float>(t_starts),
                       write<float>(t_ends),
                       write<int64_t>(ray_indices),
                       ClearRest(offsets, {t_starts, t_ends, ray_indices})};
  const int64_t num_rays = near.size(0), enough = int64_t(Cuda::num_processors(near)) * kFillEnough;
  int rays_of_warp = kWarp;
  while (num_rays / rays_of_warp < enough && rays_of_warp > 4) rays_of_warp /= 2;
  const auto launch = [&](auto steps, auto kernel) {
    constexpr int kThreads = kFillWarps * kWarp;
    const int64_t num_warps = max_of(blocks_for(num_rays, rays_of_warp), int64_t(1));  // no rays leave a rest, too
    Cuda::launch(near, kernel, Cuda::grid_of(num_warps * kWarp, 1, kThreads), kThreads, kThreads * sizeof(RunOfRows),
                 num_rays, body, steps, rays_of_warp);
  };
  if (cone_angle > 0)
    launch(GrowingSteps(body.settings), march_fill_kernel<GrowingSteps>);
  else
    launch(EvenSteps(body.settings), march_fill_kernel<EvenSteps>);
  return {t_starts, t_ends, ray_indices};
}

// Behind the rays' samples nothing is seen. Flags are bytes, and rest.h clears words.
struct UnseenRest {
  const int64_t* first;  // [1] the sample
  int64_t num;
  bool* visible;

  UnseenRest(const Tensor& offsets, const Tensor& flags)
      : first(read<int64_t>(offsets) + offsets.size(0) - 1), num(flags.numel()), visible(write<bool>(flags)) {}
  __device__ __forceinline__ void clear(int64_t thread, int64_t num_threads) const {
    for (int64_t i = *first + thread; i < num; i += num_threads) visible[i] = false;
  }
  // As a body of its own, where rays go one by one.
  __device__ void operator()(int64_t i) const { visible[i] = i < *first && visible[i]; }
};

constexpr int kPassedAtOnce = 4;  // samples of a ray

// Light is multiplied in the order of the samples, so that the same ones are seen as on a CPU. Float64 goes ray by ray.
__global__ void __launch_bounds__(kStagedThreads)
    visible_samples_kernel(int64_t num_rays, int rays_of_warp, VisibleSamples<float> body, UnseenRest rest) {
  rest.clear(piece_of(blockIdx.x, blockDim.x, threadIdx.x), int64_t(gridDim.x) * blockDim.x);
  const RaysOfWarp rays(num_rays, rays_of_warp, body.offsets);
  float* kept = staged_numbers();  // of the light; less than none of it where the sample is seen
  const auto at = body.thresholds();
  float light = rays.there ? body.arriving_at(rays.ray) : 0;
  for (int64_t base = rays.begin; base < rays.end; base += kStaged) {
    const StagedPart part(rays, base);
    side_by_side(part.num, [&](int place) {
      const int64_t i = base + place;
      kept[place] = exp_of(-body.density[i] * (body.t_ends[i] - body.t_starts[i]));
    });
    __syncwarp();
    for (int place = part.from; place < part.to && !(light < body.early_stop_eps); place += kPassedAtOnce) {
      float of_each[kPassedAtOnce];
#pragma unroll
      for (int i = 0; i < kPassedAtOnce; ++i) of_each[i] = place + i < part.to ? kept[place + i] : 1;
#pragma unroll
      for (int i = 0; i < kPassedAtOnce; ++i)
        if (body.pass(of_each[i], at, light) & (place + i < part.to)) kept[place + i] = -1;
    }
    __syncwarp();
    side_by_side(part.num, [&](int place) { body.visible[base + place] = kept[place] < 0; });
    __syncwarp();
  }
  if (rays.there) body.leaving[rays.ray] = light;
}

struct CudaMarch : Cuda {
  static void for_each_ray(const Tensor& like, const Tensor& offsets, const std::vector<Tensor>& flags,
                           const VisibleSamples<float>& body) {
    for_each_ray_warp(like, offsets.size(0) - 1, kStaged, kStagedWarps, kStaged * sizeof(float), visible_samples_kernel,
                      body, UnseenRest(offsets, flags[0]));
  }
  static void for_each_ray(const Tensor& like, const Tensor& offsets, const std::vector<Tensor>& flags,
                           const VisibleSamples<double>& body) {
    for_each(like, offsets.size(0) - 1, body);
    for_each(like, flags[0].numel(), UnseenRest(offsets, flags[0]));
  }
};

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("pack_grid", TORCH_BOX(&nerftrain::pack_grid<nerftrain::Cuda>));
  m.impl("slice_grid", TORCH_BOX(&nerftrain::slice_grid<nerftrain::Cuda>));
  m.impl("visible_cells", TORCH_BOX(&nerftrain::visible_cells<nerftrain::Cuda>));
  m.impl("march_count", TORCH_BOX(&nerftrain::march_count<nerftrain::Cuda>));
  m.impl("march_write", TORCH_BOX(&nerftrain::march_write<nerftrain::Cuda>));
  m.impl("march_fill", TORCH_BOX(&nerftrain::march_fill));
  m.impl("visible_samples", TORCH_BOX(&nerftrain::visible_samples<nerftrain::CudaMarch>));
  m.impl("alpha_shares", TORCH_BOX(&nerftrain::alpha_shares<nerftrain::Cuda>));
}
