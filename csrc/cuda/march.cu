// Marching with a warp for each ray: lanes look at 32 neighbouring steps, and what they find is kept as bits. So rays
// are marched once, though where their samples go follows from how many there are.
#include "../operators/march.h"
#include "backend.h"
#include "warp.h"

namespace nerftrain {

// 32 steps of a ray: the first of them in the upper 32 bits, which of them are samples in the lower.
struct MarchWindows {
  MarchRays rays;
  int64_t most;          // windows of a ray
  int64_t* counts;       // [R] samples
  float* ends;           // [R]
  int64_t* windows;      // [R][most]
  int32_t* nums;         // [R] windows
  const int32_t* begin;  // [R] the step to begin at; null: the first
  int32_t* reached;      // [R] the step to go on at after so many samples as there may be; else max_steps

  __device__ __forceinline__ int begin_of(int64_t r, int first) const {
    return begin ? max_of(first, begin[r]) : first;
  }
  __device__ __forceinline__ void give(int64_t r, int place, int k, unsigned bits) const {
    windows[r * most + place] = int64_t(uint64_t(uint32_t(k)) << 32 | bits);
  }
  __device__ __forceinline__ void finish(int64_t r, int count, float end, int num, int next) const {
    counts[r] = count;
    ends[r] = end;
    nums[r] = num;
    reached[r] = next;
  }
};

// The first so many of some bits.
__device__ __forceinline__ unsigned no_more_than(int most, unsigned bits) {
  const int lane = lane_of_warp();
  if (__popc(bits) <= most) return bits;
  return __ballot_sync(kAll, (bits >> lane & 1) && __popc(bits & ((1u << lane) - 1)) < most);
}

// Looks at 32 steps from k on; the same steps are samples as in march_steps.
__global__ void march_windows_kernel(int64_t num_rays, MarchWindows body) {
  const int64_t r = piece_of_warp();
  if (r >= num_rays) return;
  const int lane = lane_of_warp();
  const OccupancyGrid& g = body.rays.grid;
  const MarchSettings& m = body.rays.settings;
  const float near = body.rays.near[r], far = body.rays.far[r];
  const Line line(body.rays.origins + 3 * r, body.rays.directions + 3 * r);
  float t0 = near, t1 = far, end = near;
  int count = 0, num = 0, reached = m.max_steps;
  if (near < far && line.clip(g, t0, t1)) {
    const Lattice lattice(near, body.rays.jitter[r], m);
    int k = body.begin_of(r, lattice.first_after(t0, 0, m.max_steps));
    end = lattice.start(k);
    while (k < m.max_steps && count < m.max_samples) {
      const int own = k + lane;
      const float start = lattice.start(own), mid = 0.5f * (start + lattice.start(own + 1));
      bool over = own >= m.max_steps || !(mid < far), on = false;
      int next = own + 1;
      if (!over) {
        float p[3];
        line.at(mid, p);
        CellPlace place;
        int side = 0;
        if (!find_cell(g, p, place)) {
          over = mid > t1;
          if (lane == kWarp - 1)
            next = lattice.first_after(min_of(line.enter_any(g, g.num_levels, mid), t1), own + 1, m.max_steps);
        } else if ((side = empty_cube(g, place)) != 0) {
          if (lane == kWarp - 1)
            next = lattice.first_after(min_of(line.leave(g, place, side, mid), t1), own + 1, m.max_steps);
        } else {
          on = true;
        }
      }
      const unsigned over_bits = __ballot_sync(kAll, over);
      unsigned bits = __ballot_sync(kAll, on);
      const int last = over_bits ? __ffs(int(over_bits)) - 1 : kWarp;  // the first lane that is over
      if (last < kWarp) bits &= (1u << last) - 1;
      bits = no_more_than(m.max_samples - count, bits);
      count += __popc(bits);
      if (bits) {
        if (lane == 0) body.give(r, num, k, bits);
        ++num;
      }
      if (count == m.max_samples && bits) {
        reached = k + kWarp - __clz(int(bits));
        end = lattice.start(reached);
        break;
      }
      end = __shfl_sync(kAll, start, last % kWarp);
      if (last < kWarp) break;
      k = __shfl_sync(kAll, next, kWarp - 1);
      end = lattice.start(k);
    }
  }
  if (lane == 0) body.finish(r, count, end, num, reached);
}

// Bits of the blocks that have an occupied one among them and the 26 around them.
struct Surroundings {
  const uint64_t* blocks;  // [groups^3]
  int groups;              // along an axis
  uint64_t* out;           // [groups^3]

