// Instant-NGP's densities at packed samples, front to back until nothing behind them can be seen: points, encodings,
// density MLP and transmittance for a pool of rays at a time. The pool takes a new ray for each that ends, so batches
// stay full however few samples of a ray are asked for at once, and nothing in between leaves the cache.
#include <algorithm>

#include "../common/contract.h"
#include "../operators/hash_encoding.h"
#include "composite.h"
#include "hash.h"
#include "isa.h"
#include "ngp_shape.h"
#include "ranges.h"

namespace nerftrain {

constexpr int64_t kPool = 256;        // rays
constexpr int64_t kBatch = 4 * kPool;  // samples
constexpr int64_t kMostOfARay = 32;    // of these, where few rays are left
constexpr float kUnseen = -1.f;        // the density of a sample that was not asked for

// A hash encoding, its table in float32 or in half precision.
struct StoredGrid {
  HashLevels levels;
  int num_features;  // per level
  const float* table;
  const Half* half;

  StoredGrid(int64_t num_axes, const Tensor& stored, const std::vector<int64_t>& resolutions,
             const std::vector<int64_t>& offsets)
      : levels(hash_levels(num_axes, resolutions, offsets)), num_features(int(stored.size(1))), table(), half() {
    if (num_features != 2 && num_features != 4 && num_features != 8)
      throw std::runtime_error("visit_ngp: a table has 2, 4 or 8 features per level");
    if (stored.scalar_type() == ScalarType::Half)
      half = static_cast<const Half*>(stored.const_data_ptr());
    else
      table = read<float>(stored);
  }

  int width() const { return levels.num_levels * num_features; }

  void encode(const HashKernels& kernels, const float* positions, int64_t num, float* features) const {
    if (half)
      kernels.forward_half(num_features, levels, positions, half, features, 0, num);
    else
      kernels.forward(num_features, levels, positions, table, features, 0, num);
  }
};

struct VisitNgp {
  const float* origins;     // [R][3]
  const float* directions;  // [R][3]
  const float* times;       // [R] or none: the field is static
  const float* t_starts;    // [N]
  const float* t_ends;      // [N]
  const int64_t* offsets;   // [R + 1]
  const StoredGrid& still;
  const StoredGrid* moving;  // of space and time, or none
  NgpShape shape;
  NgpWeights weights;
  float low[3], high[3];
  int contraction;  // 0: none; 1: of the Euclidean norm; 2: of the largest coordinate
  float early_stop_eps;
  const HashKernels& hash;
  const NgpKernels& ngp;
  const CompositeKernels& composite;
  float* density;        // [N]
  int64_t* num;          // [R]
  float* transmittance;  // [R]
  float* sum_alpha;      // [R]

  // A ray on its way.
  struct Walk {
    int64_t ray, next, last, now;  // samples next to come, behind the last one, and taken in this round
    float transmittance, sum_alpha;
  };

  // What one thread works in.
  struct Batch {
    float *positions, *moments, *features, *parts, *starts, *ends, *sigma, *kept, *scratch;

    static int64_t floats(const VisitNgp& visit) {
      const int64_t widths = visit.still.width() + (visit.moving ? visit.moving->width() : 0);
      return kBatch * (3 + 4 + 2 * widths + 4) + visit.ngp.scratch_floats(visit.shape);
    }

    Batch(const VisitNgp& visit, float* at) {
      const int64_t widths = visit.still.width() + (visit.moving ? visit.moving->width() : 0);
      const auto take = [&](int64_t floats) {
        float* taken = at;
        at += kBatch * floats;
        return taken;
      };
      positions = take(3), moments = take(4), features = take(widths), parts = take(widths);
      starts = take(1), ends = take(1), sigma = take(1), kept = take(1);
      scratch = at;
    }
  };

  // A position scaled to 0..1, where all of space is folded into that if there is a contraction.
  void place(int64_t ray, float start, float end, float* to) const {
    const float middle = (start + end) * 0.5f;
    const float *origin = origins + 3 * ray, *direction = directions + 3 * ray;
    float around[3];
    for (int a = 0; a < 3; ++a) {
      const float x = origin[a] + middle * direction[a];
      to[a] = (x - low[a]) / (high[a] - low[a]);
      around[a] = (x * 2 - (low[a] + high[a])) / (high[a] - low[a]);
    }
    if (!contraction) return;
    ContractForward<float>{around, contraction == 2, to}(0);
    for (int a = 0; a < 3; ++a) to[a] = to[a] * 0.25f + 0.5f;
  }

  // Collects the samples of a round, at most so many of each ray.
  int64_t gather(Walk* pool, int64_t active, int64_t most, const Batch& batch) const {
    int64_t n = 0;
    for (Walk* walk = pool; walk < pool + active; ++walk) {
      walk->now = std::min(most, walk->last - walk->next);
      for (int64_t i = walk->next; i < walk->next + walk->now; ++i, ++n) {
        batch.starts[n] = t_starts[i];
        batch.ends[n] = t_ends[i];
        place(walk->ray, t_starts[i], t_ends[i], batch.positions + 3 * n);
        if (!moving) continue;
        std::copy_n(batch.positions + 3 * n, 3, batch.moments + 4 * n);
        batch.moments[4 * n + 3] = times[walk->ray];
      }
    }
    return n;
  }

