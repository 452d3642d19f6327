// Runs the per-ray and per-sample functions of csrc/common on what no run should hand them: NaN, infinities, 1e30, zero
// directions, rays along axes and on faces, empty rays, zero sizes. Built with the sanitizers, so that a read or write
// outside its buffer (each is a heap block of its exact size) and any undefined arithmetic end it. What must hold for
// hostile inputs too is checked besides. Prints the first failure and returns 1.
#include <cfloat>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <vector>

#include "adam.h"
#include "box_march.h"
#include "colors.h"
#include "composite.h"
#include "contract.h"
#include "distortion.h"
#include "hash_encoding.h"
#include "histogram.h"
#include "importance.h"
#include "march.h"
#include "points.h"
#include "scan.h"
#include "spherical_harmonics.h"

using namespace nerftrain;

#define CHECK(condition)                                              \
  if (!(condition)) {                                                 \
    std::printf("line %d: %s does not hold\n", __LINE__, #condition); \
    std::exit(1);                                                     \
  }

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();
const std::vector<float> kHostile = {0.f,   -0.f,   1.f,     -1.f,     0.3f, 1e-45f, 1e-30f,
                                     1e30f, -1e30f, FLT_MAX, -FLT_MAX, kInf, -kInf,  kNan};

// Numbers that repeat with no short period: buffers hold every hostile value beside every other.
struct Draw {
  uint32_t state = 1;
  uint32_t below(uint32_t n) {
    state = state * 1664525u + 1013904223u;
    return (state >> 8) % n;
  }
  float hostile() { return kHostile[below(uint32_t(kHostile.size()))]; }
  float unit() { return float(below(1 << 16)) / 65536.f; }
};

template <class T>
std::vector<T> hostile_values(Draw& draw, int64_t n) {
  std::vector<T> values(n);
  for (T& v : values) v = draw.below(2) ? T(draw.hostile()) : T(draw.unit());
  return values;
}

template <class Body>
void for_each(int64_t n, const Body& body) {
  for (int64_t i = 0; i < n; ++i) body(i);
}

// The first, the last and every third ray are empty.
std::vector<int64_t> ray_offsets(int64_t num_rays) {
  std::vector<int64_t> offsets{0};
  for (int64_t r = 0; r < num_rays; ++r) offsets.push_back(offsets.back() + (r % 3 == 0 || r == num_rays - 1 ? 0 : r));
  return offsets;
}

// ------------------------------------------------------------------------------------- occupancy and marching

struct Box {
  float center, half;
};

struct Grid {
  OccupancyGrid grid{};
  std::vector<uint64_t> cells, blocks;
  std::vector<uint8_t> empty;

  // Boxes one around the other; a bit is set where its cell's number is no multiple of `sparsity`.
  Grid(const std::vector<Box>& boxes, const int (&resolution)[3], int side, int64_t sparsity) {
    const int64_t levels = int64_t(boxes.size()), cubes = int64_t(side) * side * side;
    const auto flags = std::make_unique<bool[]>(levels * cubes);
    for (int64_t i = 0; i < levels * cubes; ++i) {
      const int64_t place = i % cubes;
      const int64_t cell[3] = {place / side / side, place / side % side, place % side};
      flags[i] = place % sparsity != 0;
      for (int a = 0; a < 3; ++a) flags[i] = flags[i] && cell[a] < resolution[a];
    }
    cells.resize(levels * cubes / 64);
    blocks.resize(cells.size() / 64);
    empty.resize(cells.size());
    const auto any = std::make_unique<bool[]>(cells.size());
    for_each(int64_t(cells.size()), PackCells{flags.get(), side, cells.data(), any.get()});
    for_each(int64_t(blocks.size()), PackBlocks{any.get(), side / 4, blocks.data(), empty.data()});
    grid.bits = {cells.data(), blocks.data(), empty.data()};
    grid.num_levels = int(levels);
    grid.side = side;
    for (int a = 0; a < 3; ++a) {
      grid.resolution[a] = resolution[a];
      for (int level = 0; level < grid.num_levels; ++level) {
        grid.center[level][a] = boxes[level].center;
        grid.half[level][a] = boxes[level].half;
        grid.inverse[level][a] = 1.f / boxes[level].half;
      }
    }
  }
};

// Slices of time of a grid, in each of which other cubes of cells hold anything.
struct Slices {
  static constexpr int kNum = 3;
  OccupancyGrid grid;
  std::vector<uint64_t> cells, blocks;
  std::vector<uint8_t> empty;

  explicit Slices(const Grid& whole)
      : grid(whole.grid), cells(kNum * whole.cells.size()), blocks(kNum * whole.blocks.size()), empty(cells.size()) {
    const int64_t cubes = 8 * int64_t(cells.size());
    const auto live = std::make_unique<bool[]>(cubes), any = std::make_unique<bool[]>(cells.size());
    for (int64_t i = 0; i < cubes; ++i) live[i] = i % 5 < 2;
    const SliceBits slice{whole.cells.data(), live.get(), grid.num_levels, grid.side, cells.data(), any.get()};
    for_each(int64_t(cells.size()), slice);
    for_each(int64_t(blocks.size()), PackBlocks{any.get(), grid.side / 4, blocks.data(), empty.data()});
    grid.bits = {cells.data(), blocks.data(), empty.data()};
  }
};

std::vector<Grid> hostile_grids() {
  std::vector<Grid> grids;
  grids.emplace_back(std::vector<Box>{{0.f, 1.f}}, (const int[3]){16, 16, 16}, 16, 2);
  grids.emplace_back(std::vector<Box>{{0.f, 1.f}}, (const int[3]){17, 1, 31}, 32, 1000000);
  grids.emplace_back(std::vector<Box>{{0.f, 1.f}, {0.f, 2.f}, {0.1f, 4.f}}, (const int[3]){16, 16, 16}, 16, 3);
  grids.emplace_back(std::vector<Box>{{0.f, 0.f}}, (const int[3]){16, 16, 16}, 16, 7);
  grids.emplace_back(std::vector<Box>{{1e30f, 1e30f}, {0.f, 3e38f}}, (const int[3]){16, 16, 16}, 16, 7);
  grids.emplace_back(std::vector<Box>{{kNan, 1.f}, {0.f, kInf}}, (const int[3]){16, 16, 16}, 16, 7);
  grids.emplace_back(std::vector<Box>{}, (const int[3]){16, 16, 16}, 16, 7);
  return grids;
}

struct HostileRays {
  std::vector<float> origins, directions, near, far, jitter;

  void add(const float (&o)[3], const float (&d)[3], float near_, float far_, float shift) {
    origins.insert(origins.end(), o, o + 3);
    directions.insert(directions.end(), d, d + 3);
    near.push_back(near_);
    far.push_back(far_);
    jitter.push_back(shift);
  }
};

HostileRays hostile_rays() {
  const float origins[][3] = {{0, 0, 0},          {-1, -1, -1}, {1, 1, 1},    {-3, 0, 0},       {0.5f, -1, 0.25f},
                              {1e30f, 0, -1e30f}, {kNan, 0, 0}, {0, kInf, 0}, {FLT_MAX, 1, -2}, {-0.f, 1e-45f, 3}};
  const float directions[][3] = {
      {1, 0, 0},      {0, -1, 0},           {0, 0, 1},     {0, 0, 0},    {0.577f, 0.577f, 0.577f}, {-0.6f, 0.8f, -0.f},
      {1e-45f, 1, 0}, {1e-30f, -1e-30f, 1}, {1e30f, 0, 0}, {kNan, 0, 1}, {kInf, -kInf, 0},         {kNan, kNan, kNan}};
  const float ranges[][2] = {{0, 10},    {0, kInf},     {-kInf, kInf},       {5, 1}, {kNan, 1}, {0, kNan},
                             {0, 1e30f}, {1e30f, kInf}, {-FLT_MAX, FLT_MAX}, {2, 2}};
  const float jitters[] = {0.f, 0.5f, 1.f, kNan};
  HostileRays rays;
  for (const auto& o : origins)
    for (const auto& d : directions)
      for (const auto& range : ranges)
        for (const float jitter : jitters) rays.add(o, d, range[0], range[1], jitter);
  return rays;
}

// Returns how many samples there were.
int64_t check_march(const MarchRays& rays, int64_t num_rays) {
  std::vector<int64_t> counts(num_rays), offsets(num_rays + 1);
  std::vector<float> ends(num_rays);
  for_each(num_rays, MarchCount{rays, counts.data(), ends.data()});
  for (int64_t r = 0; r < num_rays; ++r) {
    CHECK(counts[r] >= 0 && counts[r] <= rays.settings.max_samples && counts[r] <= rays.settings.max_steps);
    offsets[r + 1] = offsets[r] + counts[r];
  }
  const int64_t total = offsets.back();
  std::vector<float> starts(total, -7.f), stops(total, -7.f);
  std::vector<int64_t> indices(total, -7);
  for_each(num_rays, MarchWrite{rays, offsets.data(), starts.data(), stops.data(), indices.data()});
  for (int64_t r = 0; r < num_rays; ++r)
    for (int64_t i = offsets[r]; i < offsets[r + 1]; ++i) {
      CHECK(indices[i] == r);        // as many are written as were counted
      CHECK(starts[i] <= stops[i]);  // and none of them is NaN
      CHECK(i == offsets[r] || stops[i - 1] <= starts[i]);
    }
  return total;
}

// The way that a GPU goes through boxes within each other, which reads no bits but the grid's. Returns how many samples
// there were.
template <class Steps>
int64_t check_box_march(const MarchRays& rays, int64_t num_rays, bool several) {
  const MarchSettings& m = rays.settings;
  const OccupancyGrid& g = rays.grid;
  const int n = g.side / 16;
  const BoxBlocks blocks(g.side);
  const Steps steps(m);
  OccupiedBlocks occupied = OccupiedBlocks::none();
  for (int i = 0; i < n * n * n; ++i) occupied.add(g.bits.blocks[i], i / (n * n), i / n % n, i % n);
  if (rays.slices) occupied = OccupiedBlocks::all(g);
  int64_t total = 0;
  for (int64_t r = 0; r < num_rays; ++r) {
    BoxMarch ray;
    const auto on = steps.of(rays.near[r], rays.jitter[r], m);
    const float *o = rays.origins + 3 * r, *d = rays.directions + 3 * r;
    const int begin = int(r % 3 ? 0 : r % (m.max_steps + 1));
    const bool meets = ray.enter(g, m, steps, on, o, d, rays.near[r], rays.far[r], begin);
    CHECK(meets || (ray.next == ray.last && ray.last == ray.behind));
    if (meets && !several) ray.keep_to(occupied, steps, on);
    CHECK(ray.next >= ray.last || ray.next >= kNumber + begin);
    CHECK(ray.last <= ray.behind && ray.behind <= kNumber + m.max_steps);
    int level = several ? g.num_levels - 1 : 0;
    while (meets && ray.next < ray.last) {
      if (several && !ray.go_on(g, m, steps, on, o, d, level)) break;
      CHECK(ray.next < ray.last && ray.last <= ray.behind);
      ray.look_from_here(rays.bits(r), level, blocks);
      while (ray.next < ray.last) {
        const auto empty = [&](uint32_t block) -> int { return ray.bits.empty[block]; };
        const auto [occupied_there, until] = ray.look(blocks, steps, on, empty);
        CHECK(until > ray.next && until <= ray.last);
        if (occupied_there) total += until - ray.next;
        ray.next = until;
      }
      if (several) ray.last = ray.behind;
    }
  }
  return total;
}

void march_hostile_rays() {
  const HostileRays rays = hostile_rays();
  const MarchSettings settings[] = {{0.05f, 0.f, 64, 1024}, {0.05f, 0.01f, 64, 8},  {0.f, 0.f, 100, 50},
                                    {1e-38f, 0.f, 64, 64},  {1e30f, 1e-3f, 64, 64}, {kNan, 0.f, 64, 64},
                                    {kInf, 0.01f, 64, 64},  {0.05f, kNan, 64, 64},  {0.05f, 1e30f, 64, 64},
                                    {0.05f, 0.f, 0, 1024},  {0.05f, 0.f, 64, 0},    {-1.f, 0.f, 100, 50}};
  int64_t num_samples = 0, num_in_box = 0;
  const int64_t num_rays = int64_t(rays.near.size());
  std::vector<int32_t> in_turn(num_rays);
  for (int64_t r = 0; r < num_rays; ++r) in_turn[r] = int32_t(r % Slices::kNum);
  for (const Grid& whole : hostile_grids()) {
    const Slices slices(whole);
    for (const MarchSettings& how : settings)
      for (const bool sliced : {false, true}) {
        const MarchRays march{sliced ? slices.grid : whole.grid,
                              how,
                              rays.origins.data(),
                              rays.directions.data(),
                              rays.near.data(),
                              rays.far.data(),
                              rays.jitter.data(),
                              sliced ? in_turn.data() : nullptr,
                              sliced ? Slices::kNum : 1};
        num_samples += check_march(march, num_rays);
        if (!marches_by_boxes(whole.grid, how)) continue;
        if (how.cone_angle > 0)
          num_in_box += check_box_march<GrowingSteps>(march, num_rays, true);
        else
          for (const bool several : {false, true})
            if (several || whole.grid.num_levels == 1)
              num_in_box += check_box_march<EvenSteps>(march, num_rays, several);
      }
  }
  CHECK(num_samples > 10000 && num_in_box > 1000);  // not all of it is nonsense
}

void look_from_hostile_cameras() {
  Draw draw;
  const int64_t num_cameras = 200;
  const int mask_width = 5, mask_height = 3;
  const auto poses = hostile_values<float>(draw, 12 * num_cameras);
  const auto intrinsics = hostile_values<float>(draw, 4 * num_cameras);
  const auto sizes = hostile_values<float>(draw, 2 * num_cameras);
  const std::vector<int32_t> counts(num_cameras * (mask_width + 1) * (mask_height + 1));
  for (const Grid& grid : hostile_grids())
    for (const int32_t* masks : {counts.data(), static_cast<const int32_t*>(nullptr)})
      for (const float scale : kHostile)
        for (const float near : {0.1f, kNan}) {
          const int* n = grid.grid.resolution;
          const int64_t num_cells = int64_t(grid.grid.num_levels) * n[0] * n[1] * n[2];
          const auto visible = std::make_unique<bool[]>(num_cells);
          const VisibleCells body{poses.data(), intrinsics.data(), sizes.data(), masks, mask_width,   mask_height,
                                  scale,        num_cameras,       grid.grid,    near,  visible.get()};
          for (int64_t i = 0; i < num_cells; i += 97) body(i);
        }
}

// ------------------------------------------------------------------------------------------- along packed rays

template <class T>
void composite_hostile_rays() {
  Draw draw;
  for (const int64_t num_rays : {0, 1, 40})
    for (const int64_t num_channels : {0, 1, 5}) {
      const auto offsets = ray_offsets(num_rays);
      const int64_t n = offsets.back();
      const auto density = hostile_values<T>(draw, n), channels = hostile_values<T>(draw, n * num_channels);
      const auto starts = hostile_values<T>(draw, n), ends = hostile_values<T>(draw, n);
      const PackedRays<T> in{density.data(), channels.data(), starts.data(), ends.data(),
                             offsets.data(), num_channels,    nullptr,       0};
      std::vector<T> out(num_rays * num_channels), opacity(num_rays), depth(num_rays), spread(num_rays), weights(n);
      std::vector<T> alphas(n), arriving(n);
      for_each(num_rays, CompositeForward<T>{in, out.data(), opacity.data(), depth.data(), spread.data(),
                                             weights.data(), alphas.data(), arriving.data()});
      const auto v_out = hostile_values<T>(draw, num_rays * num_channels), v_rays = hostile_values<T>(draw, num_rays);
      const auto v_weights = hostile_values<T>(draw, n);
      std::vector<T> v_density(n), v_channels(n * num_channels);
      for (const T* v_samples : {v_weights.data(), static_cast<const T*>(nullptr)})
        for_each(num_rays, CompositeBackward<T>{in, weights.data(), arriving.data(), opacity.data(), depth.data(),
                                                v_out.data(), v_rays.data(), v_rays.data(), v_rays.data(), v_samples,
                                                v_samples, v_samples, v_density.data(), v_channels.data()});
      for (int64_t r = 0; r < num_rays; ++r) CHECK(offsets[r] < offsets[r + 1] || opacity[r] == 0);

      const auto visible = std::make_unique<bool[]>(n);
      const T least[] = {T(draw.hostile()), T(draw.hostile())};
      std::vector<T> leaving(num_rays), shares(AlphaShares<T>::kParts);
      for (const T* light : {v_rays.data(), static_cast<const T*>(nullptr)})
        for_each(num_rays, VisibleSamples<T>{density.data(), starts.data(), ends.data(), offsets.data(), least, T(1e-4),
                                             light, visible.get(), leaving.data()});
      for_each(AlphaShares<T>::kParts,
               AlphaShares<T>{density.data(), starts.data(), ends.data(), offsets.data(), num_rays, shares.data()});

      const WeightedIntervals<T> intervals{density.data(), starts.data(), ends.data(), offsets.data()};
      for_each(num_rays, DistortionForward<T>{intervals, spread.data()});
      for_each(num_rays, DistortionBackward<T>{intervals, v_rays.data(), v_density.data()});
    }
}

template <class T>
void scan_hostile_chunks() {
  Draw draw;
  const int64_t limits[] = {0, 1, 5, -1, 29, 30, 31, INT64_MAX, INT64_MIN};
  for (const int64_t n : {0, 30}) {
    std::vector<int64_t> starts, counts;
    for (const int64_t start : limits)
      for (const int64_t count : limits) starts.push_back(start), counts.push_back(count);
    const auto values = hostile_values<T>(draw, n), v_out = hostile_values<T>(draw, n);
    std::vector<T> out(n);
    const Chunks chunks{starts.data(), counts.data(), 1, 1, n};
    for (const bool inclusive : {false, true}) {
      for (const bool reverse : {false, true})
        for_each(int64_t(starts.size()), ScanSum<T>{chunks, values.data(), inclusive, reverse, out.data()});
      for_each(int64_t(starts.size()), ScanProdForward<T>{chunks, values.data(), inclusive, out.data()});
      for_each(int64_t(starts.size()), ScanProdBackward<T>{chunks, values.data(), v_out.data(), inclusive, out.data()});
    }
    for (const int64_t num_columns : {1, 3}) {
      const int64_t num_samples = n / num_columns, num_rays = 4;
      std::vector<int64_t> rays(num_samples);
      for (int64_t& ray : rays) ray = limits[draw.below(9)];
      std::vector<T> sums(num_rays * num_columns);
      for (const bool in_order : {false, true})
        for_each(num_rays * num_columns,
                 RaySums<T>{values.data(), rays.data(), &in_order, num_samples, num_columns, sums.data()});
    }
  }
}

// ----------------------------------------------------------------------------------------- histograms along rays

template <class T>
void draw_from_hostile_histograms() {
  Draw draw;
  const int64_t num_rays = 60;
  for (const int64_t num_bins : {0, 1, 7})
    for (const int64_t num_others : {0, 1, 9}) {
      const auto edges = hostile_values<T>(draw, num_rays * (num_bins + 1));
      const auto weights = hostile_values<T>(draw, num_rays * num_bins), jitter = hostile_values<T>(draw, num_rays);
      const auto other_edges = hostile_values<T>(draw, num_rays * (num_others + 1));
      const auto other_weights = hostile_values<T>(draw, num_rays * num_others);
      std::vector<T> out(num_rays * (num_others + 1)), loss(num_rays), v_others(num_rays * num_others);
      for (const float padding : kHostile)
        for_each(num_rays, InvertCdf<T>{edges.data(), weights.data(), jitter.data(), num_bins, num_others, T(padding),
                                        out.data()});
      const Interlevel<T> both{edges.data(),         weights.data(), other_edges.data(),
                               other_weights.data(), num_bins,       num_others};
      for_each(num_rays, InterlevelForward<T>{both, loss.data()});
      for_each(num_rays, InterlevelBackward<T>{both, jitter.data(), v_others.data()});
    }
}

template <class T>
void sample_hostile_distributions() {
  Draw draw;
  const int64_t sizes[] = {0, 1, 2, 6};
  std::vector<int64_t> chunks, sample_chunks, interval_chunks;
  int64_t num_edges = 0, num_samples = 0, num_bounds = 0, num_rays = 0;
  for (int repeat = 0; repeat < 20; ++repeat)
    for (const int64_t edges : sizes)
      for (const int64_t samples : sizes) {
        const int64_t bounds = samples ? samples + 1 : 0;
        chunks.insert(chunks.end(), {num_edges, edges});
        sample_chunks.insert(sample_chunks.end(), {num_samples, samples});
        interval_chunks.insert(interval_chunks.end(), {num_bounds, bounds});
        num_edges += edges, num_samples += samples, num_bounds += bounds, ++num_rays;
      }
  const auto edges = hostile_values<T>(draw, num_edges), cdf = hostile_values<T>(draw, num_edges);
  const auto jitter = hostile_values<T>(draw, num_rays);
  std::vector<T> samples(num_samples), bounds(num_bounds);
  for_each(num_rays, SampleImportance<T>{edges.data(), cdf.data(), chunks.data(), jitter.data(), sample_chunks.data(),
                                         interval_chunks.data(), samples.data(), bounds.data()});
  std::vector<int64_t> left(num_samples), right(num_samples);
  for_each(num_rays, SearchEdges<T>{edges.data(), chunks.data(), samples.data(), sample_chunks.data(), num_edges,
                                    left.data(), right.data()});
  for (int64_t i = 0; i < num_samples; ++i) CHECK(0 <= left[i] && left[i] <= right[i] && right[i] < num_edges);
}

// --------------------------------------------------------------------------------------------------- per sample

template <class T, int F, int D>
void encode_hostile_positions(Draw& draw) {
  HashLevels levels{};
  levels.num_axes = D;
  const uint32_t resolutions[] = {1, 2, 1000, 1 << 24};
  int64_t entries = 0;
  for (const uint32_t size : {2u, 81u, 64u}) {  // hashed, stored in order where it fits, and hashed
    for (int a = 0; a < D; ++a) levels.resolution[levels.num_levels][a] = size == 81 ? 2 : resolutions[draw.below(4)];
    levels.size[levels.num_levels] = size;
    levels.offset[levels.num_levels++] = entries;
    entries += size;
  }
  const int64_t n = 400;
  const auto positions = hostile_values<T>(draw, n * D), v = hostile_values<T>(draw, n * levels.num_levels * F);
  const std::vector<T> table(entries * F, T(0.5));
  std::vector<T> features(n * levels.num_levels * F), v_table(entries * F), v_positions(n * D);
  const HashEncodeForward<T, F, D> forward{levels, positions.data(), table.data(), features.data()};
  const HashEncodeBackward<T, F, D> backward{levels,   positions.data(), table.data(),
                                             v.data(), v_table.data(),   v_positions.data()};
  for (int level = 0; level < levels.num_levels; ++level)
    for (int64_t i = 0; i < n; ++i) {
      forward(i, level);
      backward(i, level);
    }
  for_each(n, HashPositionsBackward<T, F, D>{backward});
  for (const T feature : features) CHECK(feature > T(0.49) && feature < T(0.51));  // weights sum to one
}

template <class T>
void encode_hostile_positions() {
  Draw draw;
  for (int repeat = 0; repeat < 5; ++repeat) {
    encode_hostile_positions<T, 1, 3>(draw);
    encode_hostile_positions<T, 2, 3>(draw);
    encode_hostile_positions<T, 4, 3>(draw);
    encode_hostile_positions<T, 8, 3>(draw);
    encode_hostile_positions<T, 1, 4>(draw);
    encode_hostile_positions<T, 2, 4>(draw);
    encode_hostile_positions<T, 4, 4>(draw);
    encode_hostile_positions<T, 8, 4>(draw);
  }
}

template <class T>
void turn_and_fold_hostile_points() {
  Draw draw;
  const int64_t n = 3000;
  const auto points = hostile_values<T>(draw, 3 * n), v = hostile_values<T>(draw, 16 * n);
  std::vector<T> features(16 * n), out(3 * n);
  for (int degree = 1; degree <= kMaxShDegree; ++degree) {
    for_each(n, ShForward<T>{points.data(), degree, features.data()});
    for_each(n, ShBackward<T>{points.data(), v.data(), degree, out.data()});
  }
  const std::vector<int64_t> rays(n, 1);
  for (int folding = kUnfolded; folding <= kCube; ++folding)
    for_each(n, UnitPoints<T>{points.data(), v.data(), points.data(), v.data(), rays.data(), points.data() + 9, folding,
                              out.data()});
  for (const bool infinity_norm : {false, true}) {
    for_each(n, ContractBackward<T>{points.data(), v.data(), infinity_norm, out.data()});
    for_each(n, ContractForward<T>{points.data(), infinity_norm, out.data()});
    for (int64_t i = 0; i < n; ++i) {
      bool finite = true;
      for (int a = 0; a < 3; ++a) finite = finite && std::isfinite(points[3 * i + a]);
      for (int a = 0; a < 3 && finite; ++a) CHECK(out[3 * i + a] >= T(-2) && out[3 * i + a] <= T(2));
    }
  }
}

template <class T>
void step_on_hostile_gradients() {
  Draw draw;
  const int64_t n = 3000;
  auto parameter = hostile_values<T>(draw, n), mean = hostile_values<T>(draw, n), variance = hostile_values<T>(draw, n);
  auto gradient = hostile_values<T>(draw, n);
  for (int64_t i = 0; i < n; i += 3) gradient[i] = 0;
  const auto before = parameter;
  for (const bool skip : {true, false})
    for (const float decay : {0.f, 1e30f, kNan}) {
      const AdamEntry<T> body{parameter.data(), gradient.data(), mean.data(), variance.data(), T(1e-2), T(0.9),
                              T(0.99),          T(1e-15),        T(1),        T(decay),        skip};
      for_each(n, body);
      for (int64_t i = 0; i < n && skip; i += 3)
        CHECK(parameter[i] == before[i] || (std::isnan(parameter[i]) && std::isnan(before[i])));
    }
}

template <class T>
void compare_hostile_colors() {
  Draw draw;
  const int64_t n = 500;
  const auto colors = hostile_values<T>(draw, 3 * n), others = hostile_values<T>(draw, 3 * n);
  const auto opacity = hostile_values<T>(draw, n);
  std::vector<T> over(3 * n), share(n), v(3 * n);
  for_each(n, OverBackgroundForward<T>{colors.data(), opacity.data(), others.data(), over.data()});
  for_each(n, OverBackgroundBackward<T>{others.data(), colors.data(), share.data()});
  const std::unique_ptr<bool[]> whole(new bool[n]);
  for (int64_t r = 0; r < n; ++r) whole[r] = draw.below(2);
  for (const int64_t num_whole : {int64_t(0), n / 2})
    for (const T delta : {T(0.1), T(kInf)}) {
      for_each(n,
               ColorError<T>{colors.data(), others.data(), whole.get(), &num_whole, n, delta, share.data(), v.data()});
      for (int64_t i = 0; i < 3 * n; ++i) CHECK(whole[i / 3] || (v[i] == T(0) && share[i / 3] == T(0)));
      for (int64_t i = 0; i < 3 * n; ++i) CHECK(!(v[i] > delta) && !(v[i] < -delta));
    }
}

template <class T>
void run_both_kinds_of_numbers() {
  compare_hostile_colors<T>();
  composite_hostile_rays<T>();
  scan_hostile_chunks<T>();
  draw_from_hostile_histograms<T>();
  sample_hostile_distributions<T>();
  encode_hostile_positions<T>();
  turn_and_fold_hostile_points<T>();
  step_on_hostile_gradients<T>();
}

int main() {
  march_hostile_rays();
  look_from_hostile_cameras();
  run_both_kinds_of_numbers<float>();
  run_both_kinds_of_numbers<double>();
  std::printf("ok\n");
}
