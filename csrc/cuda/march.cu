// Marching with a thread for each ray, which keeps what it finds as runs of steps: so rays are marched once, though
// where their samples go follows from how many there are.
#include "../common/box_march.h"
#include "../operators/march.h"
#include "backend.h"
#include "staged.h"
#include "warp.h"

namespace nerftrain {

// What a ray has found: runs of steps that are samples. Of each the first step is in the upper 32 bits, and in the
// lower how many samples its ray has before it.
struct RunsOfRay {
  int64_t* runs = nullptr;
  int num = 0;
  int end = -1;   // the step behind the last run
  int count = 0;  // samples

  // Of n steps from k on, behind all before them.
  __device__ __forceinline__ void add(int k, int n) {
    if (k != end) runs[num++] = int64_t(uint64_t(uint32_t(k)) << 32 | uint32_t(count));
    end = k + n;
    count += n;
  }
};

// As many runs as a ray can have, or more: there is another cell between two of them, or what is outside of all boxes.
// A ray is once in each cell of a box, but for those that another box cuts in two.
int64_t most_runs(const OccupancyGrid& g, const MarchSettings& m) {
  const int64_t of_box = g.resolution[0] + g.resolution[1] + g.resolution[2];
  const int64_t pieces = min_of(int64_t(m.max_steps), g.num_levels * (of_box + g.num_levels + 1));
  return max_of(min_of(pieces / 2 + 1, int64_t(m.max_samples)), int64_t(1));
}

struct MarchRuns {
  MarchRays rays;
  int64_t most;          // runs of a ray
  int64_t* counts;       // [R] samples
  float* ends;           // [R]
  int64_t* runs;         // [R][most]
  int32_t* nums;         // [R] runs
  const int32_t* begin;  // [R] the step to begin at; null: the first
  int32_t* reached;      // [R] the step to go on at after so many samples as there may be; else max_steps

  __device__ __forceinline__ int first_step(int64_t r) const { return begin ? begin[r] : 0; }
  __device__ __forceinline__ RunsOfRay none_yet(int64_t r) const { return {runs + r * most}; }
  __device__ __forceinline__ void tell(int64_t r, const RunsOfRay& found, int next, float end) const {
    counts[r] = found.count;
    ends[r] = end;
    nums[r] = found.num;
    reached[r] = found.count == rays.settings.max_samples ? next : rays.settings.max_steps;
  }

  // Through any boxes by steps of any kind.
  __device__ __forceinline__ void operator()(int64_t r) const {
    const OccupancyGrid& g = rays.grid;
    const MarchSettings& m = rays.settings;
    const float near = rays.near[r], far = rays.far[r];
    float o[3], d[3];
    for (int a = 0; a < 3; ++a) {
      o[a] = rays.origins[3 * r + a];
      d[a] = rays.directions[3 * r + a];
    }
    const Line line(o, d);
    float t0 = near, t1 = far, end = near;
    RunsOfRay found = none_yet(r);
    int next = m.max_steps;
    if (near < far && line.clip(g, t0, t1)) {
      const Lattice steps(near, rays.jitter[r], m);
      const int first = max_of(steps.first_after(t0, 0, m.max_steps), first_step(r));
      next = march_runs(g, rays.bits(r), m, line, steps, first, t1, far, [&](int k, int n) {
               if (k == found.end || found.num < most) found.add(k, n);
             }).next;
      end = steps.start(next);
    }
    tell(r, found, next, end);
  }
};

constexpr int kRays = 64;         // of a block: rays are few for a GPU, and take unlike times
constexpr int kBoxThreads = 128;  // of one whose rays go through boxes within each other
// Of all thresholds and steps of four, those by which a march issues the fewest instructions (tests/ops/played_ptx.h).
constexpr int kFewGoing = 28;    // lanes: no more of a warp go on before others take new rays
constexpr int kFewInBox = 16;    // the same where rays go from box to box
constexpr int kLooksAtOnce = 4;  // before the warp counts them again
constexpr int kMarchWarps = 16;  // of a processor, when they take so many rays one after the other
constexpr int kMostRays = 256;   // of a warp

constexpr int kMostGroups = 4096;  // that a block looks through for where its rays need not go

__device__ __forceinline__ OccupiedBlocks over_warp(const OccupiedBlocks& of_lane) {
  OccupiedBlocks all;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    all.low[a] = least_of_warp(of_lane.low[a]);
    all.high[a] = greatest_of_warp(of_lane.high[a]);
  }
  return all;
}

