// Marching with a thread for each ray, which keeps what it finds as bits of steps: so rays are marched once, though
// where their samples go follows from how many there are.
#include "../common/box_march.h"
#include "../operators/march.h"
#include "backend.h"
#include "staged.h"
#include "warp.h"

namespace nerftrain {

// What a ray has found, 32 steps at a time: the first of them in the upper 32 bits, which of them are samples in the
// lower.
struct WindowsOfRay {
  int64_t* next = nullptr;
  int first = -kWarp;
  unsigned bits = 0;

  __device__ __forceinline__ void close() {
    if (bits) *next++ = int64_t(uint64_t(uint32_t(first)) << 32 | bits);
  }
  // Steps from k on, behind all before them: as many of n, of which there is at least one, as one window holds.
  __device__ __forceinline__ int add_some(int k, int n) {
    if (k - first >= kWarp) {
      close();
      first = k;
      bits = 0;
    }
    const int place = k - first, part = min_of(n, kWarp - place);
    bits |= kAll >> (kWarp - part) << place;
    return part;
  }
};

struct MarchWindows {
  MarchRays rays;
  int64_t most;          // windows of a ray
  int64_t* counts;       // [R] samples
  float* ends;           // [R]
  int64_t* windows;      // [R][most]
  int32_t* nums;         // [R] windows
  const int32_t* begin;  // [R] the step to begin at; null: the first
  int32_t* reached;      // [R] the step to go on at after so many samples as there may be; else max_steps

  __device__ __forceinline__ int first_step(int64_t r) const { return begin ? begin[r] : 0; }
  __device__ __forceinline__ void tell(int64_t r, const WindowsOfRay& found, Stepped stepped, float end) const {
    counts[r] = stepped.count;
    ends[r] = end;
    nums[r] = int(found.next - (windows + r * most));
    reached[r] = stepped.count == rays.settings.max_samples ? stepped.next : rays.settings.max_steps;
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
    WindowsOfRay found{windows + r * most};
    Stepped stepped{0, m.max_steps};
    if (near < far && line.clip(g, t0, t1)) {
      const Lattice steps(near, rays.jitter[r], m);
      const int first = max_of(steps.first_after(t0, 0, m.max_steps), first_step(r));
      stepped = march_runs(g, rays.bits(r), m, line, steps, first, t1, far, [&](int k, int n) {
        while (n > 0) {
          const int part = found.add_some(k, n);
          k += part;
          n -= part;
        }
      });
      found.close();
      end = steps.start(stepped.next);
    }
    tell(r, found, stepped, end);
  }
};

constexpr int kRays = 64;  // of a block: rays are few for a GPU, and take unlike times
// Of all thresholds and steps of four, those by which a march issues the fewest instructions (tests/ops/played_ptx.h).
constexpr int kFewGoing = 20;    // lanes: no more of a warp go on before others take new rays
constexpr int kLooksAtOnce = 4;  // before the warp counts them again
constexpr int kMarchWarps = 16;  // of a processor, when they take so many rays one after the other
constexpr int kMostRays = 256;   // of a warp

constexpr int kMostGroups = 4096;  // that a warp looks through for where its rays need not go

// Where the blocks are that any ray may meet.
__device__ __forceinline__ OccupiedBlocks occupied_blocks(const MarchRays& rays) {
  const OccupancyGrid& g = rays.grid;
  const int n = g.side >> 4, num = n * n * n;
  if (rays.slices || num > kMostGroups) return OccupiedBlocks::all(g);
  OccupiedBlocks found = OccupiedBlocks::none();
#pragma unroll 1
  for (int i = lane_of_warp(); i < num; i += kWarp)
    found.add(BoxMarch::word_at(g.bits.blocks, i), i / (n * n), i / n % n, i % n);
#pragma unroll
  for (int a = 0; a < 3; ++a)
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      found.low[a] = min_of(found.low[a], __shfl_xor_sync(kAll, found.low[a], step));
      found.high[a] = max_of(found.high[a], __shfl_xor_sync(kAll, found.high[a], step));
    }
  return found;
}

