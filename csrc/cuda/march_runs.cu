// Marching with a thread for each ray, which keeps what it finds as runs of steps: so rays are marched once, though
// where their samples go follows from how many there are.
#include "../common/box_march.h"
#include "../operators/march.h"
#include "backend.h"
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
    if (k != end) reinterpret_cast<uint2*>(runs)[num++] = uint2{uint32_t(count), uint32_t(k)};
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
  __device__ __forceinline__ void found_by(int64_t r, int count, int num) const {
    counts[r] = count;
    nums[r] = num;
  }
  __device__ __forceinline__ void ends_at(int64_t r, int next, float end) const {
    ends[r] = end;
    reached[r] = next;
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
    found_by(r, found.count, found.num);
    ends_at(r, found.count == m.max_samples ? next : m.max_steps, end);
  }
};

constexpr int kRays = 64;  // of a block: rays are few for a GPU, and take unlike times

// Through boxes within each other. A block has some rays, prepares them with all of its threads and sorts them by the
// steps that are ahead of them; lanes take one after the other, from the longest on: what ends last is short. The
// slowest of 32 random rays looks at several times as many cells as their mean does. Of the threads, blocks, lanes and
// looks that were tried the ones by which lego's rays take the least time as tests/ops/timed_ptx.h tells it.
constexpr int kBoxThreads = 320, kBoxWarps = kBoxThreads / kWarp;
constexpr int kBlocksAtOnce = 2;   // of a processor
constexpr int kMostRays = 1536;    // of a block
constexpr int kEnoughRays = 256;   // that have room beside a table
constexpr int kKept = 1024;        // bytes of shared memory that each block takes of a processor beside its own
constexpr int kLengths = 96;       // kinds of lengths: four for each doubling, so enough for kMaxNumbered
constexpr int kFewGoing = 28;      // lanes: no more of a warp go on before others take new rays
constexpr int kFewInBox = 16;      // the same where rays go from box to box
constexpr int kLooksAtOnce = 6;    // before the warp counts them again
constexpr int kMostGroups = 4096;  // that a block looks through for where its rays need not go

struct PreparedRay {
  float from[3], per_x[3];
  int next, last;
  int kind;  // of its length, in the upper 16 bits; in the lower how many of the kind were before it; -1: goes nowhere
};

// The shared memory of a block.
struct BoxRoom {
  uint8_t* empty;            // a copy of the grid's, where it has room
  OccupiedBlocks* of_warps;  // [kBoxWarps]
  int* lengths;              // [kLengths] how many rays have one of the kind; then how many go before these
  int *num_going, *num_taken;
  PreparedRay* prepared;  // [rays]
  uint16_t* order;        // [rays] those that go, from the longest on

  static constexpr int kFixed = kBoxWarps * sizeof(OccupiedBlocks) + (kLengths + 2) * sizeof(int);
  static constexpr int kOfRay = sizeof(PreparedRay) + sizeof(uint16_t);
  static int64_t bytes(int64_t table, int64_t rays) { return table + kFixed + rays * kOfRay; }

  __device__ __forceinline__ BoxRoom(int table, int rays)
      : empty(reinterpret_cast<uint8_t*>(dynamic_shared)),
        of_warps(reinterpret_cast<OccupiedBlocks*>(empty + table)),
        lengths(reinterpret_cast<int*>(of_warps + kBoxWarps)),
        num_going(lengths + kLengths),
        num_taken(num_going + 1),
        prepared(reinterpret_cast<PreparedRay*>(num_taken + 1)),
        order(reinterpret_cast<uint16_t*>(prepared + rays)) {}
};

// Calls each(i) for 0 ... num - 1, by all threads of a block.
template <class Each>
__device__ __forceinline__ void by_block(int num, Each each) {
#pragma unroll 4
  for (int i = int(threadIdx.x); i < num; i += kBoxThreads) each(i);
}

__device__ __forceinline__ OccupiedBlocks over_warp(const OccupiedBlocks& of_lane) {
  OccupiedBlocks all;
#pragma unroll
  for (int a = 0; a < 3; ++a) {
    all.low[a] = least_of_warp(of_lane.low[a]);
    all.high[a] = greatest_of_warp(of_lane.high[a]);
  }
  return all;
}

// Where the blocks lie that rays may meet, of those that this warp looks at.
__device__ __forceinline__ OccupiedBlocks occupied_blocks(const MarchRays& rays) {
  const OccupancyGrid& g = rays.grid;
  const int n = g.side >> 4, num = n * n * n;
  if (rays.slices || num > kMostGroups) return OccupiedBlocks::all(g);
  const uint32_t inverse = (1u << 16) / uint32_t(n) + 1;  // n is 16 at most
  OccupiedBlocks found = OccupiedBlocks::none();
  by_block(num, [&](int i) {
    const int xy = int(uint32_t(i) * inverse >> 16), x = int(uint32_t(xy) * inverse >> 16);
    found.add(g.bits.blocks[i], x, xy - x * n, i - xy * n);
  });
  return over_warp(found);
}