  __device__ __forceinline__ uint64_t word(int x, int y, int z) const {
    const bool there = x >= 0 && y >= 0 && z >= 0 && x < groups && y < groups && z < groups;
    return there ? blocks[(int64_t(x) * groups + y) * groups + z] : 0;
  }

  // Each takes the neighbours along one axis in, of what those before have taken in; a word has z, then y, then x.
  __device__ __forceinline__ uint64_t along_z(int x, int y, int z) const {
    const uint64_t own = word(x, y, z), low = 0x1111111111111111u, high = low << 3;
    return own | (own & ~high) << 1 | (own & ~low) >> 1 | (word(x, y, z - 1) & high) >> 3 |
           (word(x, y, z + 1) & low) << 3;
  }
  __device__ __forceinline__ uint64_t along_yz(int x, int y, int z) const {
    const uint64_t own = along_z(x, y, z), low = 0x000f000f000f000fu, high = low << 12;
    return own | (own & ~high) << 4 | (own & ~low) >> 4 | (along_z(x, y - 1, z) & high) >> 12 |
           (along_z(x, y + 1, z) & low) << 12;
  }
  __device__ __forceinline__ void operator()(int64_t i) const {
    const int x = int(i / (groups * groups)), y = int(i / groups % groups), z = int(i % groups);
    const uint64_t own = along_yz(x, y, z);
    out[i] = own | own << 16 | own >> 16 | along_yz(x - 1, y, z) >> 48 | along_yz(x + 1, y, z) << 48;
  }
};

// As march_windows_kernel, in a grid of one box by equal steps: most of all that is marched. First each lane asks
// whether 32 steps of its own may have samples: where none of the blocks around a point has an occupied cell, nothing
// nearer than a block has. Then the warp looks at those together.
__global__ void march_windows_of_a_box_kernel(int64_t num_rays, MarchWindows body, const uint64_t* surroundings) {
  const int64_t r = piece_of_warp();
  if (r >= num_rays) return;
  const int lane = lane_of_warp();
  const OccupancyGrid& g = body.rays.grid;
  MarchSettings m = body.rays.settings;
  m.cone_angle = 0;  // as it is, which the compiler is to know
  const float near = body.rays.near[r], far = body.rays.far[r];
  const Line line(body.rays.origins + 3 * r, body.rays.directions + 3 * r);
  float t0 = near, t1 = far, end = near;
  int count = 0, num = 0, reached = m.max_steps;
  if (near < far && line.clip(g, 0, t0, t1)) {
    const Lattice lattice(near, body.rays.jitter[r], m);
    int k = body.begin_of(r, lattice.first_after(t0, 0, m.max_steps)), ahead = k;
    float reach = 0;  // the most cells along an axis that 32 steps pass
    for (int a = 0; a < 3; ++a)
      reach = max_of(reach, fabsf(line.d[a] * g.inverse[0][a]) * (0.5f * kWarp) * m.step * float(g.resolution[a]));
    // Points so near to each other that what is between them is less than a block, 4 cells, away from one.
    const int points = to_int_clamped(reach * (1 / 7.5f), 0, kWarp) + 1;
    unsigned worth = 0;  // which of the 32 times 32 steps before `ahead` are still to be looked at
    end = lattice.start(k);
    while (k < m.max_steps && count < m.max_samples) {
      if (!worth) {
        const int own = ahead + kWarp * lane;
        bool on = false;
        if (own < m.max_steps) {
          const float from = lattice.start(own), to = lattice.start(own + kWarp), part = (to - from) / float(points);
          on = !(to < t1) || points > kWarp;
          for (int i = 0; i < points && !on; ++i) {
            int block[3];
            for (int a = 0; a < 3; ++a) {
              const float at = line.o[a] + (from + (float(i) + 0.5f) * part) * line.d[a];
              const float cell = ((at - g.center[0][a]) * g.inverse[0][a] * 0.5f + 0.5f) * float(g.resolution[a]);
              block[a] = to_int_clamped(cell, 0, g.resolution[a] - 1) >> 2;
            }
            const BitPlace bit = bit_place(block[0], block[1], block[2], g.side / 4);
            on = surroundings[bit.word] >> bit.bit & 1;
          }
        }
        worth = __ballot_sync(kAll, on);
        ahead += kWarp * kWarp;
        if (!worth) {
          k = min_of(ahead, m.max_steps);
          end = lattice.start(k);
          continue;
        }
      }
      k = ahead + kWarp * (__ffs(int(worth)) - 1 - kWarp);
      worth &= worth - 1;
      const int own = k + lane;
      const float mid = 0.5f * (lattice.start(own) + lattice.start(own + 1));
      float p[3];
      line.at(mid, p);
      int cell[3];
      const bool inside = find_cell_of(g, 0, p, cell);
      bool on = false;
      if (inside) {
        const BitPlace bit = bit_place(cell[0], cell[1], cell[2], g.side);
        on = g.cells[bit.word] >> bit.bit & 1;
      }
      unsigned bits = __ballot_sync(kAll, on);
      int last = kWarp;  // the first lane that is over
      if (!(lattice.start(k + kWarp) < t1) || k + kWarp > m.max_steps) {
        const unsigned over = __ballot_sync(kAll, own >= m.max_steps || !(mid < far) || (!inside && mid > t1));
        last = over ? __ffs(int(over)) - 1 : kWarp;
        if (last < kWarp) bits &= (1u << last) - 1;
      }
      bits = no_more_than(m.max_samples - count, bits);
      count += __popc(bits);
      if (bits) {
        if (lane == 0) body.give(r, num, k, bits);
        ++num;
      }
      if (count == m.max_samples && bits) {
        reached = k + kWarp - __clz(int(bits));
        end = lattice.start(reached);
        break;
      }
      k += last;
      end = lattice.start(k);
      if (last < kWarp) break;
    }
  }
  if (lane == 0) body.finish(r, count, end, num, reached);
}

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
    const Tensor& cells, const Tensor& blocks, std::vector<double> boxes, std::vector<int64_t> resolution, int64_t side,
    double step, double cone_angle, int64_t max_steps, int64_t max_samples, const Tensor& begin) {
  const MarchRays rays = march_rays(origins, directions, near, far, jitter, cells, blocks, boxes, resolution, side,
                                    step, cone_angle, max_steps, max_samples);
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
  if (rays.grid.num_levels > 1 || cone_angle > 0) {
    Cuda::for_each_warp(origins, num_rays, march_windows_kernel, body);
    return {counts, ends, windows, nums, reached};
  }
  Tensor surroundings = make(blocks, {blocks.numel()});
  uint64_t* around = reinterpret_cast<uint64_t*>(write<int64_t>(surroundings));
  Cuda::for_each(origins, blocks.numel(), Surroundings{rays.grid.blocks, int(side / 16), around});
  Cuda::for_each_warp(origins, num_rays, march_windows_of_a_box_kernel, body, around);
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
  m.impl("visible_cells", TORCH_BOX(&nerftrain::visible_cells<nerftrain::Cuda>));
  m.impl("march_count", TORCH_BOX(&nerftrain::march_count<nerftrain::Cuda>));
  m.impl("march_write", TORCH_BOX(&nerftrain::march_write<nerftrain::Cuda>));
  m.impl("march_windows", TORCH_BOX(&nerftrain::march_windows));
  m.impl("march_fill", TORCH_BOX(&nerftrain::march_fill));
  m.impl("visible_samples", TORCH_BOX(&nerftrain::visible_samples<nerftrain::CudaMarch>));
  m.impl("alpha_shares", TORCH_BOX(&nerftrain::alpha_shares<nerftrain::Cuda>));
}