// Through a single box by equal steps. A warp has some rays, and its lanes take the next of them as they end: the mean
// of random rays has looked long before the last of 32 has (docs/benchmarks/gpu.md, "Counted, not timed").
__global__ void __launch_bounds__(kRays) march_box_kernel(int64_t num_rays, MarchWindows body, int rays_of_warp) {
  const MarchRays& rays = body.rays;
  const MarchSettings& m = rays.settings;
  const unsigned lanes_before = (1u << lane_of_warp()) - 1;
  int64_t to_take = piece_of_warp() * rays_of_warp;  // the next ray of the warp's, and how many are left with it
  int num_left = int(max_of(min_of(num_rays - to_take, int64_t(rays_of_warp)), int64_t(0)));
  const OccupiedBlocks occupied = occupied_blocks(rays);
  BoxMarch ray;
  WindowsOfRay found;
  int64_t r = -1;  // none
  int count = 0;
  bool meets = false, going = false;
  while (true) {
    const unsigned idle = ~__ballot_sync(kAll, going);
    if (idle == kAll || (__popc(idle) >= kWarp - kFewGoing && num_left > 0)) {
      if (!going && r >= 0) {
        found.close();
        const int next = (count == m.max_samples ? ray.next : ray.behind) - kNumber;
        const EvenLattice lattice(rays.near[r], rays.jitter[r], m);
        body.tell(r, found, {count, meets ? next : m.max_steps}, meets ? lattice.start(next) : lattice.near);
        r = -1;
      }
      if (num_left <= 0) break;  // and so for the whole warp
      const int place = __popc(idle & lanes_before), num_idle = __popc(idle);
      if (!going && place < num_left) {
        r = to_take + place;
        meets = ray.enter(rays.grid, rays.bits(r), occupied, m, rays.origins + 3 * r, rays.directions + 3 * r,
                          rays.near[r], rays.far[r], rays.jitter[r], body.first_step(r));
        found = {body.windows + r * body.most};
        count = 0;
        going = ray.next < ray.last && m.max_samples > 0;
      }
      to_take += num_idle;
      num_left -= num_idle;
    }
    for (int i = 0; i < kLooksAtOnce && going; ++i) {
      const auto [is_sample, until] = ray.look(rays.grid.side);
      int next = until;
      if (is_sample) {
        const int part = found.add_some(ray.next - kNumber, min_of(until - ray.next, m.max_samples - count));
        count += part;
        next = ray.next + part;
      }
      ray.next = next;
      going = next < ray.last && count < m.max_samples;
    }
  }
}

struct MarchFill {
  MarchSettings settings;
  int64_t num_rays;
  const float* near;       // [R]
  const float* jitter;     // [R]
  const int64_t* windows;  // [R][most]
  const int32_t* nums;     // [R]
  int64_t most;
  const int64_t* offsets;  // [R + 1]; a ray without room has none
  float* t_starts;         // [N]
  float* t_ends;           // [N]
  int64_t* ray_indices;    // [N]
};

constexpr int kTeams = 8, kTeam = kWarp / kTeams;  // of a warp: rays, and lanes that read a ray's windows