// Where the blocks are that any ray may meet. All threads of a block look for them.
__device__ __forceinline__ OccupiedBlocks occupied_blocks(const MarchRays& rays) {
  const OccupancyGrid& g = rays.grid;
  const int n = g.side >> 4, num = n * n * n;
  if (rays.slices || num > kMostGroups) return OccupiedBlocks::all(g);
  OccupiedBlocks found = OccupiedBlocks::none();
  int i = int(threadIdx.x), x = i / (n * n), y = i / n % n, z = i % n;
  const int by_x = kBoxThreads / (n * n), by_y = kBoxThreads / n % n, by_z = kBoxThreads % n;
#pragma unroll 4
  for (; i < num; i += kBoxThreads) {
    found.add(g.bits.blocks[i], x, y, z);
    z += by_z;
    y += by_y + (z >= n);
    x += by_x + (y >= n);
    z -= z >= n ? n : 0;
    y -= y >= n ? n : 0;
  }
  OccupiedBlocks* of_warps = reinterpret_cast<OccupiedBlocks*>(dynamic_shared);
  if (const OccupiedBlocks of_warp = over_warp(found); lane_of_warp() == 0)
    of_warps[int(threadIdx.x) / kWarp] = of_warp;
  __syncthreads();
  found = over_warp(of_warps[lane_of_warp() % (kBoxThreads / kWarp)]);
  __syncthreads();  // before others take the room
  return found;
}

// A ray that no lane has taken yet, in shared memory. Five times sixteen bytes: neighbours lie in other banks.
struct alignas(16) WaitingRay {
  BoxRay ray;
  int place;  // among those of the warp
  int unused[4];
};

// Through boxes within each other. A warp has some rays. It prepares 32 at a time, of which those that may meet
// anything wait for a lane, and lanes take them as they end: the mean of random rays has looked long before the last of
// 32 has (docs/benchmarks/gpu.md, "Counted, not timed"). Where there are several boxes lanes go on to the next then,
// too.
template <class Steps, bool kSeveral>
__global__ void __launch_bounds__(kBoxThreads)
    march_boxes_kernel(int64_t num_rays, MarchRuns body, BoxBlocks blocks, Steps steps, int rays_of_warp) {
  constexpr int kEnoughIdle = kWarp - (kSeveral ? kFewInBox : kFewGoing);
  const MarchRays& rays = body.rays;
  const MarchSettings& m = rays.settings;
  WaitingRay* waiting = reinterpret_cast<WaitingRay*>(dynamic_shared) + int(threadIdx.x) / kWarp * kWarp;
  const unsigned lanes_before = (1u << lane_of_warp()) - 1;
  const int64_t first = piece_of_warp() * rays_of_warp;
  const int num = int(max_of(min_of(num_rays - first, int64_t(rays_of_warp)), int64_t(0)));
  const OccupiedBlocks occupied = kSeveral ? OccupiedBlocks::none() : occupied_blocks(rays);
  const auto steps_of = [&](int64_t r) { return steps.of(rays.near[r], rays.jitter[r], m); };
  const auto start_of = [&](int64_t r, int step) { return steps.start(steps_of(r), number_of(step)); };
  BoxMarch ray;
  RunsOfRay found;
  int place = -1;  // of the lane's ray; none
  int level = 0;
  typename Steps::OfRay on = steps.of(0.f, 0.f, m);
  int num_prepared = 0, num_waiting = 0;
  bool going = false;
  while (true) {
    const unsigned idle = ~__ballot_sync(kAll, going);
    const bool more = num_waiting > 0 || num_prepared < num;
    if (idle == kAll || (__popc(idle) >= kEnoughIdle && (more || kSeveral))) {
      if (!going && place >= 0) {
        const bool is_full = found.count == m.max_samples;
        if (!kSeveral || is_full || ray.next >= ray.behind) {
          const int64_t r = first + place;
          const int next = is_full ? found.end + kNumber : ray.behind;
          body.tell(r, found, next - kNumber, start_of(r, next));
          place = -1;
        }
      }
      const unsigned free = __ballot_sync(kAll, place < 0);
      if (!more && free == kAll) break;
      if (num_waiting == 0 && num_prepared < num) {
        const int its = num_prepared + lane_of_warp();
        WaitingRay prepared{{}, its, {}};
        bool goes = false;
        if (its < num) {
          const int64_t r = first + its;
          const float near = rays.near[r];
          const auto its_steps = steps_of(r);
          BoxRay& way = prepared.ray;
          const bool meets = way.enter(rays.grid, m, steps, its_steps, rays.origins + 3 * r, rays.directions + 3 * r,
                                       near, rays.far[r], body.first_step(r));
          if (!kSeveral && meets) way.keep_to(occupied, steps, its_steps);
          goes = way.next < way.last && m.max_samples > 0;
          const int next = m.max_samples > 0 ? way.behind : way.next;
          if (!goes)
            body.tell(r, body.none_yet(r), meets ? next - kNumber : m.max_steps, meets ? start_of(r, next) : near);
        }
        const unsigned going_on = __ballot_sync(kAll, goes);
        if (goes) waiting[__popc(going_on & lanes_before)] = prepared;
        num_waiting = __popc(going_on);
        num_prepared += kWarp;
        __syncwarp();
      }
      const int from_last = __popc(free & lanes_before) + 1;
      if (place < 0 && from_last <= num_waiting) {
        const WaitingRay& taken = waiting[num_waiting - from_last];
        place = taken.place;
        static_cast<BoxRay&>(ray) = taken.ray;
        found = body.none_yet(first + place);
        going = !kSeveral;
        level = rays.grid.num_levels - 1;
        if (!kSeveral) ray.look_from_here(rays.bits(first + place), 0, blocks);
      }
      num_waiting = max_of(num_waiting - __popc(free), 0);
      __syncwarp();
      if (kSeveral && !going && place >= 0) {
        const int64_t r = first + place;
        on = steps_of(r);
        going = ray.go_on(rays.grid, m, steps, on, rays.origins + 3 * r, rays.directions + 3 * r, level);
        if (going) ray.look_from_here(rays.bits(r), level, blocks);
      }
    }
#pragma unroll
    for (int i = 0; i < kLooksAtOnce; ++i) {
      if (!going) break;
      const auto [is_sample, until] = ray.look(blocks, steps, on);
      if (is_sample) found.add(ray.next - kNumber, min_of(until - ray.next, m.max_samples - found.count));
      ray.next = until;
      going = until < ray.last && found.count < m.max_samples;
    }
  }
}

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
};

