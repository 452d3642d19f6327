// Hash encoding of blocks of samples in float32.
//
// Compiled once per instruction set and chosen at run time. Where corners are stored and what they weigh is worked out
// for a block of samples in vectors; then the rows are gathered. Measured against a sample at a time: about twice
// as fast. Everything here has internal linkage and what it includes is always inlined, so that no function compiled
// for one instruction set can be linked in place of another's.
#pragma once
#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "hash.h"

// Not inlined: these loops over blocks serve rows of all widths, and compiling them for each is most of a file's time.
#define NT_APART __attribute__((noinline))

namespace {

using nerftrain::HashLevels;

constexpr int kBlock = 64;  // samples
constexpr int kStretch = 32 * kBlock;

template <int D>
struct Corners {
  alignas(64) float place[D][kBlock];
  alignas(64) int32_t cell[D][kBlock];
  alignas(64) uint32_t entry[1 << D][kBlock];
  alignas(64) float weight[1 << D][kBlock];
};

// CellCorners of common/hash_encoding.h for a whole block, in loops that the compiler turns into vectors.
template <int D>
NT_APART void find_corners(const HashLevels& levels, int level, const float* positions, int num, Corners<D>& out) {
  for (int a = 0; a < D; ++a) {
    const int32_t last_cell = int32_t(levels.resolution[level][a]) - 1;
    const float resolution = float(levels.resolution[level][a]);
    for (int s = 0; s < num; ++s) {
      float x = positions[D * s + a];
      x = x > 0.f ? x : 0.f;
      x = (x < 1.f ? x : 1.f) * resolution;
      int32_t c = int32_t(x);
      c = c < last_cell ? c : last_cell;
      out.cell[a][s] = c;
      out.place[a][s] = x - float(c);
    }
  }
  const nerftrain::VertexFactors<D> vertex(levels.resolution[level], levels.size[level]);
  for (int corner = 0; corner < 1 << D; ++corner) {
    uint32_t* entry = out.entry[corner];
    float* weight = out.weight[corner];
    for (int s = 0; s < num; ++s) {
      uint32_t hash = uint32_t(out.cell[0][s]) + (corner & 1), place = hash;
      float w = 1.f;
      for (int a = D - 1; a >= 0; --a) {
        const uint32_t upper = corner >> a & 1;
        const float along = __builtin_fabsf((upper ? 0.f : 1.f) - out.place[a][s]);
        w = a == D - 1 ? along : along * w;
        if (a == 0) continue;
        const uint32_t key = (uint32_t(out.cell[a][s]) + upper) * vertex.factor[a];
        hash ^= key;
        place += key;
      }
      entry[s] = vertex.mask ? hash & vertex.mask : place;
      weight[s] = w;
    }
  }
}

template <int F>
constexpr int kShift = F == 8   ? 3
                       : F == 4 ? 2
                                : 1;

// What CellCorners knows of a whole block, factored for gathers: rows of corners that differ along x alone come in
// pairs, which share the weight along the other axes.
template <int D>
struct CornerPairs {
  alignas(64) float along_x[kBlock];                  // place within the cell
  alignas(64) float weight[1 << (D - 1)][kBlock];     // along the other axes
  alignas(64) uint32_t row[1 << (D - 1)][2][kBlock];  // of the lower and the upper corner, in numbers, not rows
  alignas(64) int32_t cell[D][kBlock];
};

// positions: [D][stretch] in 0..1; a row has 1 << shift numbers.
template <int D>
NT_APART void find_pairs(const HashLevels& levels, int level, int shift, const float* const* positions, int num,
                         CornerPairs<D>& out) {
  const nerftrain::VertexFactors<D> vertex(levels.resolution[level], levels.size[level]);
  const uint32_t mask = vertex.mask ? vertex.mask : 0xffffffffu;
  const bool hashed = vertex.mask != 0;
  alignas(64) float place[D][kBlock];
  alignas(64) uint32_t key[D][2][kBlock];
  for (int a = 0; a < D; ++a) {
    const int32_t last_cell = int32_t(levels.resolution[level][a]) - 1;
    const float resolution = float(levels.resolution[level][a]);
    for (int s = 0; s < num; ++s) {
      const float x = positions[a][s] * resolution;
      int32_t c = int32_t(x);
      c = c < last_cell ? c : last_cell;
      place[a][s] = x - float(c);
      out.cell[a][s] = c;
      key[a][0][s] = uint32_t(c) * vertex.factor[a];
      key[a][1][s] = key[a][0][s] + vertex.factor[a];
    }
  }
  for (int s = 0; s < num; ++s) out.along_x[s] = place[0][s];
  for (int pair = 0; pair < 1 << (D - 1); ++pair) {
    for (int s = 0; s < num; ++s) {
      uint32_t hash = 0, sum = 0;
      float w = 1.f;
      for (int a = D - 1; a >= 1; --a) {
        const int upper = pair >> (a - 1) & 1;
        const float along = upper ? place[a][s] : 1.f - place[a][s];
        w = a == D - 1 ? along : along * w;
        hash ^= key[a][upper][s];
        sum += key[a][upper][s];
      }
      out.weight[pair][s] = w;
      const uint32_t lower = hashed ? hash ^ key[0][0][s] : sum + key[0][0][s];
      const uint32_t upper = hashed ? hash ^ key[0][1][s] : sum + key[0][1][s];
      out.row[pair][0][s] = (lower & mask) << shift;
      out.row[pair][1][s] = (upper & mask) << shift;
    }
  }
}

// Positions of a stretch axis by axis, clamped to 0..1; NaN counts as 0.
template <int D>
NT_APART void split_axes(const float* positions, int num, float* const* axes) {
  for (int s = 0; s < num; ++s)
    for (int a = 0; a < D; ++a) {
      float x = positions[D * s + a];
      x = x > 0.f ? x : 0.f;
      axes[a][s] = x < 1.f ? x : 1.f;
    }
}

// Levels of more bytes than this do not stay in the L2 cache: their rows are fetched ahead, a block at a time
// (measured: a quarter off the time of such levels, as much onto that of smaller ones).
constexpr int64_t kNear = 1 << 18;

template <int D, class Stored>
NT_APART void fetch_ahead(const CornerPairs<D>& corners, const Stored* rows, int num) {
  for (int pair = 0; pair < 1 << (D - 1); ++pair)
    for (int s = 0; s < num; ++s) {
      __builtin_prefetch(rows + corners.row[pair][0][s]);
      __builtin_prefetch(rows + corners.row[pair][1][s]);
    }
}

// A row of the table in float32.
template <class Row, int F>
inline Row row_of(const float* from) {
  Row row;
  __builtin_memcpy(&row, from, sizeof(Row));
  return row;
}

template <class Row, int F>
inline Row row_of(const nerftrain::Half* from) {
  Row row;
#if defined(__F16C__)
  if constexpr (F == 2) {
    int32_t both;
    __builtin_memcpy(&both, from, 4);
    const __m128 all = _mm_cvtph_ps(_mm_cvtsi32_si128(both));
    __builtin_memcpy(&row, &all, sizeof(Row));
  } else if constexpr (F == 4) {
    row = (Row)_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  } else {
    row = (Row)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
#else
  alignas(32) float numbers[F];
  for (int k = 0; k < F; ++k) numbers[k] = nerftrain::float_of(from[k]);
  __builtin_memcpy(&row, numbers, sizeof(Row));
#endif
  return row;
}

template <class Row>
inline void put_row(float* to, Row row) {
  __builtin_memcpy(to, &row, sizeof(Row));
}

template <int F, int D, class Stored>
void forward(const HashLevels& levels, const float* positions, const Stored* table, float* features, int64_t begin,
             int64_t end) {
  typedef float Row __attribute__((vector_size(4 * F)));
  CornerPairs<D> corners;
  alignas(64) float axes[D][kStretch];
  const int width = levels.num_levels * F;
  // Levels inside stretches of samples: a level's table stays in the cache while a stretch reads it.
  for (int64_t stretch = begin; stretch < end; stretch += kStretch) {
    const int stop = int(stretch + kStretch < end ? kStretch : end - stretch);
    float* all[D];
    for (int a = 0; a < D; ++a) all[a] = axes[a];
    split_axes<D>(positions + D * stretch, stop, all);
    for (int level = 0; level < levels.num_levels; ++level) {
      const Stored* rows = table + levels.offset[level] * F;
      const bool far = int64_t(levels.size[level]) * F * int64_t(sizeof(Stored)) > kNear;
      for (int first = 0; first < stop; first += kBlock) {
        const int num = stop - first < kBlock ? stop - first : kBlock;
        const float* here[D];
        for (int a = 0; a < D; ++a) here[a] = axes[a] + first;
        find_pairs<D>(levels, level, kShift<F>, here, num, corners);
        if (far) fetch_ahead(corners, rows, num);
        float* out = features + (stretch + first) * width + level * F;
        for (int s = 0; s < num; ++s) {
          Row lower = {}, upper = {};
#pragma GCC unroll 8
          for (int pair = 0; pair < 1 << (D - 1); ++pair) {
            const float w = corners.weight[pair][s];
            lower += w * row_of<Row, F>(rows + corners.row[pair][0][s]);
            upper += w * row_of<Row, F>(rows + corners.row[pair][1][s]);
          }
          put_row(out + s * width, lower + corners.along_x[s] * (upper - lower));
        }
      }
    }
  }
}

// Where a sample lies in another cell than the one before it; `last` is the cell before the block, and becomes its
// last.
template <int D>
NT_APART void find_changes(const CornerPairs<D>& corners, int num, int32_t* last, uint8_t* changed) {
  for (int s = 1; s < num; ++s) {
    bool differs = false;
    for (int a = 0; a < D; ++a) differs |= corners.cell[a][s] != corners.cell[a][s - 1];
    changed[s] = differs;
  }
  changed[0] = false;
  for (int a = 0; a < D; ++a) {
    changed[0] |= corners.cell[a][0] != last[a];
    last[a] = corners.cell[a][num - 1];
  }
}

// One level of the table's gradient. Neighbouring samples often share a cell: their gradients are summed before the
// table is touched.
template <int F, int D>
void scatter_level(const HashLevels& levels, int level, const float* positions, const float* v_features, float* v_table,
                   int64_t num_samples) {
  typedef float Row __attribute__((vector_size(4 * F)));
  constexpr int kPairs = 1 << (D - 1);
  CornerPairs<D> corners;
  alignas(64) float axes[D][kBlock];
  float* here[D];
  for (int a = 0; a < D; ++a) here[a] = axes[a];
  uint8_t changed[kBlock];
  const int width = levels.num_levels * F;
  const bool far = int64_t(levels.size[level]) * F * int64_t(sizeof(float)) > kNear;
  float* rows = v_table + levels.offset[level] * F;
  Row lower[kPairs] = {}, upper[kPairs] = {};
  uint32_t lower_row[kPairs] = {}, upper_row[kPairs] = {};
  int32_t last[D] = {-1};  // no sample lies in it
  const auto flush = [&] {
    for (int pair = 0; pair < kPairs; ++pair) {
      float *below = rows + lower_row[pair], *above = rows + upper_row[pair];
      put_row(below, row_of<Row, F>(below) + lower[pair]);
      put_row(above, row_of<Row, F>(above) + upper[pair]);
      lower[pair] = upper[pair] = Row{};
    }
  };
  for (int64_t first = 0; first < num_samples; first += kBlock) {
    const int num = int(num_samples - first < kBlock ? num_samples - first : kBlock);
    split_axes<D>(positions + D * first, num, here);
    find_pairs<D>(levels, level, kShift<F>, here, num, corners);
    if (far) fetch_ahead(corners, rows, num);
    find_changes(corners, num, last, changed);
    for (int s = 0; s < num; ++s) {
      if (changed[s]) {
        flush();
        for (int pair = 0; pair < kPairs; ++pair) {
          lower_row[pair] = corners.row[pair][0][s];
          upper_row[pair] = corners.row[pair][1][s];
        }
      }
      const Row v = row_of<Row, F>(v_features + (first + s) * width + level * F);
      const Row v_upper = corners.along_x[s] * v, v_lower = v - v_upper;
#pragma GCC unroll 8
      for (int pair = 0; pair < kPairs; ++pair) {
        lower[pair] += corners.weight[pair][s] * v_lower;
        upper[pair] += corners.weight[pair][s] * v_upper;
      }
    }
  }
  flush();
}

// The gradient to a block of positions from one level, from each corner's row times v_features; not where clamping
// holds a position.
template <int D>
NT_APART void add_slopes(const uint32_t* resolution, const Corners<D>& corners, const float (*dots)[kBlock],
                         const float* positions, int num, float* v_positions) {
  alignas(64) float slope[D][kBlock];
  for (int s = 0; s < num; ++s) {
    float place[D], values[1 << D], slopes[D];
    for (int a = 0; a < D; ++a) place[a] = corners.place[a][s];
    for (int corner = 0; corner < 1 << D; ++corner) values[corner] = dots[corner][s];
    nerftrain::interpolate_slopes<D>(place, values, slopes);
    for (int a = 0; a < D; ++a) slope[a][s] = slopes[a] * float(resolution[a]);
  }
  for (int s = 0; s < num; ++s) {
    for (int a = 0; a < D; ++a) {
      const float x = positions[D * s + a];
      v_positions[D * s + a] += x >= 0.f && x <= 1.f ? slope[a][s] : 0.f;
    }
  }
}

// Levels inside stretches of samples, as above. Measured against a sample at a time: about twice as fast.
template <int F, int D>
void slopes(const HashLevels& levels, const float* positions, const float* table, const float* v_features,
            float* v_positions, int64_t begin, int64_t end) {
  typedef float Row __attribute__((vector_size(4 * F)));
  Corners<D> corners;
  alignas(64) float dots[1 << D][kBlock];
  const int width = levels.num_levels * F;
  for (int64_t i = D * begin; i < D * end; ++i) v_positions[i] = 0.f;
  for (int64_t stretch = begin; stretch < end; stretch += 32 * kBlock) {
    const int64_t stop = stretch + 32 * kBlock < end ? stretch + 32 * kBlock : end;
    for (int level = 0; level < levels.num_levels; ++level) {
      const float* rows = table + levels.offset[level] * F;
      for (int64_t first = stretch; first < stop; first += kBlock) {
        const int num = int(stop - first < kBlock ? stop - first : kBlock);
        find_corners(levels, level, positions + D * first, num, corners);
        const float* v = v_features + first * width + level * F;
        for (int s = 0; s < num; ++s) {
          const Row gradient = row_of<Row, F>(v + s * width);
#pragma GCC unroll 16
          for (int corner = 0; corner < 1 << D; ++corner) {
            alignas(64) float products[F];  // the compiler cannot index a vector whose size depends on F
            put_row(products, gradient * row_of<Row, F>(rows + int64_t(corners.entry[corner][s]) * F));
            float dot = 0.f;
            for (int k = 0; k < F; ++k) dot += products[k];
            dots[corner][s] = dot;
          }
        }
        add_slopes<D>(levels.resolution[level], corners, dots, positions + D * first, num, v_positions + D * first);
      }
    }
  }
}

// Features per level and axes are known at run time only; F = 1 has no vector type and goes the general way.
template <int D, class Stored>
void forward_over(int features, const HashLevels& levels, const float* positions, const Stored* table, float* out,
                  int64_t begin, int64_t end) {
  const auto run = features == 2   ? forward<2, D, Stored>
                   : features == 4 ? forward<4, D, Stored>
                                   : forward<8, D, Stored>;
  run(levels, positions, table, out, begin, end);
}

template <class Stored>
void forward_any(int features, const HashLevels& levels, const float* positions, const Stored* table, float* out,
                 int64_t begin, int64_t end) {
  const auto run = levels.num_axes == 4 ? forward_over<4, Stored> : forward_over<3, Stored>;
  run(features, levels, positions, table, out, begin, end);
}

template <int D>
void scatter_over(int features, const HashLevels& levels, int level, const float* positions, const float* v_features,
                  float* v_table, int64_t num_samples) {
  const auto run = features == 2 ? scatter_level<2, D> : features == 4 ? scatter_level<4, D> : scatter_level<8, D>;
  run(levels, level, positions, v_features, v_table, num_samples);
}

void scatter_any(int features, const HashLevels& levels, int level, const float* positions, const float* v_features,
                 float* v_table, int64_t num_samples) {
  const auto run = levels.num_axes == 4 ? scatter_over<4> : scatter_over<3>;
  run(features, levels, level, positions, v_features, v_table, num_samples);
}

template <int D>
void slopes_over(int features, const HashLevels& levels, const float* positions, const float* table,
                 const float* v_features, float* v_positions, int64_t begin, int64_t end) {
  const auto run = features == 2 ? slopes<2, D> : features == 4 ? slopes<4, D> : slopes<8, D>;
  run(levels, positions, table, v_features, v_positions, begin, end);
}

void slopes_any(int features, const HashLevels& levels, const float* positions, const float* table,
                const float* v_features, float* v_positions, int64_t begin, int64_t end) {
  const auto run = levels.num_axes == 4 ? slopes_over<4> : slopes_over<3>;
  run(features, levels, positions, table, v_features, v_positions, begin, end);
}

}  // namespace
