// Instant-NGP along rays, front to back until nothing behind can be seen: which samples count, and what rays see of
// them. Marching, points, encodings, MLPs and compositing are done for a pool of rays at a time. The pool takes a new
// ray for each that ends, so batches stay full however few samples of a ray are asked for at once, and nothing in
// between leaves the cache.
#include <algorithm>
#include <cstddef>
#include <cstring>

#include "../common/contract.h"
#include "../operators/hash_encoding.h"
#include "../operators/march.h"
#include "composite.h"
#include "hash.h"
#include "isa.h"
#include "march.h"
#include "ngp_shape.h"
#include "ranges.h"
#include "warp_field.h"

namespace nerftrain {

constexpr int64_t kPool = 256;          // rays
constexpr int64_t kBatch = 4 * kPool;   // samples
constexpr int64_t kMostOfARay = 8;      // of these, where few rays are left
constexpr int64_t kMostOfAPart = 2048;  // rays that a thread takes at once, at most

// Copies a row four numbers at a time; up to three behind it may be overwritten.
inline void copy_row(const float* from, float* to, int64_t width) {
  for (int64_t k = 0; k < width; k += 4) {
    Four numbers;
    std::memcpy(&numbers, from + k, sizeof(numbers));
    std::memcpy(to + k, &numbers, sizeof(numbers));
  }
}

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
      throw std::runtime_error("ngp: a table has 2, 4 or 8 features per level");
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
  int64_t ray;
  int64_t next = 0, now = 0;                               // its samples so far, and those that are taken in this round
  int64_t found = 0;                                       // of its samples
  int place = 0;                                           // in the source of samples
  float transmittance = 1.f, sum_alpha = 0.f, seen = 1.f;  // the last: the transmittance of the samples that are drawn
};

// Samples of rays [begin, end) that are marched as they are asked for: nothing is where a ray has ended already.
class MarchedSamples {
 public:
  MarchedSamples(const MarchRays& rays, const OneBox* box, int64_t begin, int64_t end)
      : rays_(rays), box_(box), begin_(begin), end_(end), marches_(kPool), whole_(kPool) {
    for (int place = 0; place < kPool; ++place) free_.push_back(place);
  }

  bool next_ray(Walk& walk) {
    if (begin_ == end_) return false;
    walk = {begin_++};
    walk.place = free_.back();
    free_.pop_back();
    Whole& whole = whole_[walk.place];
    whole.count = whole.next = 0;
    RayMarch& march = marches_[walk.place];
    march.num_stretches = kStretches + 1;
    if (box_) {
      if (bundled_ == in_bundle_) {
        bundled_ = 0;
        in_bundle_ = int(std::min<int64_t>(kMarchBundle, end_ - walk.ray));
        kernels_.begin(rays_, *box_, walk.ray, in_bundle_, bundle_);
      }
      copy(bundle_[bundled_++], march);
    }
    if (march.num_stretches > kStretches) march_whole(walk.ray, whole, march);
    return true;
  }
  bool may_have_more(const Walk& walk) const {
    const Whole& whole = whole_[walk.place];
    const bool has_room = walk.next < rays_.settings.max_samples;
    return whole.next < whole.count || (has_room && marches_[walk.place].may_have_more());
  }
  int64_t take(const Walk& walk, int64_t most, float* starts, float* ends) {
    Whole& whole = whole_[walk.place];
    most = std::min(most, rays_.settings.max_samples - walk.next);
    if (whole.count == 0) return kernels_.next(rays_.settings, *box_, marches_[walk.place], int(most), starts, ends);
    const int64_t num = std::min(most, whole.count - whole.next);
    std::copy_n(whole.starts.data() + whole.next, num, starts);
    std::copy_n(whole.ends.data() + whole.next, num, ends);
    whole.next += num;
    return num;
  }
  void close(const Walk& walk) { free_.push_back(walk.place); }

 private:
  // A ray that cannot be marched bit by bit.
  struct Whole {
    std::vector<float> starts, ends;
    int64_t count = 0, next = 0;
  };

