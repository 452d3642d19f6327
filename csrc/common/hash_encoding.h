// Multiresolution hash encoding (Instant-NGP, arXiv:2201.05989, section 3) over D axes: x, y, z and, of four, time.
//
// Level l has N_la cells along axis a, hence N_la + 1 vertices. Where all of them fit the level's table they are stored
// in order, x fastest; else vertex (x, y, z, t) lives at (x * 1 xor y * 2654435761 xor z * 805459861 xor
// t * 3674653429) mod T (eq. 4; the fourth prime is that of the authors' code).
#pragma once
#include "macros.h"

namespace nerftrain {

constexpr int kMaxLevels = 32;
constexpr int kMaxAxes = 4;

struct HashLevels {
  int num_levels;
  int num_axes;
  uint32_t resolution[kMaxLevels][kMaxAxes];  // cells along each axis
  uint32_t size[kMaxLevels];                  // entries, at least 2, and a power of two where hashed
  int64_t offset[kMaxLevels];                 // of the level's first entry
};

// What a vertex's coordinates are multiplied by before they are joined to its entry.
template <int D>
struct VertexFactors {
  uint32_t factor[D];
  uint32_t mask;  // of the hash; 0 where the level is stored in order

  NT_HD VertexFactors(const uint32_t* resolution, uint32_t size) {
    const uint32_t primes[kMaxAxes] = {1u, 2654435761u, 805459861u, 3674653429u};
    uint64_t vertices = 1;  // those of the axes before this one; it grows no more once it exceeds the size
    for (int a = 0; a < D; ++a) {
      factor[a] = uint32_t(vertices);
      if (vertices <= size) vertices *= uint64_t(resolution[a]) + 1;
    }
    mask = vertices <= size ? 0u : size - 1u;
    for (int a = 0; a < D; ++a) factor[a] = mask ? primes[a] : factor[a];
  }
};

// The cell of a position in [0, 1]^D (clamped; NaN counts as 0), the place within it, and where its corners are stored.
// Corner i lies at offset i >> a & 1 along axis a from the cell's own vertex.
template <class T, int D>
struct CellCorners {
  uint32_t c[D];
  T f[D];
  uint32_t key[D][2];  // an axis's share in the entry, at the lower and the upper side
  uint32_t mask;       // of the hash; 0 where the level is stored in order

  NT_HD CellCorners(const T* position, const uint32_t* resolution, uint32_t size) {
    for (int a = 0; a < D; ++a) {
      T x = position[a] > T(0) ? position[a] : T(0);
      x = (x < T(1) ? x : T(1)) * T(resolution[a]);
      c[a] = min_of(uint32_t(int32_t(x)), resolution[a] - 1u);  // signed: vectors convert to signed integers only
      f[a] = x - T(c[a]);
    }
    const VertexFactors<D> vertex(resolution, size);
    mask = vertex.mask;
    for (int a = 0; a < D; ++a) {
      key[a][0] = c[a] * vertex.factor[a];
      key[a][1] = key[a][0] + vertex.factor[a];
    }
  }
  // Chosen, not indexed: an array whose index is known at run time only lies in a GPU's local memory.
  NT_HD uint32_t key_of(int axis, int corner) const { return corner >> axis & 1 ? key[axis][1] : key[axis][0]; }
  NT_HD uint32_t entry(int corner) const {
    uint32_t hash = key_of(0, corner), place = hash;
    for (int a = 1; a < D; ++a) {
      hash ^= key_of(a, corner);
      place += key_of(a, corner);
    }
    return mask ? hash & mask : place;
  }
  NT_HD T along(int axis, int corner) const { return corner >> axis & 1 ? f[axis] : T(1) - f[axis]; }
  NT_HD T weight(int corner) const {
    T w = along(D - 1, corner);
    for (int a = D - 2; a >= 0; --a) w = along(a, corner) * w;
    return w;
  }
};

// Interpolates the values of a cell's 1 << A corners, which it overwrites, at a place f [A] within it.
template <int A, class T>
NT_HD T interpolate(const T* f, T* values) {
  if constexpr (A == 0) {
    return values[0];
  } else {
    constexpr int half = 1 << (A - 1);
    for (int i = 0; i < half; ++i) values[i] += f[A - 1] * (values[i + half] - values[i]);
    return interpolate<A - 1>(f, values);
  }
}

// The derivatives of interpolate along each axis, per cell.
template <int A, class T>
NT_HD void interpolate_slopes(const T* f, T* values, T* slopes) {
  if constexpr (A > 0) {
    constexpr int half = 1 << (A - 1);
    T rises[half];
    for (int i = 0; i < half; ++i) {
      rises[i] = values[i + half] - values[i];
      values[i] += f[A - 1] * rises[i];
    }
    slopes[A - 1] = interpolate<A - 1>(f, rises);
    interpolate_slopes<A - 1>(f, values, slopes);
  }
}

template <class T, int F, int D>
struct HashEncodeForward {
  HashLevels levels;
  const T* positions;  // [N][D] in 0..1
  const T* table;      // [entries][F]
  T* features;         // [N][L * F]