// A run of a warp's, as what the rows of its samples need.
struct alignas(16) RunOfRows {
  int to_step;  // what a row of the warp's lacks to the step of its sample
  float near, jitter;
  int ray;  // among those of the warp
};

constexpr int kFillWarps = 8;    // of a block
constexpr int kFillEnough = 16;  // of a processor

// A warp for some neighbouring rays, whose samples lie one behind the other. Lanes read a run each; then they write row
// by row, side by side, and tell by the rows at which runs begin which of them is theirs.
template <class Steps>
__global__ void march_fill_kernel(int64_t num_rays, MarchFill body, Steps steps, int rays_of_warp) {
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
    for (int from = __shfl_sync(kAll, begins, 0); from < to; from += kWarp) {
      const unsigned offset = unsigned(begins - from);
      const unsigned marks = any_of_warp(is_run && offset < kWarp ? 1u << offset : 0);
      const int i = from + lane, of_run = begun + __popc(marks & (2u << lane) - 1);
      begun += __popc(marks);
      if (i < to) {
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

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> find_runs(
    const Tensor& origins, const Tensor& directions, const Tensor& near, const Tensor& far, const Tensor& jitter,
    const Tensor& slices, const Tensor& cells, const Tensor& blocks, std::vector<double> boxes,
    std::vector<int64_t> resolution, int64_t side, double step, double cone_angle, int64_t max_steps,
    int64_t max_samples, const Tensor& empty, const Tensor& begin) {
  MarchRays rays = march_rays(origins, directions, near, far, jitter, slices, cells, blocks, boxes, resolution, side,
                              step, cone_angle, max_steps, max_samples);
  rays.grid.bits.empty = read<uint8_t>(empty);
  const int64_t num_rays = origins.size(0), most = most_runs(rays.grid, rays.settings);
  Tensor counts = make(origins, {num_rays}, ScalarType::Long), ends = make(origins, {num_rays});
  Tensor runs = make(origins, {num_rays, most}, ScalarType::Long), nums = make(origins, {num_rays}, ScalarType::Int);
  Tensor reached = make(origins, {num_rays}, ScalarType::Int);
  const MarchRuns body{rays,
                       most,
                       write<int64_t>(counts),
                       write<float>(ends),
                       write<int64_t>(runs),
                       write<int32_t>(nums),
                       read_or_none<int32_t>(begin),
                       write<int32_t>(reached)};
  if (num_rays == 0 || !marches_by_boxes(rays.grid, rays.settings)) {
    Cuda::for_each(origins, num_rays, body, kRays);
  } else {
    const int64_t at_once = int64_t(Cuda::num_processors(origins)) * kMarchWarps;
    const int rays_of_warp = int(max_of(int64_t(kWarp), min_of(num_rays / at_once, int64_t(kMostRays))));
    const int64_t num_warps = blocks_for(num_rays, rays_of_warp);
    const auto launch = [&](auto steps, auto kernel) {
      Cuda::launch(origins, kernel, Cuda::grid_of(num_warps * kWarp, 1, kBoxThreads), kBoxThreads,
                   kBoxThreads * sizeof(WaitingRay), num_rays, body, BoxBlocks(rays.grid.side), steps, rays_of_warp);
    };
    if (rays.settings.cone_angle > 0.f)
      launch(GrowingSteps(rays.settings), march_boxes_kernel<GrowingSteps, true>);
    else if (rays.grid.num_levels > 1)
      launch(EvenSteps(rays.settings), march_boxes_kernel<EvenSteps, true>);
    else
      launch(EvenSteps(rays.settings), march_boxes_kernel<EvenSteps, false>);
  }
  return {counts, ends, runs, nums, reached};
}

std::tuple<Tensor, Tensor, Tensor> march_fill(const Tensor& near, const Tensor& jitter, const Tensor& runs,
                                              const Tensor& nums, double step, double cone_angle, int64_t max_steps,
                                              const Tensor& offsets, int64_t num_samples) {
  Tensor t_starts = make(near, {num_samples}), t_ends = make(near, {num_samples});
  Tensor ray_indices = make(offsets, {num_samples});
  Cuda::clear_rest(offsets, {t_starts, t_ends, ray_indices});
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
                       write<int64_t>(ray_indices)};
  const int64_t num_rays = near.size(0), enough = int64_t(Cuda::num_processors(near)) * kFillEnough;
  int rays_of_warp = kWarp;
  while (num_rays / rays_of_warp < enough && rays_of_warp > 4) rays_of_warp /= 2;
  const auto launch = [&](auto steps, auto kernel) {
    constexpr int kThreads = kFillWarps * kWarp;
    if (num_rays)
      Cuda::launch(near, kernel, Cuda::grid_of(blocks_for(num_rays, rays_of_warp) * kWarp, 1, kThreads), kThreads,
                   kThreads * sizeof(RunOfRows), num_rays, body, steps, rays_of_warp);
  };
  if (cone_angle > 0)
    launch(GrowingSteps(body.settings), march_fill_kernel<GrowingSteps>);
  else
    launch(EvenSteps(body.settings), march_fill_kernel<EvenSteps>);
  return {t_starts, t_ends, ray_indices};
}

constexpr int kPassedAtOnce = 4;  // samples of a ray

// Light is multiplied in the order of the samples, so that the same ones are seen as on a CPU. Float64 goes ray by ray.
__global__ void __launch_bounds__(kStagedThreads)
    visible_samples_kernel(int64_t num_rays, int rays_of_warp, VisibleSamples<float> body) {
  const StagedRays rays(num_rays, rays_of_warp, body.offsets);
  float* kept = staged_rows<1>();  // of the light; less than none of it where the sample is seen
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
  using Cuda::for_each;

  static void for_each(const torch::stable::Tensor& like, int64_t n, const VisibleSamples<float>& body) {
    for_each_staged<1>(like, n, visible_samples_kernel, body);
  }
};

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("pack_grid", TORCH_BOX(&nerftrain::pack_grid<nerftrain::Cuda>));
  m.impl("slice_grid", TORCH_BOX(&nerftrain::slice_grid<nerftrain::Cuda>));
  m.impl("visible_cells", TORCH_BOX(&nerftrain::visible_cells<nerftrain::Cuda>));
  m.impl("march_count", TORCH_BOX(&nerftrain::march_count<nerftrain::Cuda>));
  m.impl("march_write", TORCH_BOX(&nerftrain::march_write<nerftrain::Cuda>));
  m.impl("march_runs", TORCH_BOX(&nerftrain::find_runs));
  m.impl("march_fill", TORCH_BOX(&nerftrain::march_fill));
  m.impl("visible_samples", TORCH_BOX(&nerftrain::visible_samples<nerftrain::CudaMarch>));
  m.impl("alpha_shares", TORCH_BOX(&nerftrain::alpha_shares<nerftrain::Cuda>));
}