// Makes ready what the rays of a block share. Returns where they may meet anything.
template <bool kNear>
__device__ __forceinline__ OccupiedBlocks share(const BoxRoom& room, const MarchRays& rays, int table, bool bounded) {
  by_block(kLengths + 2, [&](int i) { room.lengths[i] = 0; });
  if (kNear) {
    const uint4* from = reinterpret_cast<const uint4*>(rays.grid.bits.empty);
    by_block(table / int(sizeof(uint4)), [&](int i) { reinterpret_cast<uint4*>(room.empty)[i] = from[i]; });
  }
  const OccupiedBlocks of_warp = bounded ? occupied_blocks(rays) : OccupiedBlocks::none();
  if (lane_of_warp() == 0) room.of_warps[int(threadIdx.x) / kWarp] = of_warp;
  __syncthreads();
  return over_warp(room.of_warps[lane_of_warp() % kBoxWarps]);
}

// From how many rays have a length of each kind: how many are longer.
__device__ __forceinline__ void sum_lengths(const BoxRoom& room) {
  constexpr int kOfLane = kLengths / kWarp;
  int* of_lane = room.lengths + kLengths - 1 - lane_of_warp() * kOfLane;  // and those below
  int nums[kOfLane], sum = 0;
#pragma unroll
  for (int i = 0; i < kOfLane; ++i) sum += nums[i] = of_lane[-i];
  int before = sum_before(sum);
  if (lane_of_warp() == kWarp - 1) *room.num_going = before + sum;
#pragma unroll
  for (int i = 0; i < kOfLane; ++i) {
    of_lane[-i] = before;
    before += nums[i];
  }
}

// kNear: whether `empty` of a single box, of `table` bytes, is brought into shared memory.
template <class Steps, bool kSeveral, bool kNear>
__global__ void __launch_bounds__(kBoxThreads)
    march_boxes_kernel(int64_t num_rays, MarchRuns body, BoxBlocks blocks, Steps steps, int rays_of_block, int table) {
  const MarchRays& rays = body.rays;
  const MarchSettings& m = rays.settings;
  const BoxRoom room(table, rays_of_block);
  const int64_t first = int64_t(blockIdx.x) * rays_of_block;
  const int num = int(min_of(num_rays - first, int64_t(rays_of_block)));
  const auto steps_of = [&](int64_t r) { return steps.of(rays.near[r], rays.jitter[r], m); };

  const OccupiedBlocks occupied = share<kNear>(room, rays, table, !kSeveral);
  for (int place = int(threadIdx.x); place < num; place += kBoxThreads) {
    const int64_t r = first + place;
    const float near = rays.near[r], far = rays.far[r];
    float o[3], d[3];
    for (int a = 0; a < 3; ++a) {
      o[a] = rays.origins[3 * r + a];
      d[a] = rays.directions[3 * r + a];
    }
    const auto on = steps_of(r);
    BoxRay ray;
    const bool meets = ray.enter(rays.grid, m, steps, on, o, d, near, far, body.first_step(r));
    if (!kSeveral && meets) ray.keep_to(occupied, steps, on);
    const bool may_have = m.max_samples > 0;
    const int next = may_have ? ray.behind : ray.next, last = kSeveral ? ray.behind : ray.last;
    body.ends_at(r, meets && !may_have ? next - kNumber : m.max_steps, meets ? steps.start(on, number_of(next)) : near);
    PreparedRay& prepared = room.prepared[place];
    if (!may_have || ray.next >= last) {
      prepared.kind = -1;
      body.found_by(r, 0, 0);
      continue;
    }
    for (int a = 0; a < 3; ++a) {
      prepared.from[a] = ray.from[a];
      prepared.per_x[a] = ray.per_x[a];
    }
    prepared.next = ray.next;
    prepared.last = last;
    NumberBits length;
    length.number = float(last - ray.next);
    const int its = (length.bits >> 21) - (127 << 2);  // by its exponent and the two bits behind
    prepared.kind = its << 16 | atomicAdd(room.lengths + its, 1);
  }
  __syncthreads();
  if (threadIdx.x < kWarp) sum_lengths(room);
  __syncthreads();
  for (int place = int(threadIdx.x); place < num; place += kBoxThreads) {
    const int kind = room.prepared[place].kind;
    if (kind >= 0) room.order[room.lengths[kind >> 16] + (kind & 0xffff)] = uint16_t(place);
  }
  __syncthreads();

  constexpr int kEnoughIdle = kWarp - (kSeveral ? kFewInBox : kFewGoing);
  const unsigned lanes_before = (1u << lane_of_warp()) - 1;
  const int num_going = *room.num_going;
  bool more = num_going > 0;  // rays that no lane has taken
  BoxMarch ray;
  RunsOfRay found;
  int place = -1;  // of the lane's ray; none
  int level = 0;
  typename Steps::OfRay on = steps.of(0.f, 0.f, m);
  const auto empty = [&](uint32_t block) -> int {
    if constexpr (kNear) return room.empty[block];
    return read_only(ray.bits.empty + block);
  };
  bool going = false;
  while (true) {
    const unsigned idle = ~__ballot_sync(kAll, going);
    if (idle == kAll || (__popc(idle) >= kEnoughIdle && (more || kSeveral))) {
      const bool is_full = found.count >= m.max_samples;
      if (!going && place >= 0 && (!kSeveral || is_full || ray.next >= ray.behind)) {
        const int64_t r = first + place;
        body.found_by(r, min_of(found.count, m.max_samples), found.num);
        if (is_full) {
          const int end = found.end - (found.count - m.max_samples);
          body.ends_at(r, end, steps.start(steps_of(r), float(end)));
        }
        place = -1;
      }
      const unsigned free = __ballot_sync(kAll, place < 0);
      if (!more && free == kAll) break;
      if (more) {
        int taken = 0;
        if (lane_of_warp() == 0) taken = atomicAdd(room.num_taken, __popc(free));
        taken = __shfl_sync(kAll, taken, 0);
        more = taken + __popc(free) < num_going;
        const int its = taken + __popc(free & lanes_before);
        if (place < 0 && its < num_going) {
          place = room.order[its];
          const PreparedRay& prepared = room.prepared[place];
          for (int a = 0; a < 3; ++a) {
            ray.from[a] = prepared.from[a];
            ray.per_x[a] = prepared.per_x[a];
          }
          ray.next = prepared.next;
          ray.last = ray.behind = prepared.last;
          found = body.none_yet(first + place);
          level = rays.grid.num_levels - 1;
          if (!kSeveral) {
            going = true;
            ray.template measure<Steps>();
            ray.look_from_here(rays.bits(first + place), 0, blocks);
          }
        }
      }
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
      const auto [is_sample, until] = ray.look(blocks, steps, on, empty);
      if (is_sample) found.add(ray.next - kNumber, until - ray.next);
      ray.next = until;
      going = until < ray.last && found.count < m.max_samples;
    }
  }
}

