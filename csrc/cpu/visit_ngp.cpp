// Instant-NGP's densities at packed samples, front to back until nothing behind them can be seen, and what rays see of
// them: points, encodings, MLPs and compositing for a pool of rays at a time. The pool takes a new ray for each that
// ends, so batches stay full however few samples of a ray are asked for at once, and nothing in between leaves the
// cache.
#include <algorithm>

#include "../common/contract.h"
#include "../operators/hash_encoding.h"
#include "composite.h"
#include "hash.h"
#include "isa.h"
#include "ngp_shape.h"
#include "ranges.h"

namespace nerftrain {

constexpr int64_t kPool = 256;         // rays
constexpr int64_t kBatch = 4 * kPool;  // samples
constexpr int64_t kMostOfARay = 32;    // of these, where few rays are left
constexpr int64_t kLeastPart = 8192;   // samples of rays that a thread takes at once
constexpr float kUnseen = -1.f;        // UNSEEN of nerftrain/ops/visit.py

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

// A ray on its way.
struct Walk {
  int64_t ray, next, last, now;  // samples next to come, behind the last one, and taken in this round
  float transmittance = 1.f, sum_alpha = 0.f, seen = 1.f;  // the last: the transmittance of the samples that are drawn
};

struct NgpAlongRays {
  const float* origins;     // [R][3]
  const float* directions;  // [R][3]
  const float* times;       // [R] or none: the field is static
  const float* t_starts;    // [N]
  const float* t_ends;      // [N]
  const int64_t* offsets;   // [R + 1]
  int64_t num_rays;
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

  int64_t num_features() const { return still.width() + (moving ? moving->width() : 0); }

  // What one thread works in.
  struct Batch {
    float *positions, *moments, *features, *parts, *starts, *ends, *sigma, *kept, *scratch;

    static int64_t floats(const NgpAlongRays& field) {
      return kBatch * (3 + 4 + 2 * field.num_features() + 4) + field.ngp.scratch_floats(field.shape);
    }

    Batch(const NgpAlongRays& field, float* at) {
      const auto take = [&](int64_t floats) {
        float* taken = at;
        at += kBatch * floats;
        return taken;
      };
      positions = take(3), moments = take(4), features = take(field.num_features()), parts = take(field.num_features());
      starts = take(1), ends = take(1), sigma = take(1), kept = take(1);
      scratch = at;
    }
  };

  // A position scaled to 0..1, where all of space is folded into that if there is a contraction.
  void place(int64_t ray, float start, float end, float* to) const {
    const float middle = (start + end) * 0.5f;
    const float *origin = origins + 3 * ray, *direction = directions + 3 * ray;
    float x[3];
    for (int a = 0; a < 3; ++a) x[a] = origin[a] + middle * direction[a];
    if (!contraction) {
      for (int a = 0; a < 3; ++a) to[a] = (x[a] - low[a]) / (high[a] - low[a]);
      return;
    }
    for (int a = 0; a < 3; ++a) x[a] = (x[a] * 2 - (low[a] + high[a])) / (high[a] - low[a]);
    ContractForward<float>{x, contraction == 2, to}(0);
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

  // Leads rays [begin, end) through their samples. The sink takes each ray's part of a round in, says whether the ray
  // goes on, and is told when a round is over and when a ray is.
  template <class Sink>
  void lead(int64_t begin, int64_t end, const Batch& batch, Sink& sink) const {
    Walk pool[kPool];
    int64_t active = 0;
    for (;;) {
      for (; active < kPool && begin < end; ++begin) {
        pool[active] = {begin, offsets[begin], offsets[begin + 1], 0};
        if (pool[active].next < pool[active].last)
          ++active;
        else
          sink.finish(pool[active]);
      }
      if (!active) return;
      const int64_t n = gather(pool, active, std::min(kBatch / active, kMostOfARay), batch);
      evaluate(n, batch);
      int64_t left = 0, first = 0;
      for (Walk* walk = pool; walk < pool + active; ++walk) {
        sink.take(*walk, batch, first);
        first += walk->now;
        walk->next += walk->now;
        if (walk->next < walk->last && walk->transmittance >= early_stop_eps)
          pool[left++] = *walk;
        else
          sink.finish(*walk);
      }
      sink.flush(batch);
      active = left;
    }
  }

  // Calls run(first ray, last ray, room) for parts of about as many samples each, on all threads.
  template <class Run>
  void each(const Tensor& like, int64_t room_floats, const Run& run) const {
    const int64_t num = offsets[num_rays], most = 4 * torch::stable::get_num_threads();
    const int64_t parts = std::clamp<int64_t>(num / kLeastPart, 1, most);
    const auto first_ray = [&](int64_t part) {
      if (part == parts) return num_rays;
      return std::lower_bound(offsets, offsets + num_rays, num * part / parts) - offsets;
    };
    Tensor rooms = make(like, {num_workers(parts), room_floats});
    float* room = write<float>(rooms);
    share(parts, [&](int64_t part, int64_t worker) {
      run(first_ray(part), first_ray(part + 1), room + worker * room_floats);
    });
  }
};

// Densities as they are found and, where they are asked for, what was looked up where.
struct VisitSink {
  const int64_t* offsets;
  float* density;        // [N]
  int64_t* num;          // [R]
  float* transmittance;  // [R]
  float* sum_alpha;      // [R]
  int64_t num_features, num_axes;
  float* features;   // [N][num_features] or none
  float* places;     // [N][num_axes] or none
  int64_t* rows;     // [N] where those of each sample are, -1 where nobody was; or none
  int64_t next = 0;  // of these rows: one after the other, which is faster than where each sample is