  static void copy(const RayMarch& from, RayMarch& to) {
    const size_t stretches = std::min(from.num_stretches, kStretches) * sizeof(from.stretches[0]);
    std::memcpy(&to, &from, offsetof(RayMarch, stretches) + stretches);
  }

  void march_whole(int64_t ray, Whole& whole, RayMarch& march) const {
    const size_t most = std::min(rays_.settings.max_steps, rays_.settings.max_samples);
    if (whole.starts.size() < most) whole.starts.resize(most), whole.ends.resize(most);
    float *starts = whole.starts.data(), *ends = whole.ends.data();
    whole.count = rays_
                      .march(ray, rays_.settings.max_samples,
                             [=](int i, float start, float end) {
                               starts[i] = start;
                               ends[i] = end;
                             })
                      .count;
    march.num_stretches = march.stretch = 0;
    march.pending = 0;
  }

  const MarchRays& rays_;
  const OneBox* box_;  // or none: no ray is marched bit by bit
  int64_t begin_, end_;
  std::vector<RayMarch> marches_;  // [kPool]
  std::vector<Whole> whole_;       // [kPool]
  std::vector<int> free_;
  RayMarch bundle_[kMarchBundle];
  int in_bundle_ = 0, bundled_ = 0;
  const MarchKernels& kernels_ = march_kernels();
};

struct NgpAlongRays {
  const float* origins;     // [R][3]
  const float* directions;  // [R][3]
  const float* times;       // [R] or none: the field is static
  const StoredGrid& still;
  const StoredGrid* moving;  // of space and time, or none
  const CpuWarp* warp;       // what moves places before they are looked up, or none
  NgpShape shape;
  NgpWeights weights;
  Four low, high;   // of the box; the last of four is of no use
  int contraction;  // of Folding
  float early_stop_eps;
  const HashKernels& hash;
  const NgpKernels& ngp;
  const CompositeKernels& composite;

  int64_t num_features() const { return still.width() + (moving ? moving->width() : 0); }
  bool moves() const { return moving || warp; }
  int64_t num_axes() const { return moves() ? 4 : 3; }  // of what is remembered of a place

  // What one thread works in. Behind each array is room for what vectors write beyond its end.
  struct Batch {
    float *positions, *moments, *features, *parts, *starts, *ends, *sigma, *kept, *inputs, *moved;
    float* geometry;  // what colour needs, or none
    float *scratch, *warp_scratch;
    NgpWeights weights;         // that the scratch does not hold yet
    const float* warp_weights;  // likewise

    static int64_t floats(const NgpAlongRays& field) {
      const int64_t each = 3 + 4 + 2 * field.num_features() + 4 + (field.warp ? field.warp->num_inputs() + 3 : 0) +
                           field.shape.num_geometry();
      const int64_t scratch = field.warp ? field.warp->mlp.scratch_floats(field.warp->shape) : 0;
      return (kBatch + kMarchSlack) * each + field.ngp.scratch_floats(field.shape) + scratch;
    }

    Batch(const NgpAlongRays& field, float* at)
        : weights(field.weights), warp_weights(field.warp ? field.warp->weights : nullptr) {
      const auto take = [&](int64_t floats) {
        float* taken = at;
        at += (kBatch + kMarchSlack) * floats;
        return taken;
      };
      positions = take(3), moments = take(4), features = take(field.num_features()), parts = take(field.num_features());
      starts = take(1), ends = take(1), sigma = take(1), kept = take(1);
      inputs = take(field.warp ? field.warp->num_inputs() : 0), moved = take(field.warp ? 3 : 0);
      geometry = field.shape.num_geometry() ? take(field.shape.num_geometry()) : nullptr;
      scratch = at;
      warp_scratch = scratch + field.ngp.scratch_floats(field.shape);
    }
  };

