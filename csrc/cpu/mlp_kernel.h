// A small MLP on tiles of samples: bias-free layers with ReLU between them, forward and backward.
//
// Compiled once per instruction set (mlp_avx512.cpp and others) and chosen at run time.
// Activations of a tile stay in the L2 cache; the backward pass computes them again, which is cheaper than to store
// them.
#pragma once
#include "layers_kernel.h"

namespace {

inline int widest(const MlpShape& shape) {
  int most = 0;
  for (int l = 0; l <= shape.num_layers; ++l) most = most < padded(shape.widths[l]) ? padded(shape.widths[l]) : most;
  return most;
}

long scratch_floats(const MlpShape& shape) {
  return packed_floats(shape) + 2 * tile_floats(shape) + long(kTile + 2) * widest(shape);
}

long gradient_floats(const MlpShape& shape) { return gradient_floats_of(shape); }

// What one thread works in.
struct Room {
  TileRegisters registers;
  Packed packed;
  Tile tile, v;
  float* rows;   // [kTile][widest]
  float* lines;  // [2][widest]

  Room(const MlpShape& shape, const float* weights, float* scratch) : packed(pack(shape, weights, scratch)) {
    scratch += packed_floats(shape);
    tile = split_tile(shape, scratch);
    v = split_tile(shape, scratch + tile_floats(shape));
    rows = scratch + 2 * tile_floats(shape);
    lines = rows + long(kTile) * widest(shape);
  }
};

void forward(const MlpShape& shape, const float* weights, const float* x, float* y, long begin, long end,
             float* scratch) {
  const Room room(shape, weights, scratch);
  const int width_in = shape.widths[0], width_out = shape.widths[shape.num_layers];
  for (long first = begin; first < end; first += kTile) {
    const int num = int(end - first < kTile ? end - first : kTile);
    fill_from(room.tile.at[0], x + first * width_in, width_in, num, room.lines);
    layers_forth(shape, room.packed, num, room.tile, room.rows);
    for (int s = 0; s < num; ++s) copy(room.rows + s * padded(width_out), y + (first + s) * width_out, width_out);
  }
}

// Adds this range's share of the weights' gradient to v_weights, whose rows are padded (gradient_floats).
void backward(const MlpShape& shape, const float* weights, const float* x, const float* v_y, float* v_x,
              float* v_weights, long begin, long end, float* scratch) {
  const Room room(shape, weights, scratch);
  const int width_in = shape.widths[0], width_out = shape.widths[shape.num_layers];
  for (long first = begin; first < end; first += kTile) {
    const int num = int(end - first < kTile ? end - first : kTile);
    fill_from(room.tile.at[0], x + first * width_in, width_in, num, room.lines);
    layers_forth(shape, room.packed, num, room.tile, room.rows);
    fill_from(room.v.at[shape.num_layers], v_y + first * width_out, width_out, num, room.lines);
    layers_back(shape, room.packed, num, room.tile, room.v, v_weights, room.rows);
    for (int s = 0; s < num; ++s) copy(room.rows + s * padded(width_in), v_x + (first + s) * width_in, width_in);
  }
}

void reduce(const MlpShape& shape, const float* padded_parts, int parts, float* v_weights) {
  add_parts(shape, padded_parts, parts, gradient_floats_of(shape), v_weights);
}

}  // namespace