  void take(Walk& walk, const NgpAlongRays::Batch& batch, int64_t first) {
    for (int64_t i = 0; i < walk.now; ++i) {
      density[walk.next + i] = batch.sigma[first + i];
      walk.transmittance *= batch.kept[first + i];
      walk.sum_alpha += 1.f - batch.kept[first + i];
    }
    if (!features) return;
    const float* at = num_axes == 4 ? batch.moments : batch.positions;
    std::copy_n(batch.features + first * num_features, walk.now * num_features, features + next * num_features);
    std::copy_n(at + first * num_axes, walk.now * num_axes, places + next * num_axes);
    for (int64_t i = 0; i < walk.now; ++i) rows[walk.next + i] = next++;
  }
  void flush(const NgpAlongRays::Batch&) const {}
  void finish(const Walk& walk) const {
    num[walk.ray] = walk.next - offsets[walk.ray];
    transmittance[walk.ray] = walk.transmittance;
    sum_alpha[walk.ray] = walk.sum_alpha;
    std::fill(density + walk.next, density + walk.last, kUnseen);
    if (rows) std::fill(rows + walk.next, rows + walk.last, -1);
  }
};

// What rays see: VisibleSamples of common/march.h leave out what is not seen, CompositeForward of common/composite.h
// sums the rest.
struct RenderSink {
  const NgpAlongRays& field;
  float alpha_thre, min_weight;
  float* channels;                                    // [R][K], zeros
  float* opacity;                                     // [R]
  float* depth;                                       // [R]
  float* distortion;                                  // [R]
  int64_t* num;                                       // [R]
  float *features, *views, *drawn, *sigma, *scratch;  // [kBatch] samples that are seen, and the networks' room
  int64_t num_seen = 0;
  struct Seen {
    int64_t ray;
    float weight;
  } seen[kBatch];

  static int64_t floats(const NgpAlongRays& field) {
    return kBatch * (field.num_features() + 3 + field.shape.num_channels() + 1) + field.ngp.scratch_floats(field.shape);
  }

  RenderSink(const NgpAlongRays& field, float alpha_thre, float min_weight, float* channels, float* opacity,
             float* depth, float* distortion, int64_t* num, float* at)
      : field(field),
        alpha_thre(alpha_thre),
        min_weight(min_weight),
        channels(channels),
        opacity(opacity),
        depth(depth),
        distortion(distortion),
        num(num) {
    features = at;
    views = features + kBatch * field.num_features();
    drawn = views + kBatch * 3;
    sigma = drawn + kBatch * field.shape.num_channels();
    scratch = sigma + kBatch;
  }

