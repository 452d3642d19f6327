#include "../operators/march.h"

#include <algorithm>
#include <memory>

#include "backend.h"
#include "isa.h"
#include "march.h"
#include "ranges.h"

namespace nerftrain {

namespace {

// Samples of consecutive rays, as they were marched.
struct Piece {
  int64_t begin, end;  // of the rays
  int64_t num_samples;
  std::unique_ptr<float[]> t_starts, t_ends;
};

constexpr int64_t kRoom = 1 << 15;  // samples of a piece: what stays in the cache until it is copied

// Cells [low, high) around all that are occupied, with at least one empty cell between, lest rounding matter; none
// where none is.
struct OccupiedCells {
  int low[3] = {1, 1, 1}, high[3] = {0, 0, 0};
};

// Blocks are 4^3 cells, a bit each; words are 4^3 blocks. Words that lie in what has been found need no look at their
// bits.
OccupiedCells occupied_cells(const OccupancyGrid& grid, int num_slices) {
  OccupiedCells found;
  const int groups = grid.side / 16, in_slice = groups * groups * groups;
  for (int i = 0; i < num_slices * in_slice; ++i) {
    const uint64_t word = grid.bits.blocks[i];
    if (!word) continue;
    const int at[3] = {i % in_slice / (groups * groups), i / groups % groups, i % groups};
    bool within_found = true;
    for (int a = 0; a < 3; ++a) within_found &= found.low[a] < at[a] * 16 && found.high[a] > (at[a] + 1) * 16;
    for (int bit = 0; bit < 64 && !within_found; ++bit) {
      if (!(word >> bit & 1)) continue;
      const int within[3] = {bit >> 4, bit >> 2 & 3, bit & 3};
      const bool first = found.low[0] > found.high[0];
      for (int a = 0; a < 3; ++a) {
        const int cell = (at[a] * 4 + within[a]) * 4;
        found.low[a] = first ? cell - 1 : std::min(found.low[a], cell - 1);
        found.high[a] = first ? cell + 5 : std::max(found.high[a], cell + 5);
      }
    }
  }
  return found;
}

}  // namespace

std::optional<OneBox> one_box(const MarchRays& rays) {
  const OccupancyGrid& grid = rays.grid;
  const MarchSettings& m = rays.settings;
  const bool equal_steps = m.step > 0.f && m.cone_angle <= 0.f && m.max_samples > 0;
  if (!equal_steps || grid.num_levels != 1) return {};
  if (rays.num_slices * grid.words_of_slice() >= 1 << 30) return {};
  const OccupiedCells occupied = occupied_cells(grid, rays.num_slices);
  OneBox box{grid.bits,
             grid.side / 4,
             grid.side / 16,
             int(grid.words_of_slice()),
             int(grid.groups_of_slice()),
             {},
             {},
             {},
             {},
             {},
             {},
             {},
             {}};
  for (int a = 0; a < 3; ++a) {
    box.resolution[a] = grid.resolution[a];
    box.center[a] = grid.center[0][a];
    box.half[a] = grid.half[0][a];
    box.inverse[a] = grid.inverse[0][a];
    box.unit[a] = float(grid.resolution[a]);
    box.share[a] = 2.f / float(grid.resolution[a]);
    box.low[a] = box.center[a] + (float(occupied.low[a]) * box.share[a] - 1.f) * box.half[a];
    box.high[a] = box.center[a] + (float(occupied.high[a]) * box.share[a] - 1.f) * box.half[a];
  }
  return box;
}

const MarchKernels& march_kernels() { return kernels_for(0, march_portable, march_avx2, march_avx512); }

namespace {

std::vector<Piece> march_range(const MarchRays& rays, const OneBox* box, int64_t begin, int64_t end, int64_t* counts,
                               float* ends) {
  std::vector<Piece> pieces;
  int64_t room = kRoom;
  while (begin < end) {
    std::unique_ptr<float[]> t_starts(new float[room + kMarchSlack]), t_ends(new float[room + kMarchSlack]);
    const int64_t next =
        march_kernels().march(rays, box, begin, end, room, t_starts.get(), t_ends.get(), counts + begin, ends + begin);
    if (next < end) room = std::max(kRoom, counts[next]);
    if (next == begin) continue;
    int64_t num_samples = 0;
    for (int64_t r = begin; r < next; ++r) num_samples += counts[r];
    pieces.push_back({begin, next, num_samples, std::move(t_starts), std::move(t_ends)});
    begin = next;
  }
  return pieces;
}

std::vector<Piece> march_pieces(const MarchRays& rays, int64_t num_rays, int64_t* counts, float* ends) {
  constexpr int64_t kRays = 256;
  const int64_t num_ranges = (num_rays + kRays - 1) / kRays;
  std::vector<std::vector<Piece>> ranges(num_ranges);
  const std::optional<OneBox> box = one_box(rays);
  share(num_ranges, [&](int64_t i, int64_t) {
    ranges[i] = march_range(rays, box ? &*box : nullptr, i * kRays, std::min((i + 1) * kRays, num_rays), counts, ends);
  });
  std::vector<Piece> pieces;
  for (auto& range : ranges) std::move(range.begin(), range.end(), std::back_inserter(pieces));
  return pieces;
}

}  // namespace

using MarchedRays = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

MarchedRays march(const Tensor& origins, const Tensor& directions, const Tensor& near, const Tensor& far,
                  const Tensor& jitter, const Tensor& slices, const Tensor& cells, const Tensor& blocks,
                  std::vector<double> boxes, std::vector<int64_t> resolution, int64_t side, double step,
                  double cone_angle, int64_t max_steps, int64_t max_samples) {
  const int64_t num_rays = origins.size(0);
  const MarchRays rays = march_rays(origins, directions, near, far, jitter, slices, cells, blocks, boxes, resolution,
                                    side, step, cone_angle, max_steps, max_samples);
  Tensor offsets = make(origins, {num_rays + 1}, ScalarType::Long), ends = make(origins, {num_rays});
  int64_t* first = write<int64_t>(offsets);
  const std::vector<Piece> pieces = march_pieces(rays, num_rays, first + 1, write<float>(ends));
  first[0] = 0;
  for (int64_t r = 0; r < num_rays; ++r) first[r + 1] += first[r];
  const int64_t num_samples = first[num_rays];
  Tensor t_starts = make(origins, {num_samples}), t_ends = make(origins, {num_samples});
  Tensor ray_indices = make(origins, {num_samples}, ScalarType::Long);
  float *starts = write<float>(t_starts), *stops = write<float>(t_ends);
  int64_t* indices = write<int64_t>(ray_indices);
  torch::stable::parallel_for(0, int64_t(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Piece& piece = pieces[i];
      std::copy_n(piece.t_starts.get(), piece.num_samples, starts + first[piece.begin]);
      std::copy_n(piece.t_ends.get(), piece.num_samples, stops + first[piece.begin]);
      for (int64_t r = piece.begin; r < piece.end; ++r) std::fill(indices + first[r], indices + first[r + 1], r);
    }
  });
  return {t_starts, t_ends, ray_indices, offsets, ends};
}

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("pack_grid", TORCH_BOX(&nerftrain::pack_grid<nerftrain::Cpu>));
  m.impl("slice_grid", TORCH_BOX(&nerftrain::slice_grid<nerftrain::Cpu>));
  m.impl("visible_cells", TORCH_BOX(&nerftrain::visible_cells<nerftrain::Cpu>));
  m.impl("march_count", TORCH_BOX(&nerftrain::march_count<nerftrain::Cpu>));
  m.impl("march_write", TORCH_BOX(&nerftrain::march_write<nerftrain::Cpu>));
  m.impl("march", TORCH_BOX(&nerftrain::march));
  m.impl("visible_samples", TORCH_BOX(&nerftrain::visible_samples<nerftrain::Cpu>));
  m.impl("alpha_shares", TORCH_BOX(&nerftrain::alpha_shares<nerftrain::Cpu>));
}