// A warp for some neighbouring rays, of which each team of lanes reads one's first windows; then all lanes write what
// one window after the other has, each what one step of it does.
template <class Steps>
__global__ void march_fill_kernel(int64_t, MarchFill body) {
  const int64_t first_ray = piece_of_warp() * kTeams;
  if (first_ray >= body.num_rays) return;
  const int lane = lane_of_warp(), of_team = lane % kTeam;
  const int64_t its = min_of(first_ray + lane / kTeam, body.num_rays - 1);
  const float near = body.near[its], jitter = body.jitter[its];
  const int64_t offset = body.offsets[its], first_row = body.offsets[first_ray];
  const int first = int(offset - first_row), nums = body.nums[its];
  const int num = body.offsets[its + 1] > offset ? nums : 0;
  const int64_t window = of_team < num ? body.windows[its * body.most + of_team] : 0;
  float *t_starts = body.t_starts + first_row, *t_ends = body.t_ends + first_row;
  int64_t* ray_indices = body.ray_indices + first_row;
  const int rays = int(min_of(body.num_rays - first_ray, int64_t(kTeams)));
  for (int j = 0; j < rays; ++j) {
    const int64_t r = first_ray + j;
    const int team = j * kTeam, num_windows = __shfl_sync(kAll, num, team);
    int to = __shfl_sync(kAll, first, team);
    const Steps lattice(__shfl_sync(kAll, near, team), __shfl_sync(kAll, jitter, team), body.settings);
    for (int w = 0; w < num_windows; ++w) {
      const uint64_t found =
          uint64_t(w < kTeam ? __shfl_sync(kAll, window, team + w) : body.windows[r * body.most + w]);
      const unsigned bits = unsigned(found);
      if (bits >> lane & 1) {
        const int i = to + __popc(bits & ((1u << lane) - 1));
        const float k = float(int(found >> 32) + lane);
        t_starts[i] = lattice.start(k);
        t_ends[i] = lattice.start(k + 1.f);
        ray_indices[i] = r;
      }
      to += __popc(bits);
    }
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> march_windows(
    const Tensor& origins, const Tensor& directions, const Tensor& near, const Tensor& far, const Tensor& jitter,
    const Tensor& slices, const Tensor& cells, const Tensor& blocks, std::vector<double> boxes,
    std::vector<int64_t> resolution, int64_t side, double step, double cone_angle, int64_t max_steps,
    int64_t max_samples, const Tensor& begin) {
  const MarchRays rays = march_rays(origins, directions, near, far, jitter, slices, cells, blocks, boxes, resolution,
                                    side, step, cone_angle, max_steps, max_samples);
  const int64_t num_rays = origins.size(0), most = max_steps / kWarp + 1;
  Tensor counts = make(origins, {num_rays}, ScalarType::Long), ends = make(origins, {num_rays});
  Tensor windows = make(origins, {num_rays, most}, ScalarType::Long), nums = make(origins, {num_rays}, ScalarType::Int);
  Tensor reached = make(origins, {num_rays}, ScalarType::Int);
  const MarchWindows body{rays,
                          most,
                          write<int64_t>(counts),
                          write<float>(ends),
                          write<int64_t>(windows),
                          write<int32_t>(nums),
                          read_or_none<int32_t>(begin),
                          write<int32_t>(reached)};
  if (num_rays == 0 || !marches_as_box(rays.grid, rays.settings)) {
    Cuda::for_each(origins, num_rays, body, kRays);
  } else {
    const int64_t at_once = int64_t(Cuda::num_processors(origins)) * kMarchWarps;
    const int rays_of_warp = int(max_of(int64_t(kWarp), min_of(num_rays / at_once, int64_t(kMostRays))));
    const int64_t num_warps = blocks_for(num_rays, rays_of_warp);
    Cuda::launch(origins, march_box_kernel, Cuda::grid_of(num_warps * kWarp, 1, kRays), kRays, 0, num_rays, body,
                 rays_of_warp);
  }
  return {counts, ends, windows, nums, reached};
}

std::tuple<Tensor, Tensor, Tensor> march_fill(const Tensor& near, const Tensor& jitter, const Tensor& windows,
                                              const Tensor& nums, double step, double cone_angle, int64_t max_steps,
                                              const Tensor& offsets, int64_t num_samples) {
  Tensor t_starts = make(near, {num_samples}), t_ends = make(near, {num_samples});
  Tensor ray_indices = make(offsets, {num_samples});
  Cuda::clear_rest(offsets, {t_starts, t_ends, ray_indices});
  const MarchFill body{{float(step), float(cone_angle), int(max_steps), 0},
                       near.size(0),
                       read<float>(near),
                       read<float>(jitter),
                       read<int64_t>(windows),
                       read<int32_t>(nums),
                       windows.size(1),
                       read<int64_t>(offsets),
                       write<float>(t_starts),
                       write<float>(t_ends),
                       write<int64_t>(ray_indices)};
  const auto kernel = cone_angle > 0 ? march_fill_kernel<Lattice> : march_fill_kernel<EvenLattice>;
  Cuda::for_each_warp(near, blocks_for(near.size(0), kTeams), kernel, body);
  return {t_starts, t_ends, ray_indices};
}

// Light is multiplied in the order of the samples, so that the same ones are seen as on a CPU. Float64 goes ray by ray.
__global__ void __launch_bounds__(kStagedThreads)
    visible_samples_kernel(int64_t num_rays, int rays_of_warp, VisibleSamples<float> body) {
  const StagedRays rays(num_rays, rays_of_warp, body.offsets);
  float* kept = staged_rows<1>();  // then whether samples are seen
  const auto at = body.thresholds();
  float light = rays.there ? body.arriving_at(rays.ray) : 0;
  for (int64_t base = rays.begin; base < rays.end; base += kStaged) {
    const StagedPart part(rays, base);
    side_by_side(part.num, [&](int place) {
      const int64_t i = base + place;
      kept[place] = exp_of(-body.density[i] * (body.t_ends[i] - body.t_starts[i]));
    });
    __syncwarp();
    for (int place = part.from; place < part.to; ++place) kept[place] = body.pass(kept[place], at, light) ? 1 : 0;
    __syncwarp();
    side_by_side(part.num, [&](int place) { body.visible[base + place] = kept[place] != 0; });
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
  m.impl("march_windows", TORCH_BOX(&nerftrain::march_windows));
  m.impl("march_fill", TORCH_BOX(&nerftrain::march_fill));
  m.impl("visible_samples", TORCH_BOX(&nerftrain::visible_samples<nerftrain::CudaMarch>));
  m.impl("alpha_shares", TORCH_BOX(&nerftrain::alpha_shares<nerftrain::Cuda>));
}