  void take(Walk& walk, const NgpAlongRays::Batch& batch, int64_t first) {
    const int64_t width = field.num_features(), r = walk.ray;
    if (walk.next == field.offsets[r]) opacity[r] = depth[r] = distortion[r] = 0.f;
    for (int64_t i = first; i < first + walk.now; ++i) {
      const float kept = batch.kept[i], alpha = 1.f - kept;
      const bool reached = walk.transmittance >= field.early_stop_eps;
      const bool visible = reached && alpha >= alpha_thre && walk.transmittance * alpha >= min_weight;
      walk.transmittance *= kept;
      if (!visible) continue;
      const float dt = batch.ends[i] - batch.starts[i], mid = (batch.starts[i] + batch.ends[i]) * 0.5f;
      const float w = walk.seen * alpha;
      walk.seen *= kept;
      distortion[r] += 2.f * w * (mid * opacity[r] - depth[r]) + w * w * dt * (1.f / 3.f);
      opacity[r] += w;
      depth[r] += w * mid;
      std::copy_n(batch.features + i * width, width, features + num_seen * width);
      std::copy_n(field.directions + 3 * r, 3, views + 3 * num_seen);
      seen[num_seen++] = {r, w};
    }
  }

  void flush(const NgpAlongRays::Batch&) {
    const int64_t k_end = field.shape.num_channels();
    field.ngp.forward(field.shape, field.weights, features, views, drawn, sigma, 0, num_seen, scratch);
    for (int64_t i = 0; i < num_seen; ++i)
      for (int64_t k = 0; k < k_end; ++k) channels[seen[i].ray * k_end + k] += seen[i].weight * drawn[i * k_end + k];
    num_seen = 0;
  }

