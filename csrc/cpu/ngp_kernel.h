// Instant-NGP's density and colour MLPs (arXiv:2201.05989, section 5.4) with what lies between and behind them, on
// tiles of samples: harmonics of directions, exp(x - 1) for the density, the logistic function for the colour.
//
// Compiled once per instruction set and chosen at run time. Nothing but inputs and outputs leaves the L2 cache; the
// backward pass computes activations again.
#pragma once
#include "../common/spherical_harmonics.h"
#include "exponential.h"
#include "layers_kernel.h"
#include "ngp.h"

namespace {

using nerftrain::NgpShape;
using nerftrain::NgpWeights;

constexpr int kColors = 3;  // channels beyond these are left as they are
// exp overflows float32 at 88.7, and a gradient of exp(15) is the most that training survives (Instant-NGP's code).
constexpr float kMostExponent = 80.f, kMostSlope = 15.f;

// What one thread works in.
struct Room {
  TileRegisters registers;
  Packed density, color;
  Tile density_tile, color_tile, v_density, v_color;
  float* geometry;  // [kTile][padded 1 + G]
  float* channels;  // [kTile][padded K]
  float* v_inputs;  // [kTile][padded inputs of the colour MLP]
  float* v_features;
  float* lines;
  int geometry_row, channel_row, input_row, feature_row;

  Room(const NgpShape& shape, const NgpWeights& weights, float* at) {
    const auto take = [&](long floats) {
      float* taken = at;
      at += floats;
      return taken;
    };
    density = pack(shape.density, weights.density, take(packed_floats(shape.density)));
    color = pack(shape.color, weights.color, take(packed_floats(shape.color)));
    density_tile = split_tile(shape.density, take(tile_floats(shape.density)));
    color_tile = split_tile(shape.color, take(tile_floats(shape.color)));
    v_density = split_tile(shape.density, take(tile_floats(shape.density)));
    v_color = split_tile(shape.color, take(tile_floats(shape.color)));
    geometry_row = padded(shape.num_geometry() + 1);
    channel_row = padded(shape.num_channels());
    input_row = padded(shape.color.widths[0]);
    feature_row = padded(shape.num_features());
    geometry = take(long(kTile) * geometry_row);
    channels = take(long(kTile) * channel_row);
    v_inputs = take(long(kTile) * input_row);
    v_features = take(long(kTile) * feature_row);
    lines = take(lines_floats(shape));
  }