  // The middles of a ray's samples scaled to 0..1, where all of space is folded into that if there is a contraction.
  // One number behind the last of them may be overwritten.
  void place(int64_t ray, const float* starts, const float* ends, int64_t num, float* to) const {
    const float *o = origins + 3 * ray, *d = directions + 3 * ray;
    const Four origin = {o[0], o[1], o[2]}, direction = {d[0], d[1], d[2]};
    for (int64_t i = 0; i < num; ++i, to += 3) {
      const float middle = (starts[i] + ends[i]) * 0.5f;
      Four x = origin + middle * direction;
      if (contraction != kUnfolded) {
        x = (x * 2.f - (low + high)) / (high - low);
        float at[3] = {x[0], x[1], x[2]};
        ContractForward<float>{at, contraction == kCube, to}(0);
        for (int a = 0; a < 3; ++a) to[a] = to[a] * 0.25f + 0.5f;
      } else {
        x = (x - low) / (high - low);
        std::memcpy(to, &x, sizeof(x));
      }
    }
  }

  // Collects the samples of a round, at most so many of each ray.
  int64_t gather(MarchedSamples& source, Walk* pool, int64_t active, int64_t most, const Batch& batch) const {
    int64_t n = 0;
    for (Walk* walk = pool; walk < pool + active; ++walk) {
      walk->now = source.take(*walk, most, batch.starts + n, batch.ends + n);
      place(walk->ray, batch.starts + n, batch.ends + n, walk->now, batch.positions + 3 * n);
      for (int64_t i = n; moves() && i < n + walk->now; ++i) {
        std::copy_n(batch.positions + 3 * i, 3, batch.moments + 4 * i);
        batch.moments[4 * i + 3] = times[walk->ray];
      }
      n += walk->now;
    }
    return n;
  }

  // Fills sigma, none of it below zero, and what each sample lets through.
  void evaluate(int64_t n, Batch& batch) const {
    if (warp) {
      warp->move(batch.moments, n, batch.warp_weights, batch.inputs, batch.moved, batch.warp_scratch);
      batch.warp_weights = nullptr;
    }
    still.encode(hash, warp ? batch.moved : batch.positions, n, moving ? batch.parts : batch.features);
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
    ngp.density(shape, batch.weights, batch.features, batch.sigma, batch.geometry, 0, n, batch.scratch);
    batch.weights = {};
    composite.run(batch.sigma, batch.starts, batch.ends, batch.kept, 0, n);
  }

  // Leads a source's rays through their samples. The sink takes each ray's part of a round in, leads its transmittance
  // past it, and is told when a round is over and when a ray is.
  template <class Sink>
  void lead(MarchedSamples& source, Batch batch, Sink& sink) const {
    Walk pool[kPool];
    int64_t active = 0;
    for (;;) {
      while (active < kPool && source.next_ray(pool[active])) {
        if (source.may_have_more(pool[active])) {
          ++active;
        } else {
          sink.finish(pool[active]);
          source.close(pool[active]);
        }
      }
      if (!active) return;
      const int64_t n = gather(source, pool, active, std::min(kBatch / active, kMostOfARay), batch);
      evaluate(n, batch);
      int64_t left = 0, first = 0;
      for (Walk* walk = pool; walk < pool + active; ++walk) {
        sink.take(*walk, batch, first);
        first += walk->now;
        walk->next += walk->now;
        if (source.may_have_more(*walk) && walk->transmittance >= early_stop_eps) {
          pool[left++] = *walk;
        } else {
          sink.finish(*walk);
          source.close(*walk);
        }
      }
      sink.flush(batch);
      active = left;
    }
  }
};

// Whether a sample counts (VisibleSamples of common/march.h); leads a ray's transmittance past it.
inline bool pass(Walk& walk, float kept, float early_stop_eps, float alpha_thre, float min_weight) {
  const float alpha = 1.f - kept;
  const bool reached = walk.transmittance >= early_stop_eps;
  const bool counts = reached && alpha >= alpha_thre && walk.transmittance * alpha >= min_weight;
  walk.transmittance *= kept;
  return counts;
}

