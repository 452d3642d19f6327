// Bias-free layers with ReLU between them on one tile of samples, forth and back.
//
// One matrix kernel serves all three products of a layer with rows X [samples][K] and weights W [N][K]:
//   Y = X W^T    v_X = v_Y W    v_W = v_Y^T X
#pragma once
#include "matrix_kernel.h"
#include "mlp.h"

namespace {

using nerftrain::kMlpMaxLayers;
using nerftrain::MlpShape;

inline int pairs_of(int width) { return (width + kPair - 1) / kPair; }

#if defined(NT_BF16)
// To the nearest, ties to even, as the vector instructions round.
inline uint32_t rounded(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
inline Element element_of(float first, float second) { return rounded(first) | rounded(second) << 16; }
#else
inline Element element_of(float first, float) { return first; }
#endif

// Weights as right-hand sides: W^T [K][padded N] for the way forth, W [N][padded K] for the way back.
struct Packed {
  const Element* forth[kMlpMaxLayers];
  const Element* back[kMlpMaxLayers];
};

inline long packed_floats(const MlpShape& shape) {
  long total = 0;
  for (int l = 0; l < shape.num_layers; ++l)
    total += long(pairs_of(shape.widths[l])) * padded(shape.widths[l + 1]) +
             long(pairs_of(shape.widths[l + 1])) * padded(shape.widths[l]);
  return total;
}

// Without weights the room holds them since an earlier call.
inline Packed pack(const MlpShape& shape, const float* weights, float* room) {
  Packed packed;
  Element* to = reinterpret_cast<Element*>(room);
  for (int l = 0; l < shape.num_layers; ++l) {
    const int k_end = shape.widths[l], n_end = shape.widths[l + 1], k_row = padded(k_end), n_row = padded(n_end);
    Element* const back = to + long(pairs_of(k_end)) * n_row;
    Element* const end = back + long(pairs_of(n_end)) * k_row;
    packed.forth[l] = to;
    packed.back[l] = back;
    if (weights) {
      const auto weight = [&](int n, int k) { return n < n_end && k < k_end ? weights[n * k_end + k] : 0.f; };
      for (int k = 0; k < k_end; k += kPair)
        for (int n = 0; n < n_row; ++n) *to++ = element_of(weight(n, k), weight(n, k + 1));
      for (int n = 0; n < n_end; n += kPair)
        for (int k = 0; k < k_row; ++k) *to++ = element_of(weight(n, k), weight(n + 1, k));
      weights += k_end * n_end;
    }
    to = end;
  }
  return packed;
}

// A tile's inputs and hidden activations, or the gradients of these and of the outputs.
struct Tile {
  Activations at[kMlpMaxLayers + 1];
};

inline long tile_floats(const MlpShape& shape) {
  long total = 0;
  for (int l = 0; l <= shape.num_layers; ++l) total += long(kTile) * padded(shape.widths[l]);
  return total;
}

inline Tile split_tile(const MlpShape& shape, float* room) {
  Tile tile;
  for (int l = 0; l <= shape.num_layers; ++l) {
    const int width = padded(shape.widths[l]);
    Element* by_row = reinterpret_cast<Element*>(room);
    tile.at[l] = {by_row, kPair == 1 ? by_row : by_row + kTile * width / 2, width};
    room += long(kTile) * width;
  }
  return tile;
}

// Whole blocks of rows: what a tile's samples are filled up to.
inline int filled(int num) { return (num + kRows - 1) / kRows * kRows; }

// Puts row(s, line) of num samples into activations, zeros into the rows up to filled(num). A row has at most `width`
// numbers; lines is room for two rows.
template <class Row>
inline void fill(const Activations& to, int width, int num, float* lines, const Row& row) {
  float* line[2] = {lines, lines + to.width};
  for (int i = 0; i < 2; ++i)
    for (int k = width; k < to.width; ++k) line[i][k] = 0.f;
  for (int s = 0; s < filled(num); s += 2) {
    for (int i = 0; i < 2; ++i) {
      if (s + i < num)
        row(s + i, line[i]);
      else
        for (int k = 0; k < width; ++k) line[i][k] = 0.f;
    }
    for (int n = 0; n < to.width; n += kLanes) to.put(s, n, load(line[0] + n), load(line[1] + n));
  }
}

// The same with rows that lie back to back in memory: whole vectors are taken from there.
inline void fill_from(const Activations& to, const float* from, int width, int num, float* lines) {
  if (width != to.width || num != filled(num)) {
    fill(to, width, num, lines, [&](int s, float* line) {
      for (int k = 0; k < width; ++k) line[k] = from[long(s) * width + k];
    });
    return;
  }
  for (int s = 0; s < num; s += 2) {
    const float* line = from + long(s) * width;
    for (int n = 0; n < width; n += kLanes) to.put(s, n, load(line + n), load(line + width + n));
  }
}

inline void copy(const float* from, float* to, int width) {
  for (int k = 0; k < width; ++k) to[k] = from[k];
}

// tile.at[0] holds the inputs; fills the hidden activations, and out [filled(num)][padded outputs] without ReLU.
inline void layers_forth(const MlpShape& shape, const Packed& packed, int num, const Tile& tile, float* out) {
  for (int l = 0; l < shape.num_layers; ++l) {
    const Activations &x = tile.at[l], &y = tile.at[l + 1];
    const auto product = [&](const auto& put) {
      multiply(filled(num), y.width, pairs_of(shape.widths[l]), x.by_row, x.width / kPair, 1, packed.forth[l], y.width,
               put);
    };
    if (l + 1 < shape.num_layers)
      product(Rectified{y});
    else
      product(WriteTo{out, y.width});
  }
}

inline long gradient_floats_of(const MlpShape& shape) {
  long total = 0;
  for (int l = 0; l < shape.num_layers; ++l) total += long(shape.widths[l + 1]) * padded(shape.widths[l]);
  return total;
}

// v.at[num_layers] holds the gradient of the outputs, zero in the rows beyond num. Adds to v_weights, whose rows are
// padded, and writes v_x [filled(num)][padded inputs].
inline void layers_back(const MlpShape& shape, const Packed& packed, int num, const Tile& tile, const Tile& v,
                        float* v_weights, float* v_x) {
  float* v_w = v_weights + gradient_floats_of(shape);
  for (int l = shape.num_layers - 1; l >= 0; --l) {
    const Activations &x = tile.at[l], &v_y = v.at[l + 1];
    const int n_end = shape.widths[l + 1];
    v_w -= long(n_end) * x.width;
    multiply(n_end, x.width, filled(num) / kPair, v_y.by_pair, 1, v_y.width, x.by_pair, x.width, AddTo{v_w, x.width});
    const auto product = [&](const auto& put) {
      multiply(filled(num), x.width, pairs_of(n_end), v_y.by_row, v_y.width / kPair, 1, packed.back[l], x.width, put);
    };
    if (l > 0)
      product(Masked{v.at[l], x});
    else
      product(WriteTo{v_x, x.width});
  }
}

// Sums padded gradients of `parts` ranges, each `stride` after the one before, into v_weights as weights are laid out.
inline void add_parts(const MlpShape& shape, const float* padded_parts, int parts, long stride, float* v_weights) {
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
