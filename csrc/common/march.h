// Marching rays through an occupancy grid (NerfAcc, arXiv:2305.04966; Instant-NGP, arXiv:2201.05989, appendix E.1).
//
// The boundaries of a ray's steps lie on a lattice s = 0, 1, 2, ... with
//   t(s) = near + s * step                   where t * cone_angle <= step,
//   t(s) = knee * (1 + cone_angle)^(s - s0)  beyond, so that steps grow with the distance.
// Sample k covers [t(k + jitter), t(k + 1 + jitter)] and is kept where its midpoint lies in an occupied cell: which
// samples a ray has depends on the lattice alone, not on where empty space was skipped.
#pragma once
#include "occupancy.h"

namespace nerftrain {

struct MarchSettings {
  float step;        // world units; 0: a sample for every occupied cell
  float cone_angle;  // 0: equal steps
  int max_steps;     // the lattice ends here, whatever the floats do
  int max_samples;   // of a ray
};

struct Lattice {
  float near, step, inverse_step, jitter, knee, knee_s, log_growth;

  NT_HD Lattice(float near_, float jitter_, const MarchSettings& m)
      : near(near_),
        step(m.step),
        inverse_step(1.f / m.step),
        jitter(jitter_),
        knee(3.4e38f),
        knee_s(3.4e38f),
        log_growth(0.f) {
    if (m.cone_angle <= 0.f) return;
    knee = max_of(near, m.step / m.cone_angle);
    knee_s = (knee - near) / step;
    log_growth = log1pf(m.cone_angle);
  }
  NT_HD float t_of(float s) const { return s <= knee_s ? near + s * step : knee * expf((s - knee_s) * log_growth); }
  NT_HD float s_of(float t) const {
    return t <= knee ? (t - near) * inverse_step : knee_s + logf(t / knee) / log_growth;
  }
  NT_HD float start(float k) const { return t_of(k + jitter); }
  NT_HD float middle(int k) const { return 0.5f * (start(float(k)) + start(float(k + 1))); }
  // The first k whose midpoint may lie beyond t: early by at most one, never late.
  NT_HD int first_after(float t, int low, int high) const { return ceil_clamped(s_of(t) - jitter - 0.55f, low, high); }
};

// The same with equal steps, to the last bit, and without branches: a GPU's threads wait for each other at every one.
struct EvenLattice {
  float near, step, inverse_step, jitter;

  NT_HD EvenLattice(float near_, float jitter_, const MarchSettings& m)
      : near(near_), step(m.step), inverse_step(1.f / m.step), jitter(jitter_) {}
  NT_HD float start(float k) const { return near + (k + jitter) * step; }
  NT_HD float middle(int k) const { return 0.5f * (start(float(k)) + start(float(k + 1))); }
};

// Where a point is: the first box that holds it, and its cell there.
struct CellPlace {
  int level;
  int c[3];
};

// The cell of one box that holds a point, if any does.
NT_HD bool find_cell_of(const OccupancyGrid& g, int level, const float* p, int* c) {
  float u[3];
  bool inside = true;  // a box's lower faces belong to it, as a cell's do
  for (int a = 0; a < 3; ++a) {
    u[a] = (p[a] - g.center[level][a]) * g.inverse[level][a];
    inside = inside && u[a] >= -1.f && u[a] < 1.f;
  }
  if (!inside) return false;
  for (int a = 0; a < 3; ++a) {
    // Within [0, resolution) but for rounding at the upper face.
    const int cell = int((u[a] * 0.5f + 0.5f) * float(g.resolution[a]));
    c[a] = min_of(cell, g.resolution[a] - 1);
  }
  return true;
}

NT_HD bool find_cell(const OccupancyGrid& g, const float* p, CellPlace& place) {
  for (place.level = 0; place.level < g.num_levels; ++place.level)
    if (find_cell_of(g, place.level, p, place.c)) return true;
  return false;
}

// 0 where the cell is occupied, else the side in cells of an aligned empty cube that holds it.
NT_HD int empty_cube(const OccupancyGrid& g, const OccupancyBits& bits, const CellPlace& place) {
  const int blocks = g.side / 4, groups = g.side / 16;
  const uint64_t* group_words = bits.blocks + int64_t(place.level) * groups * groups * groups;
  const BitPlace block = bit_place(place.c[0] >> 2, place.c[1] >> 2, place.c[2] >> 2, blocks);
  const uint64_t group = group_words[block.word];
  if (group == 0) return 16;
  if (!(group >> block.bit & 1)) return 4;
  const uint64_t* cell_words = bits.cells + int64_t(place.level) * blocks * blocks * blocks;
  const BitPlace cell = bit_place(place.c[0], place.c[1], place.c[2], g.side);
  return cell_words[cell.word] >> cell.bit & 1 ? 0 : 1;
}

// A ray's line, clipped to boxes.
struct Line {
  const float* o;
  const float* d;
  float inverse[3];  // one over the direction; zero along an axis by which the ray never leaves