// The samples that a part of the rays has, in the order in which they were found; of a ray it is their own.
struct FoundPart {
  std::vector<int64_t> rays;
  std::vector<float> starts, ends, density, features, places;
};

// The samples that count, or everything that was visited, with what was looked up there if that is asked for.
struct FindSink {
  const NgpAlongRays& field;
  float alpha_thre, min_weight;
  bool everything, remember;
  int64_t* num;      // [R] visited
  float* sum_alpha;  // [R] of these
  int64_t* counts;   // [R] of those that are found
  FoundPart& found;

  void take(Walk& walk, const NgpAlongRays::Batch& batch, int64_t first) {
    const int64_t width = field.num_features(), axes = field.num_axes();
    const float* at = field.moves() ? batch.moments : batch.positions;
    for (int64_t i = first; i < first + walk.now; ++i) {
      walk.sum_alpha += 1.f - batch.kept[i];
      if (!pass(walk, batch.kept[i], field.early_stop_eps, alpha_thre, min_weight) && !everything) continue;
      ++walk.found;
      found.rays.push_back(walk.ray);
      found.starts.push_back(batch.starts[i]);
      found.ends.push_back(batch.ends[i]);
      found.density.push_back(batch.sigma[i]);
      if (!remember) continue;
      found.features.insert(found.features.end(), batch.features + i * width, batch.features + (i + 1) * width);
      found.places.insert(found.places.end(), at + i * axes, at + (i + 1) * axes);
    }
  }
  void flush(const NgpAlongRays::Batch&) const {}
  void finish(const Walk& walk) const {
    num[walk.ray] = walk.next;
    sum_alpha[walk.ray] = walk.sum_alpha;
    counts[walk.ray] = walk.found;
  }
};

// What rays see of the samples that count, summed as CompositeForward of common/composite.h does.
struct RenderSink {
  const NgpAlongRays& field;
  float alpha_thre, min_weight;
  float* channels;                            // [R][K], zeros
  float* opacity;                             // [R], zeros
  float* depth;                               // [R], zeros
  float* distortion;                          // [R], zeros
  int64_t* num;                               // [R]
  float *geometry, *views, *drawn, *scratch;  // [kBatch] samples that are seen, and the networks' room
  int64_t num_seen = 0;
  NgpWeights weights;  // that the scratch does not hold yet
  struct Seen {
    int64_t ray;
    float weight;
  } seen[kBatch];

  static int64_t floats(const NgpAlongRays& field) {
    const int64_t each = field.shape.num_geometry() + 3 + field.shape.num_channels();
    return (kBatch + kMarchSlack) * each + field.ngp.scratch_floats(field.shape);
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
        num(num),
        weights(field.weights) {
    constexpr int64_t kRoom = kBatch + kMarchSlack;
    geometry = at;
    views = geometry + kRoom * field.shape.num_geometry();
    drawn = views + kRoom * 3;
    scratch = drawn + kRoom * field.shape.num_channels();
  }

  void take(Walk& walk, const NgpAlongRays::Batch& batch, int64_t first) {
    const int64_t width = field.shape.num_geometry(), r = walk.ray;
    for (int64_t i = first; i < first + walk.now; ++i) {
      const float kept = batch.kept[i];
      if (!pass(walk, kept, field.early_stop_eps, alpha_thre, min_weight)) continue;
      const float dt = batch.ends[i] - batch.starts[i], mid = (batch.starts[i] + batch.ends[i]) * 0.5f;
      const float w = walk.seen * (1.f - kept);
      walk.seen *= kept;
      distortion[r] += 2.f * w * (mid * opacity[r] - depth[r]) + w * w * dt * (1.f / 3.f);
      opacity[r] += w;
      depth[r] += w * mid;
      copy_row(batch.geometry + i * width, geometry + num_seen * width, width);
      std::copy_n(field.directions + 3 * r, 3, views + 3 * num_seen);
      seen[num_seen++] = {r, w};
    }
  }

  void flush(const NgpAlongRays::Batch&) {
    const int64_t k_end = field.shape.num_channels();
    field.ngp.color(field.shape, weights, geometry, views, drawn, 0, num_seen, scratch);
    weights = {};
    for (int64_t i = 0; i < num_seen; ++i)
      for (int64_t k = 0; k < k_end; ++k) channels[seen[i].ray * k_end + k] += seen[i].weight * drawn[i * k_end + k];
    num_seen = 0;
  }

  void finish(const Walk& walk) const { num[walk.ray] = walk.next; }
};

// Rays in parts: more of them than threads, since what some have more of than others is known afterwards only.
struct RayParts {
  int64_t num_rays, size, num;