  // Fills sigma, none of it below zero, and what each sample lets through.
  void evaluate(int64_t n, const Batch& batch) const {
    still.encode(hash, batch.positions, n, moving ? batch.parts : batch.features);
    if (moving) {
      float* more = batch.parts + n * still.width();
      moving->encode(hash, batch.moments, n, more);
      const int64_t width = still.width(), more_width = moving->width();
      for (int64_t i = 0; i < n; ++i) {
        float* row = batch.features + i * (width + more_width);
        std::copy_n(batch.parts + i * width, width, row);
        std::copy_n(more + i * more_width, more_width, row + width);
      }
    }
    ngp.density(shape, weights, batch.features, batch.sigma, 0, n, batch.scratch);
    composite.run(batch.sigma, batch.starts, batch.ends, batch.kept, 0, n);
  }

  // Takes a round in: whether the ray goes on.
  bool take(Walk& walk, const float* sigma, const float* kept) const {
    for (int64_t i = 0; i < walk.now; ++i) {
      density[walk.next + i] = sigma[i];
      walk.transmittance *= kept[i];
      walk.sum_alpha += 1.f - kept[i];
    }
    walk.next += walk.now;
    return walk.next < walk.last && walk.transmittance >= early_stop_eps;
  }

  void finish(const Walk& walk) const {
    num[walk.ray] = walk.next - offsets[walk.ray];
    transmittance[walk.ray] = walk.transmittance;
    sum_alpha[walk.ray] = walk.sum_alpha;
    std::fill(density + walk.next, density + walk.last, kUnseen);
  }

  void rays(int64_t begin, int64_t end, float* room) const {
    const Batch batch(*this, room);
    Walk pool[kPool];
    int64_t active = 0;
    for (;;) {
      for (; active < kPool && begin < end; ++begin) {
        pool[active] = {begin, offsets[begin], offsets[begin + 1], 0, 1.f, 0.f};
        if (pool[active].next < pool[active].last)
          ++active;
        else
          finish(pool[active]);
      }
      if (!active) return;
      const int64_t n = gather(pool, active, std::min(kBatch / active, kMostOfARay), batch);
      evaluate(n, batch);
      int64_t left = 0, first = 0;
      for (int64_t a = 0; a < active; ++a) {
        const int64_t now = pool[a].now;
        if (take(pool[a], batch.sigma + first, batch.kept + first))
          pool[left++] = pool[a];
        else
          finish(pool[a]);
        first += now;
      }
      active = left;
    }
  }

  // The first ray of a part: parts have about as many samples each.
  int64_t first_ray(int64_t part, int64_t parts, int64_t num_rays) const {
    if (part == parts) return num_rays;
    return std::lower_bound(offsets, offsets + num_rays, offsets[num_rays] * part / parts) - offsets;
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> visit_ngp(
    const Tensor& origins, const Tensor& directions, const Tensor& times, const Tensor& t_starts, const Tensor& t_ends,
    const Tensor& offsets, const Tensor& table, std::vector<int64_t> resolutions, std::vector<int64_t> level_offsets,
    const Tensor& moving_table, std::vector<int64_t> moving_resolutions, std::vector<int64_t> moving_offsets,
    const Tensor& weights, std::vector<int64_t> widths, const Tensor& box, int64_t contraction, double early_stop_eps,
    int64_t lanes) {
  const int64_t num_rays = offsets.size(0) - 1, num_samples = t_starts.size(0);
  const StoredGrid still(3, table, resolutions, level_offsets);
  const bool moves = moving_table.numel() > 0;
  const StoredGrid moving = moves ? StoredGrid(4, moving_table, moving_resolutions, moving_offsets) : still;
  const float nothing = 0.f, *corners = read<float>(box);
  // Of the colour MLP nothing is used but its room.
  const NgpShape shape{mlp_shape(widths), mlp_shape({1, 1}), 1};
  if (shape.num_features() != still.width() + (moves ? moving.width() : 0))
    throw std::runtime_error("visit_ngp: the density MLP takes the encodings' features");
  Tensor density = make(t_starts, {num_samples}), num = make(offsets, {num_rays});
  Tensor transmittance = make(t_starts, {num_rays}), sum_alpha = make(t_starts, {num_rays});
  const VisitNgp visit{read<float>(origins),
                       read<float>(directions),
                       read_or_none<float>(times),
                       read<float>(t_starts),
                       read<float>(t_ends),
                       read<int64_t>(offsets),
                       still,
                       moves ? &moving : nullptr,
                       shape,
                       {read<float>(weights), &nothing},
                       {corners[0], corners[1], corners[2]},
                       {corners[3], corners[4], corners[5]},
                       int(contraction),
                       float(early_stop_eps),
                       kernels_for(0, hash_portable, hash_avx2, hash_avx512),
                       ngp_kernels(lanes),
                       kernels_for(0, composite_portable, composite_avx2, composite_avx512),
                       write<float>(density),
                       write<int64_t>(num),
                       write<float>(transmittance),
                       write<float>(sum_alpha)};
  const Ranges ranges(num_samples);
  const int64_t room = VisitNgp::Batch::floats(visit);
  Tensor rooms = make(t_starts, {ranges.parts, room});
  float* at = write<float>(rooms);
  ranges.each([&](int64_t part, int64_t, int64_t) {
    visit.rays(visit.first_ray(part, ranges.parts, num_rays), visit.first_ray(part + 1, ranges.parts, num_rays),
               at + part * room);
  });
  return {density, num, transmittance, sum_alpha};
}

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) { m.impl("visit_ngp", TORCH_BOX(&nerftrain::visit_ngp)); }