  NT_HD Line(const float* origin, const float* direction) : o(origin), d(direction) {
    for (int a = 0; a < 3; ++a) inverse[a] = d[a] == 0.f ? 0.f : 1.f / d[a];
  }

  // Clips [t0, t1] to a box; false where nothing (or NaN) remains.
  NT_HD bool clip(const OccupancyGrid& g, int level, float& t0, float& t1) const {
    for (int a = 0; a < 3; ++a) {
      const float low = g.center[level][a] - g.half[level][a], high = g.center[level][a] + g.half[level][a];
      if (d[a] == 0.f) {
        if (!(o[a] >= low && o[a] < high)) return false;
        continue;
      }
      const float ta = (low - o[a]) / d[a], tb = (high - o[a]) / d[a];
      if (!(ta <= tb || tb <= ta)) return false;  // min_of and max_of would lose a NaN
      t0 = max_of(t0, min_of(ta, tb));
      t1 = min_of(t1, max_of(ta, tb));
    }
    return t0 < t1;
  }

  // Clips [t0, t1] to where the line meets any box at all.
  NT_HD bool clip(const OccupancyGrid& g, float& t0, float& t1) const {
    float first = 3.4e38f, last = -3.4e38f;
    for (int level = 0; level < g.num_levels; ++level) {
      float enter = t0, leave = t1;
      if (!clip(g, level, enter, leave)) continue;
      first = min_of(first, enter);
      last = max_of(last, leave);
    }
    t0 = first;
    t1 = last;
    return t0 < t1;
  }

  // The distance at which it enters the first of some boxes after t; never where it enters none.
  NT_HD float enter_any(const OccupancyGrid& g, int num_boxes, float t) const {
    float first = 3.4e38f;
    for (int level = 0; level < num_boxes; ++level) {
      float enter = t, leave = 3.4e38f;
      if (clip(g, level, enter, leave)) first = min_of(first, enter);
    }
    return first;
  }

  // The distance at which it leaves the aligned cube of `side` cells around a cell of which [t] is within, or comes to
  // a box that counts before this one.
  NT_HD float leave(const OccupancyGrid& g, const CellPlace& place, int side, float t) const {
    float exit = place.level == 0 ? 3.4e38f : enter_any(g, place.level, t);
    for (int a = 0; a < 3; ++a) {
      const int low = place.c[a] & -side;  // side is a power of two
      const int face = inverse[a] > 0.f ? min_of(low + side, g.resolution[a]) : low;
      const float share = float(face) * (2.f / float(g.resolution[a])) - 1.f;
      const float wall = g.center[place.level][a] + share * g.half[place.level][a];
      const float at = (wall - o[a]) * inverse[a];
      exit = inverse[a] != 0.f && at < exit ? at : exit;
    }
    return exit;
  }