// How many bytes of `empty`, if any, and how many rays a block of a launch has.
struct BoxLaunch {
  int64_t table, rays;

  BoxLaunch(const Tensor& like, const MarchRays& rays_, int64_t num_rays) : table(0), rays(0) {
    const int64_t processors = Cuda::num_processors(like), shared = Cuda::shared_of_processor(like);
    const int64_t most = Cuda::shared_of_block(like);
    const auto fitting = [&](int64_t table_, int at_once) {
      const int64_t of_block = min_of(shared / at_once - kKept, most) - BoxRoom::bytes(table_, 0);
      return min_of(of_block / BoxRoom::kOfRay, int64_t(kMostRays));
    };
    int at_once = kBlocksAtOnce;
    const bool in_fours = reinterpret_cast<uintptr_t>(rays_.grid.bits.empty) % sizeof(uint4) == 0;
    if (rays_.grid.num_levels == 1 && !(rays_.settings.cone_angle > 0.f) && !rays_.slices && in_fours) {
      table = cubed(rays_.grid.side / 4);
      while (at_once > 0 && fitting(table, at_once) < kEnoughRays) --at_once;
      if (at_once == 0) {
        table = 0;
        at_once = kBlocksAtOnce;
      }
    }
    const int64_t all = processors * at_once, turns = blocks_for(num_rays, all * fitting(table, at_once));
    rays = max_of(blocks_for(num_rays, all * turns), int64_t(kWarp));
  }
};

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
    const BoxLaunch how(origins, rays, num_rays);
    const auto launch = [&](auto steps, auto kernel) {
      Cuda::launch(origins, kernel, Cuda::grid_of(num_rays, 1, int(how.rays)), kBoxThreads,
                   size_t(BoxRoom::bytes(how.table, how.rays)), num_rays, body, BoxBlocks(rays.grid.side), steps,
                   int(how.rays), int(how.table));
    };
    if (rays.settings.cone_angle > 0.f)
      launch(GrowingSteps(rays.settings), march_boxes_kernel<GrowingSteps, true, false>);
    else if (rays.grid.num_levels > 1)
      launch(EvenSteps(rays.settings), march_boxes_kernel<EvenSteps, true, false>);
    else if (how.table == 0)
      launch(EvenSteps(rays.settings), march_boxes_kernel<EvenSteps, false, false>);
    else
      launch(EvenSteps(rays.settings), march_boxes_kernel<EvenSteps, false, true>);
  }
  return {counts, ends, runs, nums, reached};
}

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) { m.impl("march_runs", TORCH_BOX(&nerftrain::find_runs)); }
