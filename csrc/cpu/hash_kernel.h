// Hash encoding of blocks of samples in float32.
//
// Compiled once per instruction set and chosen at run time. Where corners are stored and what they weigh is worked out
// for a block of samples in vectors; then the rows are gathered. Measured against a sample at a time: about twice
// as fast. Everything here has internal linkage and what it includes is always inlined, so that no function compiled
// for one instruction set can be linked in place of another's.
#pragma once
#include "hash.h"

namespace {

using nerftrain::HashLevels;

constexpr int kBlock = 64;  // samples

template <int D>
struct Corners {
  alignas(64) float place[D][kBlock];
  alignas(64) int32_t cell[D][kBlock];
  alignas(64) uint32_t entry[1 << D][kBlock];
  alignas(64) float weight[1 << D][kBlock];
};

// CellCorners of common/hash_encoding.h for a whole block, in loops that the compiler turns into vectors.
template <int D>
inline void find_corners(const HashLevels& levels, int level, const float* positions, int num, Corners<D>& out) {
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

template <int F, int D>
void forward(const HashLevels& levels, const float* positions, const float* table, float* features, int64_t begin,
             int64_t end) {
  typedef float Row __attribute__((vector_size(4 * F), aligned(4), may_alias));
  Corners<D> corners;
  const int width = levels.num_levels * F;
  // Levels inside stretches of samples: a level's table stays in the cache while a stretch reads it.
  for (int64_t stretch = begin; stretch < end; stretch += 32 * kBlock) {
    const int64_t stop = stretch + 32 * kBlock < end ? stretch + 32 * kBlock : end;
    for (int level = 0; level < levels.num_levels; ++level) {
      const float* rows = table + levels.offset[level] * F;
      for (int64_t first = stretch; first < stop; first += kBlock) {
        const int num = int(stop - first < kBlock ? stop - first : kBlock);
        find_corners(levels, level, positions + D * first, num, corners);
        float* out = features + first * width + level * F;
        for (int s = 0; s < num; ++s) {
          Row sum = {};
#pragma GCC unroll 16
          for (int corner = 0; corner < 1 << D; ++corner)
            sum +=
                corners.weight[corner][s] * *reinterpret_cast<const Row*>(rows + int64_t(corners.entry[corner][s]) * F);
          *reinterpret_cast<Row*>(out + s * width) = sum;
        }
      }
    }
  }
}

// One level of the table's gradient. Neighbouring samples often share a cell: their gradients are summed before the
// table is touched.
template <int F, int D>
void scatter_level(const HashLevels& levels, int level, const float* positions, const float* v_features, float* v_table,
                   int64_t num_samples) {
  typedef float Row __attribute__((vector_size(4 * F), aligned(4), may_alias));
  Corners<D> corners;
  const int width = levels.num_levels * F;
  float* rows = v_table + levels.offset[level] * F;
  Row sums[1 << D] = {};
  uint32_t current[1 << D] = {};
  int32_t cell[D] = {-1};  // no sample lies in it
  const auto flush = [&] {
    for (int corner = 0; corner < 1 << D; ++corner) {
      *reinterpret_cast<Row*>(rows + int64_t(current[corner]) * F) += sums[corner];
      sums[corner] = Row{};
    }
  };
  for (int64_t first = 0; first < num_samples; first += kBlock) {
    const int num = int(num_samples - first < kBlock ? num_samples - first : kBlock);
    find_corners(levels, level, positions + D * first, num, corners);
    for (int s = 0; s < num; ++s) {
      bool same = true;
      for (int a = 0; a < D; ++a) same &= corners.cell[a][s] == cell[a];
      if (!same) {
        flush();
        for (int a = 0; a < D; ++a) cell[a] = corners.cell[a][s];
        for (int corner = 0; corner < 1 << D; ++corner) current[corner] = corners.entry[corner][s];
      }
      const Row v = *reinterpret_cast<const Row*>(v_features + (first + s) * width + level * F);
#pragma GCC unroll 16
      for (int corner = 0; corner < 1 << D; ++corner) sums[corner] += corners.weight[corner][s] * v;
    }
  }
  flush();
}

// The gradient to a block of positions from one level, from each corner's row times v_features; not where clamping
// holds a position.
template <int D>
inline void add_slopes(const uint32_t* resolution, const Corners<D>& corners, const float (*dots)[kBlock],
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
  typedef float Row __attribute__((vector_size(4 * F), aligned(4), may_alias));
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
          const Row gradient = *reinterpret_cast<const Row*>(v + s * width);
#pragma GCC unroll 16
          for (int corner = 0; corner < 1 << D; ++corner) {
            alignas(64) float products[F];  // the compiler cannot index a vector whose size depends on F
            *reinterpret_cast<Row*>(products) =
                gradient * *reinterpret_cast<const Row*>(rows + int64_t(corners.entry[corner][s]) * F);
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
template <int D>
void forward_over(int features, const HashLevels& levels, const float* positions, const float* table, float* out,
                  int64_t begin, int64_t end) {
  const auto run = features == 2 ? forward<2, D> : features == 4 ? forward<4, D> : forward<8, D>;
  run(levels, positions, table, out, begin, end);
}

void forward_any(int features, const HashLevels& levels, const float* positions, const float* table, float* out,
                 int64_t begin, int64_t end) {
  const auto run = levels.num_axes == 4 ? forward_over<4> : forward_over<3>;
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