  NT_HD void operator()(int64_t i, int level) const {
    const CellCorners<T, D> cell(positions + D * i, levels.resolution[level], levels.size[level]);
    const T* rows = table + levels.offset[level] * F;
    T sum[F] = {};
    for (int corner = 0; corner < 1 << D; ++corner) {
      const T* row = rows + int64_t(cell.entry(corner)) * F;
      const T w = cell.weight(corner);
      for (int k = 0; k < F; ++k) sum[k] += w * row[k];
    }
    T* out = features + (i * levels.num_levels + level) * F;
    for (int k = 0; k < F; ++k) out[k] = sum[k];
  }
};

template <class T, int F, int D>
struct HashEncodeBackward {
  HashLevels levels;
  const T* positions;   // [N][D]
  const T* table;       // [entries][F]
  const T* v_features;  // [N][L * F]
  T* v_table;           // [entries][F], zero at first
  T* v_positions;       // [N][D]

  NT_HD const T* gradient(int64_t i, int level) const { return v_features + (i * levels.num_levels + level) * F; }

  // To the table, one sample and level at a time, any number of them at once.
  NT_HD void operator()(int64_t i, int level) const {
    const CellCorners<T, D> cell(positions + D * i, levels.resolution[level], levels.size[level]);
    const T* v = gradient(i, level);
    for (int corner = 0; corner < 1 << D; ++corner) {
      T* row = v_table + (levels.offset[level] + cell.entry(corner)) * F;
      const T w = cell.weight(corner);
      T share[F];
      for (int k = 0; k < F; ++k) share[k] = w * v[k];
      atomic_add_row<F>(row, share);
    }
  }

  // To the positions, one sample at a time; zero where clamping holds the position.
  NT_HD void positions_backward(int64_t i) const {
    T sum[D] = {};
    for (int level = 0; level < levels.num_levels; ++level) {
      const uint32_t* resolution = levels.resolution[level];
      const CellCorners<T, D> cell(positions + D * i, resolution, levels.size[level]);
      const T* v = gradient(i, level);
      T dots[1 << D], slopes[D];
      for (int corner = 0; corner < 1 << D; ++corner) {
        const T* row = table + (levels.offset[level] + cell.entry(corner)) * F;
        dots[corner] = 0;
        for (int k = 0; k < F; ++k) dots[corner] += v[k] * row[k];
      }
      interpolate_slopes<D>(cell.f, dots, slopes);
      for (int a = 0; a < D; ++a) sum[a] += slopes[a] * T(resolution[a]);
    }
    for (int a = 0; a < D; ++a) {
      const T x = positions[D * i + a];
      v_positions[D * i + a] = x >= T(0) && x <= T(1) ? sum[a] : T(0);
    }
  }
};

template <class T, int F, int D>
struct HashPositionsBackward {
  HashEncodeBackward<T, F, D> backward;
  NT_HD void operator()(int64_t i) const { backward.positions_backward(i); }
};

}  // namespace nerftrain
