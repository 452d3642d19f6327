// A small MLP on tiles of samples: bias-free layers with ReLU between them, forward and backward.
//
// Compiled once per instruction set (mlp_avx512.cpp, mlp_avx2.cpp, mlp_portable.cpp) and chosen at run time. Everything
// here has internal linkage and includes nothing, so that no function compiled for one instruction set can be linked in
// place of another's. One matrix kernel serves all three products of a layer with rows X [samples][K] and weights
// W [N][K]:
//   Y = X W^T    v_X = v_Y W    v_W = v_Y^T X
// Activations of a tile stay in the L2 cache; the backward pass computes them again, which is cheaper than to store
// them.
#pragma once
#include "mlp.h"

namespace {

using nerftrain::kMlpMaxLayers;
using nerftrain::MlpShape;

// NT_LANES floats in a vector, NT_VECTORS of them and NT_ROWS rows in a block of registers: set by the including file.
typedef float Lanes __attribute__((vector_size(4 * NT_LANES), aligned(4), may_alias));
constexpr int kLanes = NT_LANES, kVectors = NT_VECTORS, kRows = NT_ROWS;
constexpr int kTile = 240;  // samples; a multiple of every NT_ROWS

inline int padded(int width) { return (width + kLanes - 1) / kLanes * kLanes; }

// C[m][n] (+)= sum_k A(m, k) B[k][n] for ROWS x (VECTORS * kLanes) of C; A(m, k) = a[m * a_row + k * a_step].
template <int ROWS, int VECTORS, bool ADD>
inline void block(int depth, const float* a, long a_row, long a_step, const float* b, long b_row, float* c,
                  long c_row) {
  Lanes sum[ROWS][VECTORS];
  for (int m = 0; m < ROWS; ++m)
    for (int v = 0; v < VECTORS; ++v)
      sum[m][v] = ADD ? *reinterpret_cast<const Lanes*>(c + m * c_row + v * kLanes) : Lanes{};
  for (int k = 0; k < depth; ++k) {
    Lanes row[VECTORS];
    for (int v = 0; v < VECTORS; ++v) row[v] = *reinterpret_cast<const Lanes*>(b + k * b_row + v * kLanes);
    for (int m = 0; m < ROWS; ++m) {
      const float x = a[m * a_row + k * a_step];
      for (int v = 0; v < VECTORS; ++v) sum[m][v] += x * row[v];
    }
  }
  for (int m = 0; m < ROWS; ++m)
    for (int v = 0; v < VECTORS; ++v) *reinterpret_cast<Lanes*>(c + m * c_row + v * kLanes) = sum[m][v];
}

template <int VECTORS, bool ADD>
inline void rows(int m_end, int depth, const float* a, long a_row, long a_step, const float* b, long b_row, float* c,
                 long c_row) {
  int m = 0;
  for (; m + kRows <= m_end; m += kRows)
    block<kRows, VECTORS, ADD>(depth, a + m * a_row, a_row, a_step, b, b_row, c + m * c_row, c_row);
  for (; m < m_end; ++m) block<1, VECTORS, ADD>(depth, a + m * a_row, a_row, a_step, b, b_row, c + m * c_row, c_row);
}

template <bool ADD>
inline void multiply(int m_end, int n_end, int depth, const float* a, long a_row, long a_step, const float* b,
                     long b_row, float* c, long c_row) {
  int n = 0;
  for (; n + kVectors * kLanes <= n_end; n += kVectors * kLanes)
    rows<kVectors, ADD>(m_end, depth, a, a_row, a_step, b + n, b_row, c + n, c_row);
  for (; n < n_end; n += kLanes) rows<1, ADD>(m_end, depth, a, a_row, a_step, b + n, b_row, c + n, c_row);
}

inline long tile_floats(const MlpShape& shape) {
  long total = 0;
  for (int l = 0; l <= shape.num_layers; ++l) total += long(kTile) * padded(shape.widths[l]);
  return total;
}

inline void copy_rows(const float* from, long from_row, float* to, long to_row, int num, int width) {
  for (int s = 0; s < num; ++s)
    for (int k = 0; k < to_row; ++k) to[s * to_row + k] = k < width ? from[s * from_row + k] : 0.f;
}

// Weights with padded rows: W [N][padded K] for the way back, W^T [K][padded N] for the way forth.
struct Packed {
  const float* forth[kMlpMaxLayers];
  const float* back[kMlpMaxLayers];
};

inline long packed_floats(const MlpShape& shape) {
  long total = 0;
  for (int l = 0; l < shape.num_layers; ++l)
    total += long(shape.widths[l]) * padded(shape.widths[l + 1]) + long(shape.widths[l + 1]) * padded(shape.widths[l]);
  return total;
}

inline Packed pack(const MlpShape& shape, const float* weights, float* room) {
  Packed packed;
  for (int l = 0; l < shape.num_layers; ++l) {
    const int k_end = shape.widths[l], n_end = shape.widths[l + 1], k_row = padded(k_end), n_row = padded(n_end);
    packed.forth[l] = room;
    for (int k = 0; k < k_end; ++k)
      for (int n = 0; n < n_row; ++n) *room++ = n < n_end ? weights[n * k_end + k] : 0.f;
    packed.back[l] = room;
    for (int n = 0; n < n_end; ++n)
      for (int k = 0; k < k_row; ++k) *room++ = k < k_end ? weights[n * k_end + k] : 0.f;
    weights += k_end * n_end;
  }
  return packed;
}

// activations[0] holds the tile's inputs; fills activations[1 ...], the last without ReLU.
inline void tile_forward(const MlpShape& shape, const Packed& packed, int num, float* const* activations) {
  for (int l = 0; l < shape.num_layers; ++l) {
    const int k_row = padded(shape.widths[l]), n_row = padded(shape.widths[l + 1]);
    multiply<false>(num, n_row, shape.widths[l], activations[l], k_row, 1, packed.forth[l], n_row, activations[l + 1],
                    n_row);
    if (l + 1 == shape.num_layers) break;
    float* y = activations[l + 1];
    for (int i = 0; i < num * n_row; ++i) y[i] = y[i] < 0.f ? 0.f : y[i];  // NaN stays NaN
  }
}

inline void split_tile(const MlpShape& shape, float* room, float** activations) {
  for (int l = 0; l <= shape.num_layers; ++l) {
    activations[l] = room;
    room += long(kTile) * padded(shape.widths[l]);
  }
}

long scratch_floats(const MlpShape& shape) { return packed_floats(shape) + 2 * tile_floats(shape); }

long gradient_floats(const MlpShape& shape) {
  long total = 0;
  for (int l = 0; l < shape.num_layers; ++l) total += long(shape.widths[l + 1]) * padded(shape.widths[l]);
  return total;
}

void forward(const MlpShape& shape, const float* weights, const float* x, float* y, long begin, long end,
             float* scratch) {
  const Packed packed = pack(shape, weights, scratch);
  float* activations[kMlpMaxLayers + 1];
  split_tile(shape, scratch + packed_floats(shape), activations);
  const int width_in = shape.widths[0], width_out = shape.widths[shape.num_layers];
  for (long s = begin; s < end; s += kTile) {
    const int num = int(end - s < kTile ? end - s : kTile);
    copy_rows(x + s * width_in, width_in, activations[0], padded(width_in), num, width_in);
    tile_forward(shape, packed, num, activations);
    copy_rows(activations[shape.num_layers], padded(width_out), y + s * width_out, width_out, num, width_out);
  }
}

// Adds this range's share of the weights' gradient to v_weights, whose rows are padded (gradient_floats).
void backward(const MlpShape& shape, const float* weights, const float* x, const float* v_y, float* v_x,
              float* v_weights, long begin, long end, float* scratch) {
  const Packed packed = pack(shape, weights, scratch);
  float *activations[kMlpMaxLayers + 1], *gradients[kMlpMaxLayers + 1];
  split_tile(shape, scratch + packed_floats(shape), activations);
  split_tile(shape, scratch + packed_floats(shape) + tile_floats(shape), gradients);
  const int layers = shape.num_layers, width_in = shape.widths[0], width_out = shape.widths[layers];
  for (long s = begin; s < end; s += kTile) {
    const int num = int(end - s < kTile ? end - s : kTile);
    copy_rows(x + s * width_in, width_in, activations[0], padded(width_in), num, width_in);
    tile_forward(shape, packed, num, activations);
    copy_rows(v_y + s * width_out, width_out, gradients[layers], padded(width_out), num, width_out);
    float* v_w = v_weights + gradient_floats(shape);
    for (int l = layers - 1; l >= 0; --l) {
      const int k_end = shape.widths[l], n_end = shape.widths[l + 1], k_row = padded(k_end), n_row = padded(n_end);
      v_w -= long(n_end) * k_row;
      multiply<true>(n_end, k_row, num, gradients[l + 1], 1, n_row, activations[l], k_row, v_w, k_row);
      multiply<false>(num, k_row, n_end, gradients[l + 1], n_row, 1, packed.back[l], k_row, gradients[l], k_row);
      if (l == 0) break;
      const float* y = activations[l];
      float* v = gradients[l];
      for (int i = 0; i < num * k_row; ++i) v[i] = y[i] > 0.f ? v[i] : 0.f;
    }
    copy_rows(gradients[0], padded(width_in), v_x + s * width_in, width_in, num, width_in);
  }
}

// Sums padded gradients of `parts` ranges into v_weights as the weights are laid out.
void reduce(const MlpShape& shape, const float* padded_parts, int parts, float* v_weights) {
  const long stride = gradient_floats(shape);
  for (int l = 0; l < shape.num_layers; ++l) {
    const int k_end = shape.widths[l], n_end = shape.widths[l + 1], k_row = padded(k_end);
    for (int n = 0; n < n_end; ++n)
      for (int k = 0; k < k_end; ++k) {
        float sum = 0.f;
        for (int p = 0; p < parts; ++p) sum += padded_parts[p * stride + long(n) * k_row + k];
        *v_weights++ = sum;
      }
    padded_parts += long(n_end) * k_row;
  }
}

}  // namespace