  static long lines_floats(const NgpShape& shape) {
    const int widths[] = {shape.num_features(), shape.num_geometry() + 1, shape.color.widths[0], shape.num_channels()};
    int widest = 0;
    for (int width : widths) widest = widest < padded(width) ? padded(width) : widest;
    return 2l * widest;
  }
};

long scratch_floats(const NgpShape& shape) {
  const long rows = padded(shape.num_geometry() + 1) + padded(shape.num_channels()) + padded(shape.color.widths[0]) +
                    padded(shape.num_features());
  return packed_floats(shape.density) + packed_floats(shape.color) + 2 * tile_floats(shape.density) +
         2 * tile_floats(shape.color) + kTile * rows + Room::lines_floats(shape);
}

long gradient_floats(const NgpShape& shape) {
  return gradient_floats_of(shape.density) + gradient_floats_of(shape.color);
}

inline void geometry_of(const NgpShape& shape, const Room& room, const float* features, int num) {
  fill_from(room.density_tile.at[0], features, shape.num_features(), num, room.lines);
  layers_forth(shape.density, room.density, num, room.density_tile, room.geometry);
}

inline void densities(const Room& room, int num, float* density) {
  for (int s = 0; s < num; ++s) density[s] = room.geometry[s * room.geometry_row] - 1.f;
  for (int s = 0; s < num; ++s) density[s] = exponential(density[s] > kMostExponent ? kMostExponent : density[s]);
}

// Fills room.channels: colours between 0 and 1, and other channels. A row of geometry begins with what colour needs.
inline void channels_of(const NgpShape& shape, const Room& room, const float* geometry, int geometry_row,
                        const float* directions, int num) {
  const int num_geometry = shape.num_geometry(), k_end = shape.num_channels();
  const int num_harmonics = shape.sh_degree * shape.sh_degree;
  float harmonics[nerftrain::kMaxShDegree * nerftrain::kMaxShDegree];
  fill(room.color_tile.at[0], shape.color.widths[0], num, room.lines, [&](int s, float* line) {
    const float* d = directions + 3l * s;
    // The samples of a ray lie side by side and share its direction.
    if (s == 0 || d[0] != d[-3] || d[1] != d[-2] || d[2] != d[-1])
      nerftrain::spherical_harmonics<float>(d[0], d[1], d[2], shape.sh_degree, harmonics);
    copy(geometry + s * geometry_row, line, num_geometry);
    copy(harmonics, line + num_geometry, num_harmonics);
  });
  layers_forth(shape.color, room.color, num, room.color_tile, room.channels);
  const int num_colors = k_end < kColors ? k_end : kColors;
  float colors[kTile * kColors];  // side by side, for a loop over vectors
  for (int s = 0; s < num; ++s) copy(room.channels + s * room.channel_row, colors + s * num_colors, num_colors);
  for (int i = 0; i < num * num_colors; ++i) colors[i] = 1.f / (1.f + exponential(-colors[i]));
  for (int s = 0; s < num; ++s) copy(colors + s * num_colors, room.channels + s * room.channel_row, num_colors);
}

inline void hand_channels(const NgpShape& shape, const Room& room, int num, float* channels) {
  const int k_end = shape.num_channels();
  for (int s = 0; s < num; ++s) copy(room.channels + s * room.channel_row, channels + s * k_end, k_end);
}

void density(const NgpShape& shape, const NgpWeights& weights, const float* features, float* out, float* geometry,
             long begin, long end, float* scratch) {
  const Room room(shape, weights, scratch);
  for (long first = begin; first < end; first += kTile) {
    const int num = int(end - first < kTile ? end - first : kTile);
    geometry_of(shape, room, features + first * shape.num_features(), num);
    densities(room, num, out + first);
    const int width = shape.num_geometry();
    for (int s = 0; geometry && s < num; ++s)
      copy(room.geometry + s * room.geometry_row + 1, geometry + (first + s) * width, width);
  }
}

void color(const NgpShape& shape, const NgpWeights& weights, const float* geometry, const float* directions,
           float* channels, long begin, long end, float* scratch) {
  const Room room(shape, weights, scratch);
  const int width = shape.num_geometry();
  for (long first = begin; first < end; first += kTile) {
    const int num = int(end - first < kTile ? end - first : kTile);
    channels_of(shape, room, geometry + first * width, width, directions + 3 * first, num);
    hand_channels(shape, room, num, channels + first * shape.num_channels());
  }
}

void forward(const NgpShape& shape, const NgpWeights& weights, const float* features, const float* directions,
             float* channels, float* out, long begin, long end, float* scratch) {
  const Room room(shape, weights, scratch);
  for (long first = begin; first < end; first += kTile) {
    const int num = int(end - first < kTile ? end - first : kTile);
    geometry_of(shape, room, features + first * shape.num_features(), num);
    densities(room, num, out + first);
    channels_of(shape, room, room.geometry + 1, room.geometry_row, directions + 3 * first, num);
    hand_channels(shape, room, num, channels + first * shape.num_channels());
  }
}

// Adds this range's share of the weights' gradients, the density MLP's first, to v_weights, whose rows are padded.
void backward(const NgpShape& shape, const NgpWeights& weights, const float* features, const float* directions,
              const float* v_channels, const float* v_density, float* v_features, float* v_weights, long begin,
              long end, float* scratch) {
  const Room room(shape, weights, scratch);
  const int width = shape.num_features(), num_geometry = shape.num_geometry(), k_end = shape.num_channels();
  for (long first = begin; first < end; first += kTile) {
    const int num = int(end - first < kTile ? end - first : kTile);
    geometry_of(shape, room, features + first * width, num);
    channels_of(shape, room, room.geometry + 1, room.geometry_row, directions + 3 * first, num);
    fill(room.v_color.at[shape.color.num_layers], k_end, num, room.lines, [&](int s, float* line) {
      for (int k = 0; k < k_end; ++k) {
        const float v = v_channels[(first + s) * k_end + k], y = room.channels[s * room.channel_row + k];
        line[k] = k < kColors ? v * y * (1.f - y) : v;
      }
    });
    layers_back(shape.color, room.color, num, room.color_tile, room.v_color,
                v_weights + gradient_floats_of(shape.density), room.v_inputs);
    float slopes[kTile];
    for (int s = 0; s < num; ++s) slopes[s] = room.geometry[s * room.geometry_row] - 1.f;
    for (int s = 0; s < num; ++s) slopes[s] = exponential(slopes[s] > kMostSlope ? kMostSlope : slopes[s]);
    fill(room.v_density.at[shape.density.num_layers], num_geometry + 1, num, room.lines, [&](int s, float* line) {
      line[0] = v_density[first + s] * slopes[s];
      copy(room.v_inputs + s * room.input_row, line + 1, num_geometry);
    });
    layers_back(shape.density, room.density, num, room.density_tile, room.v_density, v_weights, room.v_features);
    for (int s = 0; s < num; ++s) copy(room.v_features + s * room.feature_row, v_features + (first + s) * width, width);
  }
}

void reduce(const NgpShape& shape, const float* padded_parts, int parts, float* v_density_weights,
            float* v_color_weights) {
  const long stride = gradient_floats(shape);
  add_parts(shape.density, padded_parts, parts, stride, v_density_weights);
  add_parts(shape.color, padded_parts + gradient_floats_of(shape.density), parts, stride, v_color_weights);
}

}  // namespace