  void finish(const Walk& walk) const {
    num[walk.ray] = walk.next - field.offsets[walk.ray];
    if (field.offsets[walk.ray] == walk.last) opacity[walk.ray] = depth[walk.ray] = distortion[walk.ray] = 0.f;
  }
};

// Calls run with the field as the operators' arguments describe it.
template <class Run>
void with_ngp(const Tensor& origins, const Tensor& directions, const Tensor& times, const Tensor& t_starts,
              const Tensor& t_ends, const Tensor& offsets, const Tensor& table, const std::vector<int64_t>& resolutions,
              const std::vector<int64_t>& level_offsets, const Tensor& moving_table,
              const std::vector<int64_t>& moving_resolutions, const std::vector<int64_t>& moving_offsets,
              const NgpShape& shape, const NgpWeights& weights, const Tensor& box, int64_t contraction,
              double early_stop_eps, int64_t lanes, const Run& run) {
  const StoredGrid still(3, table, resolutions, level_offsets);
  const bool moves = moving_table.numel() > 0;
  if (moves && times.size(0) != offsets.size(0) - 1)
    throw std::runtime_error("ngp: a grid of space and time needs a time for each ray");
  const StoredGrid moving = moves ? StoredGrid(4, moving_table, moving_resolutions, moving_offsets) : still;
  const float* corners = read<float>(box);
  const NgpAlongRays field{read<float>(origins),
                           read<float>(directions),
                           read_or_none<float>(times),
                           read<float>(t_starts),
                           read<float>(t_ends),
                           read<int64_t>(offsets),
                           offsets.size(0) - 1,
                           still,
                           moves ? &moving : nullptr,
                           shape,
                           weights,
                           {corners[0], corners[1], corners[2]},
                           {corners[3], corners[4], corners[5]},
                           int(contraction),
                           float(early_stop_eps),
                           kernels_for(0, hash_portable, hash_avx2, hash_avx512),
                           ngp_kernels(lanes),
                           kernels_for(0, composite_portable, composite_avx2, composite_avx512)};
  if (shape.num_features() != field.num_features())
    throw std::runtime_error("ngp: the density MLP takes the encodings' features");
  run(field);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> visit_ngp(
    const Tensor& origins, const Tensor& directions, const Tensor& times, const Tensor& t_starts, const Tensor& t_ends,
    const Tensor& offsets, const Tensor& table, std::vector<int64_t> resolutions, std::vector<int64_t> level_offsets,
    const Tensor& moving_table, std::vector<int64_t> moving_resolutions, std::vector<int64_t> moving_offsets,
    const Tensor& weights, std::vector<int64_t> widths, const Tensor& box, int64_t contraction, double early_stop_eps,
    int64_t lanes, bool remember) {
  const int64_t num_rays = offsets.size(0) - 1, num_rows = remember ? t_starts.size(0) : 0;
  const int64_t num_features = widths.front(), num_axes = moving_table.numel() ? 4 : 3;
  Tensor density = make(t_starts, {t_starts.size(0)}), num = make(offsets, {num_rays});
  Tensor transmittance = make(t_starts, {num_rays}), sum_alpha = make(t_starts, {num_rays});
  Tensor features = make(t_starts, {num_rows, num_features}), places = make(t_starts, {num_rows, num_axes});
  Tensor rows = make(offsets, {num_rows});
  const VisitSink sink{read<int64_t>(offsets),
                       write<float>(density),
                       write<int64_t>(num),
                       write<float>(transmittance),
                       write<float>(sum_alpha),
                       num_features,
                       num_axes,
                       remember ? write<float>(features) : nullptr,
                       remember ? write<float>(places) : nullptr,
                       remember ? write<int64_t>(rows) : nullptr};
  const float nothing = 0.f;
  widths.back() = 1;  // the density; what colour knows of it is not asked for
  // Of the colour MLP nothing is used but its room.
  const NgpShape shape{mlp_shape(widths), mlp_shape({1, 1}), 1};
  with_ngp(origins, directions, times, t_starts, t_ends, offsets, table, resolutions, level_offsets, moving_table,
           moving_resolutions, moving_offsets, shape, {read<float>(weights), &nothing}, box, contraction,
           early_stop_eps, lanes, [&](const NgpAlongRays& field) {
             field.each(t_starts, NgpAlongRays::Batch::floats(field), [&](int64_t begin, int64_t end, float* room) {
               VisitSink own = sink;
               own.next = sink.offsets[begin];
               field.lead(begin, end, NgpAlongRays::Batch(field, room), own);
             });
           });
  return {density, num, transmittance, sum_alpha, features, places, rows};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> render_ngp(
    const Tensor& origins, const Tensor& directions, const Tensor& times, const Tensor& t_starts, const Tensor& t_ends,
    const Tensor& offsets, const Tensor& table, std::vector<int64_t> resolutions, std::vector<int64_t> level_offsets,
    const Tensor& moving_table, std::vector<int64_t> moving_resolutions, std::vector<int64_t> moving_offsets,
    const Tensor& weights, std::vector<int64_t> widths, const Tensor& box, int64_t contraction, double early_stop_eps,
    int64_t lanes, const Tensor& color_weights, std::vector<int64_t> color_widths, int64_t degree, double alpha_thre,
    double min_weight) {
  const NgpShape shape = ngp_shape(widths, color_widths, degree);
  const int64_t num_rays = offsets.size(0) - 1, k_end = shape.num_channels();
  Tensor channels = torch::stable::new_zeros(t_starts, std::vector<int64_t>{num_rays, k_end});
  Tensor opacity = make(t_starts, {num_rays}), depth = make(t_starts, {num_rays});
  Tensor distortion = make(t_starts, {num_rays}), num = make(offsets, {num_rays});
  float *to_channels = write<float>(channels), *to_opacity = write<float>(opacity), *to_depth = write<float>(depth);
  float* to_distortion = write<float>(distortion);
  int64_t* to_num = write<int64_t>(num);
  with_ngp(origins, directions, times, t_starts, t_ends, offsets, table, resolutions, level_offsets, moving_table,
           moving_resolutions, moving_offsets, shape, {read<float>(weights), read<float>(color_weights)}, box,
           contraction, early_stop_eps, lanes, [&](const NgpAlongRays& field) {
             const int64_t batch_floats = NgpAlongRays::Batch::floats(field);
             const int64_t room_floats = batch_floats + RenderSink::floats(field);
             field.each(t_starts, room_floats, [&](int64_t begin, int64_t end, float* room) {
               RenderSink sink(field, float(alpha_thre), float(min_weight), to_channels, to_opacity, to_depth,
                               to_distortion, to_num, room + batch_floats);
               field.lead(begin, end, NgpAlongRays::Batch(field, room), sink);
             });
           });
  return {channels, opacity, depth, distortion, num};
}

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("visit_ngp", TORCH_BOX(&nerftrain::visit_ngp));
  m.impl("render_ngp", TORCH_BOX(&nerftrain::render_ngp));
}