  NT_HD void at(float t, float* p) const {
    for (int a = 0; a < 3; ++a) p[a] = o[a] + t * d[a];
  }
};

// How many samples a ray has, and the distance at which its march ended.
struct Marched {
  int count;
  float end;
};

// The same by steps: the step to go on at.
struct Stepped {
  int count, next;
};

// Calls emit(k, n) for every run of n steps from k on that are samples, front to back: steps that surely lie in a cell
// are not looked at one by one.
template <class Emit>
NT_HD Stepped march_runs(const OccupancyGrid& g, const OccupancyBits& bits, const MarchSettings& m, const Line& line,
                         const Lattice& steps, int k, float t1, float far, Emit emit) {
  int count = 0;
  while (k < m.max_steps && count < m.max_samples) {
    const float mid = steps.middle(k);
    if (!(mid < far)) break;
    float p[3];
    line.at(mid, p);
    CellPlace place;
    if (!find_cell(g, p, place)) {
      if (mid > t1) break;
      // Between boxes; where only rounding put the point outside, the next step decides.
      k = steps.first_after(min_of(line.enter_any(g, g.num_levels, mid), t1), k + 1, m.max_steps);
      continue;
    }
    const int side = empty_cube(g, bits, place);
    const float exit = line.leave(g, place, max_of(side, 1), mid);
    const int next = steps.first_after(min_of(exit, t1), k + 1, m.max_steps);
    const int run = side ? 0 : min_of(next - k, m.max_samples - count);
    if (run) emit(k, run);
    count += run;
    k = run ? k + run : next;
  }
  return {count, k};
}

// Calls emit(number, t_start, t_end) for every kept sample, front to back.
template <class Emit>
NT_HD Marched march_steps(const OccupancyGrid& g, const OccupancyBits& bits, const MarchSettings& m, const Line& line,
                          float t0, float t1, float near, float far, float jitter, Emit emit) {
  const Lattice lattice(near, jitter, m);
  int count = 0;
  const int first = lattice.first_after(t0, 0, m.max_steps);
  const Stepped stepped = march_runs(g, bits, m, line, lattice, first, t1, far, [&](int k, int n) {
    float start = lattice.start(k);
    for (int i = 1; i <= n; ++i) {
      const float end = lattice.start(k + i);
      emit(count++, start, end);
      start = end;
    }
  });
  return {stepped.count, lattice.start(stepped.next)};
}

// The same with a sample for every occupied cell that the ray passes through: settings without a step ask for it.
template <class Emit>
NT_HD Marched march_cells(const OccupancyGrid& g, const OccupancyBits& bits, const MarchSettings& m, const Line& line,
                          float t0, float t1, Emit emit) {
  int count = 0;
  float t = t0;
  for (int k = 0; k < m.max_steps && count < m.max_samples && t < t1; ++k) {
    // A little further on, where rounding at the wall no longer matters.
    const float probe = t + max_of(1e-6f, 4e-7f * fabsf(t));
    float p[3];
    line.at(probe, p);
    CellPlace place;
    if (!find_cell(g, p, place)) {
      t = max_of(line.enter_any(g, g.num_levels, probe), probe);
      continue;
    }
    const int side = empty_cube(g, bits, place);
    const float exit = min_of(max_of(line.leave(g, place, side == 0 ? 1 : side, probe), probe), t1);
    if (side == 0) emit(count++, t, exit);
    t = exit;
  }
  return {count, min_of(t, t1)};
}

template <class Emit>
NT_HD Marched march_ray(const OccupancyGrid& g, const OccupancyBits& bits, const MarchSettings& m, const float* o,
                        const float* d, float near, float far, float jitter, Emit emit) {
  const Line line(o, d);
  float t0 = near, t1 = far;
  if (!(near < far) || !line.clip(g, t0, t1)) return {0, near};
  if (m.step <= 0.f) return march_cells(g, bits, m, line, t0, t1, emit);
  return march_steps(g, bits, m, line, t0, t1, near, far, jitter, emit);
}

struct MarchRays {
  OccupancyGrid grid;
  MarchSettings settings;
  const float* origins;     // [R][3]
  const float* directions;  // [R][3]
  const float* near;        // [R]
  const float* far;         // [R]
  const float* jitter;      // [R]
  const int32_t* slices;    // [R] of time, in which a ray looks; null: there are none
  int num_slices;

