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
  float step;        // world units
  float cone_angle;  // 0: equal steps
  int max_steps;     // the lattice ends here, whatever the floats do
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
  NT_HD float start(int k) const { return t_of(float(k) + jitter); }
  // The first k whose midpoint may lie beyond t: early by at most one, never late.
  NT_HD int first_after(float t, int low, int high) const {
    return to_int_clamped(ceilf(s_of(t) - jitter - 0.55f), low, high);
  }
};

// Where a point is: the finest level whose box holds it, and its cell there.
struct CellPlace {
  int level;
  int c[3];
};

NT_HD bool find_cell(const OccupancyGrid& g, const float* p, CellPlace& place) {
  float u[3], reach = 0.f;
  for (int a = 0; a < 3; ++a) {
    u[a] = (p[a] - g.center[a]) * g.inverse[a];
    reach = max_of(reach, fabsf(u[a]));
  }
  float scale = 1.f, inverse_scale = 1.f;
  place.level = 0;
  while (!(reach < scale)) {
    if (++place.level >= g.num_levels) return false;
    scale *= 2.f;
    inverse_scale *= 0.5f;
  }
  for (int a = 0; a < 3; ++a) {
    // Within [0, resolution) but for rounding at the upper face.
    const int cell = int((u[a] * inverse_scale * 0.5f + 0.5f) * float(g.resolution));
    place.c[a] = min_of(cell, g.resolution - 1);
  }
  return true;
}

// 0 where the cell is occupied, else the side in cells of an aligned empty cube that holds it. No cube reaches into the
// finer level inside this one, whose box begins at a quarter of the cells: a multiple of 4, but not always of 16.
NT_HD int empty_cube(const OccupancyGrid& g, const CellPlace& place) {
  const int blocks = g.resolution / 4, groups = g.resolution / 16;
  const uint64_t* group_words = g.blocks + int64_t(place.level) * groups * groups * groups;
  const BitPlace block = bit_place(place.c[0] >> 2, place.c[1] >> 2, place.c[2] >> 2, blocks);
  const uint64_t group = group_words[block.word];
  if (group == 0) return place.level == 0 || g.resolution % 64 == 0 ? 16 : 4;
  if (!(group >> block.bit & 1)) return 4;
  const uint64_t* cell_words = g.cells + int64_t(place.level) * blocks * blocks * blocks;
  const BitPlace cell = bit_place(place.c[0], place.c[1], place.c[2], g.resolution);
  return cell_words[cell.word] >> cell.bit & 1 ? 0 : 1;
}

// The distance at which a ray leaves the aligned cube of `side` cells around a cell; `inverse` is one over the ray's
// direction.
NT_HD float cube_exit(const OccupancyGrid& g, const CellPlace& place, int side, const float* o, const float* inverse) {
  const float cell_scale = float(int64_t(1) << place.level) * 2.f / float(g.resolution);
  const float level_scale = float(int64_t(1) << place.level);
  float exit = 3.4e38f;
  for (int a = 0; a < 3; ++a) {
    const int low = place.c[a] & -side;  // side is a power of two
    const int face = inverse[a] > 0.f ? low + side : low;
    const float wall = g.center[a] + (float(face) * cell_scale - level_scale) * g.half[a];
    const float t = (wall - o[a]) * inverse[a];
    exit = inverse[a] != 0.f && t < exit ? t : exit;
  }
  return exit;
}

// Clips [t0, t1] to the outermost level's box; false where nothing (or NaN) remains.
NT_HD bool clip_to_grid(const OccupancyGrid& g, const float* o, const float* d, float& t0, float& t1) {
  const float scale = float(int64_t(1) << (g.num_levels - 1));
  for (int a = 0; a < 3; ++a) {
    const float low = g.center[a] - scale * g.half[a], high = g.center[a] + scale * g.half[a];
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

// Calls emit(number, t_start, t_end) for every kept sample, front to back; returns how many there were.
template <class Emit>
NT_HD int march_ray(const OccupancyGrid& g, const MarchSettings& m, const float* o, const float* d, float near,
                    float far, float jitter, Emit emit) {
  float t0 = near, t1 = far;
  if (!(near < far) || !clip_to_grid(g, o, d, t0, t1)) return 0;
  const Lattice lattice(near, jitter, m);
  float inverse[3];  // zero along an axis by which the ray never leaves
  for (int a = 0; a < 3; ++a) inverse[a] = d[a] == 0.f ? 0.f : 1.f / d[a];
  int count = 0;
  int k = lattice.first_after(t0, 0, m.max_steps);
  float start = lattice.start(k);
  while (k < m.max_steps) {
    const float end = lattice.start(k + 1);
    const float mid = 0.5f * (start + end);
    if (!(mid < far)) break;
    const float p[3] = {o[0] + mid * d[0], o[1] + mid * d[1], o[2] + mid * d[2]};
    CellPlace place;
    if (!find_cell(g, p, place)) {
      if (mid > t1) break;
      ++k;
      start = end;
      continue;
    }
    const int side = empty_cube(g, place);
    if (side == 0) {
      emit(count++, start, end);
      ++k;
      start = end;
    } else {
      const int next = lattice.first_after(cube_exit(g, place, side, o, inverse), k + 1, m.max_steps);
      start = next == k + 1 ? end : lattice.start(next);
      k = next;
    }
  }
  return count;
}

struct MarchRays {
  OccupancyGrid grid;
  MarchSettings settings;
  const float* origins;     // [R][3]
  const float* directions;  // [R][3]
  const float* near;        // [R]
  const float* far;         // [R]
  const float* jitter;      // [R]

  template <class Emit>
  NT_HD int march(int64_t r, Emit emit) const {
    return march_ray(grid, settings, origins + 3 * r, directions + 3 * r, near[r], far[r], jitter[r], emit);
  }
};

struct MarchCount {
  MarchRays rays;
  int64_t* counts;  // [R]

  NT_HD void operator()(int64_t r) const {
    counts[r] = rays.march(r, [](int, float, float) {});
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
    rays.march(r, [=, this](int i, float start, float end) {
      if (i >= room) return;
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
  T early_stop_eps;
  T alpha_thre;
  T min_weight;
  bool* visible;  // [N]

  NT_HD void operator()(int64_t r) const {
    T transmittance = 1;
    for (int64_t i = offsets[r]; i < offsets[r + 1]; ++i) {
      const T kept = exp_of(-density[i] * (t_ends[i] - t_starts[i]));
      const T alpha = T(1) - kept;
      visible[i] = transmittance >= early_stop_eps && alpha >= alpha_thre && transmittance * alpha >= min_weight;
      transmittance *= kept;
    }
  }
};

}  // namespace nerftrain
