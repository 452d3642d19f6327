// Multiresolution hash encoding (Instant-NGP, arXiv:2201.05989, section 3).
//
// Level l has N_l cells per side, hence N_l + 1 vertices. Where all (N_l + 1)^3 of them fit the level's table they are
// stored in order; else vertex (x, y, z) lives at (x * 1 xor y * 2654435761 xor z * 805459861) mod T (eq. 4).
#pragma once
#include "macros.h"

namespace nerftrain {

constexpr int kMaxLevels = 32;

struct HashLevels {
  int num_levels;
  uint32_t resolution[kMaxLevels];  // cells per side
  uint32_t size[kMaxLevels];        // entries, a power of two where hashed
  int64_t offset[kMaxLevels];       // of the level's first entry
};

// The cell of a position in [0, 1]^3 (clamped; NaN counts as 0), the place within it, and where its corners are stored.
// Corner i lies at offset (i & 1, i >> 1 & 1, i >> 2) from the cell's own vertex.
template <class T>
struct CellCorners {
  uint32_t c[3];
  T f[3];
  uint32_t key[3][2];  // an axis's share in the entry, at the lower and the upper side
  uint32_t mask;       // of the hash; 0 where the level is stored in order

  NT_HD CellCorners(const T* position, uint32_t resolution, uint32_t size) {
    for (int a = 0; a < 3; ++a) {
      T x = position[a] > T(0) ? position[a] : T(0);
      x = (x < T(1) ? x : T(1)) * T(resolution);
      c[a] = min_of(uint32_t(int32_t(x)), resolution - 1u);  // signed: vectors convert to signed integers only
      f[a] = x - T(c[a]);
    }
    const uint64_t side = uint64_t(resolution) + 1;
    const bool in_order = side * side * side <= size;
    mask = in_order ? 0u : size - 1u;
    const uint32_t factor[3] = {1u, in_order ? uint32_t(side) : 2654435761u,
                                in_order ? uint32_t(side * side) : 805459861u};
    for (int a = 0; a < 3; ++a) {
      key[a][0] = c[a] * factor[a];
      key[a][1] = key[a][0] + factor[a];
    }
  }
  NT_HD bool same_cell(const CellCorners& o) const { return c[0] == o.c[0] && c[1] == o.c[1] && c[2] == o.c[2]; }
  NT_HD uint32_t entry(int corner) const {
    const uint32_t x = key[0][corner & 1], y = key[1][corner >> 1 & 1], z = key[2][corner >> 2];
    return mask ? (x ^ y ^ z) & mask : x + y + z;
  }
  NT_HD T along(int axis, int corner) const { return corner >> axis & 1 ? f[axis] : T(1) - f[axis]; }
  NT_HD T weight(int corner) const { return along(0, corner) * (along(1, corner) * along(2, corner)); }
  // The derivative of weight(corner) along an axis, per cell.
  NT_HD T weight_slope(int corner, int axis) const {
    T w = corner >> axis & 1 ? T(1) : T(-1);
    for (int a = 0; a < 3; ++a)
      if (a != axis) w *= along(a, corner);
    return w;
  }
};

template <class T, int F>
struct HashEncodeForward {
  HashLevels levels;
  const T* positions;  // [N][3] in 0..1
  const T* table;      // [entries][F]
  T* features;         // [N][L * F]

  NT_HD void operator()(int64_t i, int level) const {
    const CellCorners<T> cell(positions + 3 * i, levels.resolution[level], levels.size[level]);
    const T* rows = table + levels.offset[level] * F;
    T sum[F] = {};
    for (int corner = 0; corner < 8; ++corner) {
      const T* row = rows + int64_t(cell.entry(corner)) * F;
      const T w = cell.weight(corner);
      for (int k = 0; k < F; ++k) sum[k] += w * row[k];
    }
    T* out = features + (i * levels.num_levels + level) * F;
    for (int k = 0; k < F; ++k) out[k] = sum[k];
  }
};

template <class T, int F>
struct HashEncodeBackward {
  HashLevels levels;
  const T* positions;   // [N][3]
  const T* table;       // [entries][F]
  const T* v_features;  // [N][L * F]
  T* v_table;           // [entries][F], zero at first
  T* v_positions;       // [N][3]

  NT_HD const T* gradient(int64_t i, int level) const { return v_features + (i * levels.num_levels + level) * F; }

  // To the table, one sample and level at a time, any number of them at once.
  NT_HD void operator()(int64_t i, int level) const {
    const CellCorners<T> cell(positions + 3 * i, levels.resolution[level], levels.size[level]);
    const T* v = gradient(i, level);
    for (int corner = 0; corner < 8; ++corner) {
      T* row = v_table + (levels.offset[level] + cell.entry(corner)) * F;
      const T w = cell.weight(corner);
      for (int k = 0; k < F; ++k) atomic_add(row + k, w * v[k]);
    }
  }

  // To the positions, one sample at a time; zero where clamping holds the position.
  NT_HD void positions_backward(int64_t i) const {
    T sum[3] = {};
    for (int level = 0; level < levels.num_levels; ++level) {
      const uint32_t resolution = levels.resolution[level];
      const CellCorners<T> cell(positions + 3 * i, resolution, levels.size[level]);
      const T* v = gradient(i, level);
      for (int corner = 0; corner < 8; ++corner) {
        const T* row = table + (levels.offset[level] + cell.entry(corner)) * F;
        T dot = 0;
        for (int k = 0; k < F; ++k) dot += v[k] * row[k];
        for (int a = 0; a < 3; ++a) sum[a] += dot * cell.weight_slope(corner, a) * T(resolution);
      }
    }
    for (int a = 0; a < 3; ++a) {
      const T x = positions[3 * i + a];
      v_positions[3 * i + a] = x >= T(0) && x <= T(1) ? sum[a] : T(0);
    }
  }
};

template <class T, int F>
struct HashPositionsBackward {
  HashEncodeBackward<T, F> backward;
  NT_HD void operator()(int64_t i) const { backward.positions_backward(i); }
};

}  // namespace nerftrain
