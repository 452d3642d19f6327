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

struct Corners {
  alignas(64) float place[3][kBlock];
  alignas(64) int32_t cell[3][kBlock];
  alignas(64) uint32_t entry[8][kBlock];
  alignas(64) float weight[8][kBlock];
};

// CellCorners of common/hash_encoding.h for a whole block, in loops that the compiler turns into vectors.
inline void find_corners(const HashLevels& levels, int level, const float* positions, int num, Corners& out) {
  const uint32_t size = levels.size[level];
  const int32_t last_cell = int32_t(levels.resolution[level]) - 1;
  const float resolution = float(levels.resolution[level]);
  const uint64_t side = uint64_t(levels.resolution[level]) + 1;
  const bool in_order = side * side * side <= size;
  for (int a = 0; a < 3; ++a) {
    for (int s = 0; s < num; ++s) {
      float x = positions[3 * s + a];
      x = x > 0.f ? x : 0.f;
      x = (x < 1.f ? x : 1.f) * resolution;
      int32_t c = int32_t(x);
      c = c < last_cell ? c : last_cell;
      out.cell[a][s] = c;
      out.place[a][s] = x - float(c);
    }
  }
  const uint32_t factor_y = in_order ? uint32_t(side) : 2654435761u;
  const uint32_t factor_z = in_order ? uint32_t(side * side) : 805459861u;
  const uint32_t mask = size - 1u;
  for (int corner = 0; corner < 8; ++corner) {
    const uint32_t dx = corner & 1, dy = corner >> 1 & 1, dz = corner >> 2;
    const float lx = dx ? 0.f : 1.f, ly = dy ? 0.f : 1.f, lz = dz ? 0.f : 1.f;  // weight along an axis: |l - f|
    uint32_t* entry = out.entry[corner];
    float* weight = out.weight[corner];
    for (int s = 0; s < num; ++s) {
      const uint32_t x = uint32_t(out.cell[0][s]) + dx;
      const uint32_t y = (uint32_t(out.cell[1][s]) + dy) * factor_y, z = (uint32_t(out.cell[2][s]) + dz) * factor_z;
      entry[s] = in_order ? x + y + z : (x ^ y ^ z) & mask;
      const float wx = __builtin_fabsf(lx - out.place[0][s]), wy = __builtin_fabsf(ly - out.place[1][s]);
      weight[s] = wx * (wy * __builtin_fabsf(lz - out.place[2][s]));
    }
  }
}

template <int F>
void forward(const HashLevels& levels, const float* positions, const float* table, float* features, int64_t begin,
             int64_t end) {
  typedef float Row __attribute__((vector_size(4 * F), aligned(4), may_alias));
  Corners corners;
  const int width = levels.num_levels * F;
  // Levels inside stretches of samples: a level's table stays in the cache while a stretch reads it.
  for (int64_t stretch = begin; stretch < end; stretch += 32 * kBlock) {
    const int64_t stop = stretch + 32 * kBlock < end ? stretch + 32 * kBlock : end;
    for (int level = 0; level < levels.num_levels; ++level) {
      const float* rows = table + levels.offset[level] * F;
      for (int64_t first = stretch; first < stop; first += kBlock) {
        const int num = int(stop - first < kBlock ? stop - first : kBlock);
        find_corners(levels, level, positions + 3 * first, num, corners);
        float* out = features + first * width + level * F;
        for (int s = 0; s < num; ++s) {
          Row sum = {};
#pragma GCC unroll 8
          for (int corner = 0; corner < 8; ++corner)
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
template <int F>
void scatter_level(const HashLevels& levels, int level, const float* positions, const float* v_features, float* v_table,
                   int64_t num_samples) {
  typedef float Row __attribute__((vector_size(4 * F), aligned(4), may_alias));
  Corners corners;
  const int width = levels.num_levels * F;
  float* rows = v_table + levels.offset[level] * F;
  Row sums[8] = {};
  uint32_t current[8] = {};
  int32_t cell[3] = {-1, -1, -1};
  const auto flush = [&] {
    for (int corner = 0; corner < 8; ++corner) {
      *reinterpret_cast<Row*>(rows + int64_t(current[corner]) * F) += sums[corner];
      sums[corner] = Row{};
    }
  };
  for (int64_t first = 0; first < num_samples; first += kBlock) {
    const int num = int(num_samples - first < kBlock ? num_samples - first : kBlock);
    find_corners(levels, level, positions + 3 * first, num, corners);
    for (int s = 0; s < num; ++s) {
      if (corners.cell[0][s] != cell[0] || corners.cell[1][s] != cell[1] || corners.cell[2][s] != cell[2]) {
        flush();
        for (int a = 0; a < 3; ++a) cell[a] = corners.cell[a][s];
        for (int corner = 0; corner < 8; ++corner) current[corner] = corners.entry[corner][s];
      }
      const Row v = *reinterpret_cast<const Row*>(v_features + (first + s) * width + level * F);
#pragma GCC unroll 8
      for (int corner = 0; corner < 8; ++corner) sums[corner] += corners.weight[corner][s] * v;
    }
  }
  flush();
}

// The features per level are known at run time only; F = 1 has no vector type and goes the general way.
void forward_any(int features, const HashLevels& levels, const float* positions, const float* table, float* out,
                 int64_t begin, int64_t end) {
  const auto run = features == 2 ? forward<2> : features == 4 ? forward<4> : forward<8>;
  run(levels, positions, table, out, begin, end);
}

void scatter_any(int features, const HashLevels& levels, int level, const float* positions, const float* v_features,
                 float* v_table, int64_t num_samples) {
  const auto run = features == 2 ? scatter_level<2> : features == 4 ? scatter_level<4> : scatter_level<8>;
  run(levels, level, positions, v_features, v_table, num_samples);
}

}  // namespace
