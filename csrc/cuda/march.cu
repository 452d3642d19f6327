// Marching with a thread for each ray, which keeps what it finds as bits of steps: so rays are marched once, though
// where their samples go follows from how many there are.
#include "../operators/march.h"
#include "backend.h"
#include "warp.h"

namespace nerftrain {

// What a ray has found, 32 steps at a time: the first of them in the upper 32 bits, which of them are samples in the
// lower.
struct WindowsOfRay {
  int64_t* next;
  int first = 0;
  unsigned bits = 0;

  __device__ __forceinline__ void close() {
    if (bits) *next++ = int64_t(uint64_t(uint32_t(first)) << 32 | bits);
    bits = 0;
  }
  // n steps from k on, behind all before them.
  __device__ __forceinline__ void add(int k, int n) {
    while (n > 0) {
      if (!bits || k - first >= kWarp) {
        close();
        first = k;
      }
      const int place = k - first, part = min_of(n, kWarp - place);
      bits |= kAll >> (kWarp - part) << place;
      k += part;
      n -= part;
    }
  }
};

constexpr int kRays = 64;  // of a block: rays are few for a GPU, and take unlike times

template <bool kBox>  // one box and equal steps
struct MarchWindows {
  MarchRays rays;
  int64_t most;          // windows of a ray
  int64_t* counts;       // [R] samples
  float* ends;           // [R]
  int64_t* windows;      // [R][most]
  int32_t* nums;         // [R] windows
  const int32_t* begin;  // [R] the step to begin at; null: the first
  int32_t* reached;      // [R] the step to go on at after so many samples as there may be; else max_steps

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
    if (near < far && (kBox ? line.clip(g, 0, t0, t1) : line.clip(g, t0, t1))) {
      const std::conditional_t<kBox, EvenLattice, Lattice> steps(near, rays.jitter[r], m);
      int k = steps.first_after(t0, 0, m.max_steps);
      if (begin) k = max_of(k, begin[r]);
      const auto add = [&](int from, int n) { found.add(from, n); };
      if constexpr (kBox)
        stepped = march_runs(ThroughBox(g, rays.bits(r), line), m, line, steps, k, t1, far, add);
      else
        stepped = march_runs(ThroughBoxes{g, rays.bits(r), line}, m, line, steps, k, t1, far, add);
      found.close();
      end = steps.start(stepped.next);
    }
    counts[r] = stepped.count;
    ends[r] = end;
    nums[r] = int(found.next - (windows + r * most));
    reached[r] = stepped.count == m.max_samples ? stepped.next : m.max_steps;
  }
};

struct MarchFill {
  MarchSettings settings;
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

__global__ void march_fill_kernel(int64_t num_rays, MarchFill body) {
  const int64_t r = piece_of_warp();
  if (r >= num_rays || body.offsets[r] == body.offsets[r + 1]) return;
  const int lane = lane_of_warp();
  const Lattice lattice(body.near[r], body.jitter[r], body.settings);
  int64_t to = body.offsets[r];
  for (int w = 0; w < body.nums[r]; ++w) {
    const uint64_t window = uint64_t(body.windows[r * body.most + w]);
    const unsigned bits = unsigned(window);
    const int k = int(window >> 32) + lane;
    if (bits >> lane & 1) {
      const int64_t i = to + __popc(bits & ((1u << lane) - 1));
      body.t_starts[i] = lattice.start(k);
      body.t_ends[i] = lattice.start(k + 1);
      body.ray_indices[i] = r;
    }
    to += __popc(bits);
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
  const auto run = [&]<bool kBox>() {
    const MarchWindows<kBox> body{rays,
                                  most,
                                  write<int64_t>(counts),
                                  write<float>(ends),
                                  write<int64_t>(windows),
                                  write<int32_t>(nums),
                                  read_or_none<int32_t>(begin),
                                  write<int32_t>(reached)};
    Cuda::for_each(origins, num_rays, body, kRays);
  };
  if (rays.grid.num_levels > 1 || cone_angle > 0)
    run.template operator()<false>();
  else
    run.template operator()<true>();
  return {counts, ends, windows, nums, reached};
}

std::tuple<Tensor, Tensor, Tensor> march_fill(const Tensor& near, const Tensor& jitter, const Tensor& windows,
                                              const Tensor& nums, double step, double cone_angle, int64_t max_steps,
                                              const Tensor& offsets, int64_t num_samples) {
  Tensor t_starts = make(near, {num_samples}), t_ends = make(near, {num_samples});
  Tensor ray_indices = make(offsets, {num_samples});
  Cuda::clear_rest(offsets, {t_starts, t_ends, ray_indices});
  const MarchFill body{{float(step), float(cone_angle), int(max_steps), 0},
                       read<float>(near),
                       read<float>(jitter),
                       read<int64_t>(windows),
                       read<int32_t>(nums),
                       windows.size(1),
                       read<int64_t>(offsets),
                       write<float>(t_starts),
                       write<float>(t_ends),
                       write<int64_t>(ray_indices)};
  Cuda::for_each_warp(near, near.size(0), march_fill_kernel, body);
  return {t_starts, t_ends, ray_indices};
}

// A warp for each ray. Light is multiplied in the order of the samples, so that the same ones are seen as on a CPU.
template <class T>
__global__ void visible_samples_kernel(int64_t num_rays, VisibleSamples<T> body) {
  const int64_t r = piece_of_warp();
  if (r >= num_rays) return;
  const int lane = lane_of_warp();
  const T alpha_thre = body.least[0], min_weight = body.least[1];
  const int64_t last = body.offsets[r + 1];
  T arriving = body.arriving ? body.arriving[r] : T(1);  // at the first of these 32
  for (int64_t base = body.offsets[r]; base < last; base += kWarp) {
    const int64_t i = base + lane;
    const bool there = i < last;
    const T kept = there ? exp_of(-body.density[i] * (body.t_ends[i] - body.t_starts[i])) : T(1);
    T light = arriving;
#pragma unroll
    for (int before = 0; before < kWarp; ++before) {
      const T other = __shfl_sync(kAll, kept, before);
      arriving *= other;
      if (before < lane) light = arriving;
    }
    const T alpha = T(1) - kept;
    if (there) body.visible[i] = light >= body.early_stop_eps && alpha >= alpha_thre && light * alpha >= min_weight;
    if (!(arriving >= body.early_stop_eps)) {  // and so it stays
      for (int64_t behind = base + kWarp + lane; behind < last; behind += kWarp) body.visible[behind] = false;
      break;
    }
  }
  if (lane == 0) body.leaving[r] = arriving;
}

struct CudaMarch : Cuda {
  using Cuda::for_each;

  template <class T>
  static void for_each(const torch::stable::Tensor& like, int64_t n, const VisibleSamples<T>& body) {
    for_each_warp(like, n, visible_samples_kernel<T>, body);
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