  NT_HD OccupancyBits bits(int64_t r) const { return slices ? grid.slice(slices[r]) : grid.bits; }

  // Of at most so many samples, behind which nothing is looked at.
  template <class Emit>
  NT_HD Marched march(int64_t r, int max_samples, Emit emit) const {
    MarchSettings most = settings;
    most.max_samples = max_samples;
    return march_ray(grid, bits(r), most, origins + 3 * r, directions + 3 * r, near[r], far[r], jitter[r], emit);
  }
};

struct MarchCount {
  MarchRays rays;
  int64_t* counts;  // [R]
  float* ends;      // [R]

  NT_HD void operator()(int64_t r) const {
    const Marched marched = rays.march(r, rays.settings.max_samples, [](int, float, float) {});
    counts[r] = marched.count;
    ends[r] = marched.end;
  }
};

struct MarchWrite {
  MarchRays rays;
  const int64_t* offsets;  // [R + 1]
  float* t_starts;         // [N]
  float* t_ends;           // [N]
  int64_t* ray_indices;    // [N]

  NT_HD void operator()(int64_t r) const {
    const int64_t first = offsets[r], room = offsets[r + 1] - first;
    if (room <= 0) return;
    rays.march(r, int(room), [=, this](int i, float start, float end) {
      t_starts[first + i] = start;
      t_ends[first + i] = end;
      ray_indices[first + i] = r;
    });
  }
};

// Which samples are seen at all: NerfAcc's early termination and opacity threshold, and a threshold on the weight.
template <class T>
struct VisibleSamples {
  const T* density;        // [N]
  const T* t_starts;       // [N]
  const T* t_ends;         // [N]
  const int64_t* offsets;  // [R + 1]
  const T* least;          // [2] opacity and weight
  T early_stop_eps;
  const T* arriving;  // [R] the light that comes to the first samples; null: all of it
  bool* visible;      // [N]
  T* leaving;         // [R] the light behind the last samples, where early_stop_eps of it is there

  NT_HD T arriving_at(int64_t r) const { return arriving ? arriving[r] : T(1); }

  struct Least {
    T alpha, weight;
  };
  NT_HD Least thresholds() const { return {least[0], least[1]}; }

  // Whether the next sample is seen by the light that is left of its ray's; takes away what it absorbs.
  NT_HD bool pass(T kept, const Least& at, T& light) const {
    const bool goes_on = !(light < early_stop_eps);  // else it stays: what lies behind need not be known
    const T alpha = T(1) - kept;
    const bool seen = goes_on & (alpha >= at.alpha) & (light * alpha >= at.weight);
    light = goes_on ? light * kept : light;
    return seen;
  }

  NT_HD void operator()(int64_t r) const {
    const Least at = thresholds();
    T light = arriving_at(r);
    for (int64_t i = offsets[r]; i < offsets[r + 1]; ++i)
      visible[i] = pass(exp_of(-density[i] * (t_ends[i] - t_starts[i])), at, light);
    leaving[r] = light;
  }
};

// What every kParts-th sample from one on adds to the mean opacity of all.
template <class T>
struct AlphaShares {
  static constexpr int64_t kParts = 1 << 16, kGrain = 1 << 10;
  const T* density;        // [N]
  const T* t_starts;       // [N]
  const T* t_ends;         // [N]
  const int64_t* offsets;  // [R + 1]
  int64_t num_rays;
  T* shares;  // [kParts]

  NT_HD void operator()(int64_t part) const {
    const int64_t num = offsets[num_rays];
    T sum = 0;
    for (int64_t i = part; i < num; i += kParts) sum -= expm1_of(-density[i] * (t_ends[i] - t_starts[i]));
    shares[part] = num ? sum / T(num) : T(0);
  }
};

}  // namespace nerftrain