  explicit RayParts(int64_t num_rays)
      : num_rays(num_rays),
        size(std::clamp<int64_t>(num_rays / (2 * torch::stable::get_num_threads()), kPool, kMostOfAPart)),
        num((num_rays + size - 1) / size) {}

  // Calls run(part, first ray, last ray, room).
  template <class Run>
  void each(const Tensor& like, int64_t room_floats, const Run& run) const {
    Tensor rooms = make(like, {num_workers(num), room_floats});
    float* room = write<float>(rooms);
    share(num, [&](int64_t part, int64_t worker) {
      run(part, part * size, std::min((part + 1) * size, num_rays), room + worker * room_floats);
    });
  }
};

// Calls run with the field as the operators' arguments describe it.
template <class Run>
void with_ngp(const Tensor& origins, const Tensor& directions, const Tensor& times, const Tensor& table,
              const std::vector<int64_t>& resolutions, const std::vector<int64_t>& level_offsets,
              const Tensor& moving_table, const std::vector<int64_t>& moving_resolutions,
              const std::vector<int64_t>& moving_offsets, const Tensor& warp_weights,
              const std::vector<int64_t>& warp_widths, int64_t position_frequencies, int64_t time_frequencies,
              double reach, const NgpShape& shape, const NgpWeights& weights, const Tensor& box, int64_t contraction,
              double early_stop_eps, int64_t lanes, const Run& run) {
  const StoredGrid still(3, table, resolutions, level_offsets);
  const bool moves = moving_table.numel() > 0, warps = warp_weights.numel() > 0;
  if ((moves || warps) && times.size(0) != origins.size(0))
    throw std::runtime_error("ngp: what moves needs a time for each ray");
  const CpuWarp warp{warps ? mlp_shape(warp_widths) : MlpShape{},
                     read_or_none<float>(warp_weights),
                     int(position_frequencies),
                     int(time_frequencies),
                     float(reach),
                     mlp_kernels(lanes)};
  if (warps && (warp.shape.widths[0] != warp.num_inputs() || warp.shape.widths[warp.shape.num_layers] != 3))
    throw std::runtime_error("ngp: a warp takes the frequencies of places and times and gives moves");
  const StoredGrid moving = moves ? StoredGrid(4, moving_table, moving_resolutions, moving_offsets) : still;
  const float* corners = read<float>(box);
  const NgpAlongRays field{read<float>(origins),
                           read<float>(directions),
                           read_or_none<float>(times),
                           still,
                           moves ? &moving : nullptr,
                           warps ? &warp : nullptr,
                           shape,
                           weights,
                           {corners[0], corners[1], corners[2]},
                           {corners[3], corners[4], corners[5], 1.f},
                           int(contraction),
                           float(early_stop_eps),
                           kernels_for(0, hash_portable, hash_avx2, hash_avx512),
                           ngp_kernels(lanes),
                           kernels_for(0, composite_portable, composite_avx2, composite_avx512)};
  if (shape.num_features() != field.num_features())
    throw std::runtime_error("ngp: the density MLP takes the encodings' features");
  run(field);
}

using FoundSamples = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Puts the samples of all parts side by side, rays in their order.
FoundSamples pack(const Tensor& like, const RayParts& parts, const std::vector<FoundPart>& found, const Tensor& offsets,
                  bool remember, int64_t num_axes, int64_t num_features, const Tensor& num, const Tensor& sum_alpha) {
  const int64_t total = read<int64_t>(offsets)[parts.num_rays], rows = remember ? total : 0;
  Tensor next = torch::stable::clone(offsets), t_starts = make(like, {total}), t_ends = make(like, {total});
  Tensor rays = make(like, {total}, ScalarType::Long), density = make(like, {total});
  Tensor places = make(like, {rows, num_axes}), features = make(like, {rows, num_features});
  int64_t *place = write<int64_t>(next), *to_rays = write<int64_t>(rays);
  float *starts = write<float>(t_starts), *ends = write<float>(t_ends), *sigma = write<float>(density);
  float *to_places = write<float>(places), *to_features = write<float>(features);
  share(parts.num, [&](int64_t p, int64_t) {
    const FoundPart& part = found[p];
    for (size_t i = 0; i < part.rays.size(); ++i) {
      const int64_t to = place[part.rays[i]]++;
      to_rays[to] = part.rays[i];
      starts[to] = part.starts[i], ends[to] = part.ends[i], sigma[to] = part.density[i];
      if (!rows) continue;
      std::copy_n(&part.places[i * num_axes], num_axes, to_places + to * num_axes);
      std::copy_n(&part.features[i * num_features], num_features, to_features + to * num_features);
    }
  });
  return {t_starts, t_ends, rays, offsets, density, places, features, num, sum_alpha};
}

FoundSamples find_ngp(const Tensor& origins, const Tensor& directions, const Tensor& times, const Tensor& table,
                      std::vector<int64_t> resolutions, std::vector<int64_t> level_offsets, const Tensor& moving_table,
                      std::vector<int64_t> moving_resolutions, std::vector<int64_t> moving_offsets,
                      const Tensor& warp_weights, std::vector<int64_t> warp_widths, int64_t position_frequencies,
                      int64_t time_frequencies, double reach, const Tensor& weights, std::vector<int64_t> widths,
                      const Tensor& box, int64_t contraction, double early_stop_eps, int64_t lanes, const Tensor& near,
                      const Tensor& far, const Tensor& jitter, const Tensor& slices, const Tensor& cells,
                      const Tensor& blocks, std::vector<double> grid_boxes, std::vector<int64_t> grid_resolution,
                      int64_t side, double step, double cone_angle, int64_t max_steps, int64_t max_samples,
                      double alpha_thre, double min_weight, bool everything, bool remember) {
  const MarchRays rays = march_rays(origins, directions, near, far, jitter, slices, cells, blocks, grid_boxes,
                                    grid_resolution, side, step, cone_angle, max_steps, max_samples);
  const std::optional<OneBox> grid_box = one_box(rays);
  const RayParts parts(origins.size(0));
  std::vector<FoundPart> found(parts.num);
  Tensor num = make(origins, {parts.num_rays}, ScalarType::Long), sum_alpha = make(origins, {parts.num_rays});
  Tensor offsets = make(origins, {parts.num_rays + 1}, ScalarType::Long);
  int64_t *to_num = write<int64_t>(num), *first = write<int64_t>(offsets);
  float* to_sum = write<float>(sum_alpha);
  const float nothing = 0.f;
  const int64_t num_features = widths.front(), num_axes = moving_table.numel() || warp_weights.numel() ? 4 : 3;
  widths.back() = 1;  // the density; what colour knows of it is not asked for
  // Of the colour MLP nothing is used but its room.
  const NgpShape shape{mlp_shape(widths), mlp_shape({1, 1}), 1};
  with_ngp(origins, directions, times, table, resolutions, level_offsets, moving_table, moving_resolutions,
           moving_offsets, warp_weights, warp_widths, position_frequencies, time_frequencies, reach, shape,
           {read<float>(weights), &nothing}, box, contraction, early_stop_eps, lanes, [&](const NgpAlongRays& field) {
             const int64_t room_floats = NgpAlongRays::Batch::floats(field);
             parts.each(origins, room_floats, [&](int64_t part, int64_t begin, int64_t end, float* room) {
               FindSink sink{field,  float(alpha_thre), float(min_weight), everything, remember, to_num,
                             to_sum, first + 1,         found[part]};
               MarchedSamples samples(rays, grid_box ? &*grid_box : nullptr, begin, end);
               field.lead(samples, NgpAlongRays::Batch(field, room), sink);
             });
           });
  first[0] = 0;
  for (int64_t r = 0; r < parts.num_rays; ++r) first[r + 1] += first[r];
  return pack(origins, parts, found, offsets, remember, num_axes, num_features, num, sum_alpha);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> render_ngp(
    const Tensor& origins, const Tensor& directions, const Tensor& times, const Tensor& table,
    std::vector<int64_t> resolutions, std::vector<int64_t> level_offsets, const Tensor& moving_table,
    std::vector<int64_t> moving_resolutions, std::vector<int64_t> moving_offsets, const Tensor& warp_weights,
    std::vector<int64_t> warp_widths, int64_t position_frequencies, int64_t time_frequencies, double reach,
    const Tensor& weights, std::vector<int64_t> widths, const Tensor& box, int64_t contraction, double early_stop_eps,
    int64_t lanes, const Tensor& near, const Tensor& far, const Tensor& jitter, const Tensor& slices,
    const Tensor& cells, const Tensor& blocks, std::vector<double> grid_boxes, std::vector<int64_t> grid_resolution,
    int64_t side, double step, double cone_angle, int64_t max_steps, int64_t max_samples, const Tensor& color_weights,
    std::vector<int64_t> color_widths, int64_t degree, double alpha_thre, double min_weight) {
  const NgpShape shape = ngp_shape(widths, color_widths, degree);
  const MarchRays rays = march_rays(origins, directions, near, far, jitter, slices, cells, blocks, grid_boxes,
                                    grid_resolution, side, step, cone_angle, max_steps, max_samples);
  const std::optional<OneBox> grid_box = one_box(rays);
  const int64_t num_rays = origins.size(0);
  const auto zeros = [&](std::vector<int64_t> sizes) { return torch::stable::new_zeros(origins, sizes); };
  Tensor channels = zeros({num_rays, shape.num_channels()}), opacity = zeros({num_rays}), depth = zeros({num_rays});
  Tensor distortion = zeros({num_rays}), num = make(origins, {num_rays}, ScalarType::Long);
  float *to_channels = write<float>(channels), *to_opacity = write<float>(opacity), *to_depth = write<float>(depth);
  float* to_distortion = write<float>(distortion);
  int64_t* to_num = write<int64_t>(num);
  with_ngp(origins, directions, times, table, resolutions, level_offsets, moving_table, moving_resolutions,
           moving_offsets, warp_weights, warp_widths, position_frequencies, time_frequencies, reach, shape,
           {read<float>(weights), read<float>(color_weights)}, box, contraction, early_stop_eps, lanes,
           [&](const NgpAlongRays& field) {
             const int64_t batch_floats = NgpAlongRays::Batch::floats(field);
             const int64_t room_floats = batch_floats + RenderSink::floats(field);
             RayParts(num_rays).each(origins, room_floats, [&](int64_t, int64_t begin, int64_t end, float* room) {
               RenderSink sink(field, float(alpha_thre), float(min_weight), to_channels, to_opacity, to_depth,
                               to_distortion, to_num, room + batch_floats);
               MarchedSamples samples(rays, grid_box ? &*grid_box : nullptr, begin, end);
               field.lead(samples, NgpAlongRays::Batch(field, room), sink);
             });
           });
  return {channels, opacity, depth, distortion, num};
}

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("find_ngp", TORCH_BOX(&nerftrain::find_ngp));
  m.impl("render_ngp", TORCH_BOX(&nerftrain::render_ngp));
}
