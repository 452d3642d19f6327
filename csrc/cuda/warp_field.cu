// A warp field (T-NeRF: D-NeRF, arXiv:2011.13961, eq. 4) on tensor cores: frequencies of a position and a time, four
// hidden layers of 64, and how far the position moves, in one pass (layers.h). Nothing is kept for the way back, which
// evaluates the layers anew.
#include <stdexcept>

#include "../operators/tensors.h"
#include "backend.h"
#include "layers.h"

namespace nerftrain {

constexpr int kWarpIn = 48, kDepth = 4;  // inputs are padded with zeros
constexpr int kWarpOutRows = 16;         // of the last matrix, for the way back
constexpr int kCoordinates = 4;          // x, y, z and time

struct WarpField {
  int64_t num;  // N
  int position_frequencies, time_frequencies;
  float reach;
  const float* positions;  // [N][3] in 0..1
  const float* times;      // [N] in 0..1
  const float* weights;    // [64][num_inputs()], [64][64] for each further hidden layer, [3][64]
  float* moved;            // [N][3]
  // Of the backward pass:
  const float* v_moved;  // [N][3]
  float* v_weights;      // as weights, zero at first
  float scale;           // gradients are multiplied by it in half precision, a power of two
  const int64_t* used;   // [] how many samples count, of which those behind are nobody's; null: all

  __host__ __device__ int num_inputs() const { return 3 * (1 + 2 * position_frequencies) + 1 + 2 * time_frequencies; }
  __device__ int64_t num_used() const { return used ? min_of(*used, num) : num; }
  // Where a padded matrix's number lies among the weights; below zero where it is padding.
  __device__ int first(int row, int column) const { return column < num_inputs() ? row * num_inputs() + column : -1; }
  __device__ int hidden(int layer, int row, int column) const {  // from layer - 1 to layer
    return kWidth * (num_inputs() + (layer - 1) * kWidth + row) + column;
  }
  __device__ int last(int row, int column) const { return row < 3 ? hidden(kDepth, row, column) : -1; }
  __device__ float number(int place) const { return number_at(weights, place); }
};

// How an input follows from a coordinate: the sine of scale * coordinate + phase, or scale * coordinate itself.
struct Frequency {
  float scale, phase;
  int coordinate;
  bool plain;
};

// As models/encodings.py orders them: a group of coordinates, its sines and its cosines, frequency by frequency.
__device__ __forceinline__ Frequency frequency_of(const WarpField& field, int input) {
  int first = 0, size = 3, count = field.position_frequencies;
  if (input >= size * (1 + 2 * count)) {
    input -= size * (1 + 2 * count);
    first = 3, size = 1, count = field.time_frequencies;
  }
  if (input < size) return {1.f, 0.f, first + input, true};
  const int wave = input - size, k = wave / size % max_of(count, 1);
  if (wave >= 2 * size * count) return {0.f, 0.f, 0, true};  // padding
  return {float(1 << k), wave < size * count ? 0.f : 1.57079633f, first + wave % size, false};
}

// Where the inputs' frequencies and the matrices lie in shared memory, in words.
struct WarpForwardPlaces {
  static constexpr int frequencies = 0;
  static constexpr int first = frequencies + kWarpIn * int(sizeof(Frequency) / sizeof(uint32_t));
  static constexpr int hidden = first + kWidth * stride_of(kWarpIn);
  static constexpr int hidden_size = kWidth * stride_of(kWidth);
  static constexpr int last = hidden + (kDepth - 1) * hidden_size;
  static constexpr int end = last + kWarpOutRows * stride_of(kWidth);
};

// In the buffers at the end a block's samples stand beside each other.
struct WarpBackwardPlaces : WarpForwardPlaces {
  static constexpr int inputs = WarpForwardPlaces::end;
  static constexpr int deltas = inputs + kShown;
  static constexpr int end = deltas + kShown;
};

__device__ __forceinline__ Frequency* frequencies() {
  return reinterpret_cast<Frequency*>(dynamic_shared + WarpForwardPlaces::frequencies);
}

__device__ __forceinline__ void fill_hidden(const WarpField& field) {
  using At = WarpForwardPlaces;
  for (int i = int(threadIdx.x); i < kWarpIn; i += kThreads) frequencies()[i] = frequency_of(field, i);
  fill<kWidth, kWarpIn>(dynamic_shared + At::first, [&](int r, int c) { return field.number(field.first(r, c)); });
  for (int l = 1; l < kDepth; ++l)
    fill<kWidth, kWidth>(dynamic_shared + At::hidden + (l - 1) * At::hidden_size,
                         [&](int r, int c) { return field.number(field.hidden(l, r, c)); });
}

// The frequencies of 16 samples, of which those from num on are zeros.
__device__ __forceinline__ void encode(uint32_t (&inputs)[kWarpIn / 16][4], const WarpField& field, int64_t num,
                                       int64_t first) {
  const Lane lane;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = first + lane.group + 8 * half;
    float x[kCoordinates] = {};
    if (row < num) {
#pragma unroll
      for (int a = 0; a < 3; ++a) x[a] = field.positions[3 * row + a] * 2 - 1;  // the box is -1..1 here
      x[3] = field.times[row];
    }
    const auto value = [&](int column) {
      const Frequency f = frequencies()[column];
      const float at = f.coordinate < 2 ? (f.coordinate == 0 ? x[0] : x[1]) : (f.coordinate == 2 ? x[2] : x[3]);
      return f.plain ? at * f.scale : __sinf(at * f.scale + f.phase);
    };
#pragma unroll
    for (int k = 0; k < kWarpIn / 16; ++k)
#pragma unroll
      for (int upper = 0; upper < 2; ++upper) {
        const int column = 16 * k + 2 * lane.place + 8 * upper;
        inputs[k][half + 2 * upper] = pack_halves(value(column), value(column + 1));
      }
  }
  __syncwarp();  // samples that are not there, and plain inputs, have parted lanes
}

__device__ __forceinline__ void hidden_layers(uint32_t (&given)[kDepth][kHiddenTiles][4],
                                              const uint32_t (&inputs)[kWarpIn / 16][4]) {
  using At = WarpForwardPlaces;
  apply_packed(given[0], inputs, dynamic_shared + At::first, Rectified{});
#pragma unroll
  for (int l = 1; l < kDepth; ++l)
    apply_packed(given[l], given[l - 1], dynamic_shared + At::hidden + (l - 1) * At::hidden_size, Rectified{});
}

__global__ void __launch_bounds__(kThreads) warp_half_forward_kernel(WarpField field) {
  using At = WarpForwardPlaces;
  fill_hidden(field);
  fill<kWarpOutRows, kWidth>(dynamic_shared + At::last, [&](int r, int c) { return field.number(field.last(r, c)); });
  __syncthreads();
  const Lane lane;
  const int warp = int(threadIdx.x) / kWarp;
  const int64_t num = field.num_used();
  for (int64_t tile = blockIdx.x; tile * kTile < num; tile += gridDim.x) {
    const int64_t first = tile * kTile + 16 * warp;
    uint32_t inputs[kWarpIn / 16][4], given[kDepth][kHiddenTiles][4];
    encode(inputs, field, num, first);
    hidden_layers(given, inputs);
    float out[1][4];
    apply(out, given[kDepth - 1], dynamic_shared + At::last);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t row = first + lane.group + i / 2 * 8;
      const int axis = 2 * lane.place + i % 2;
      if (row < num && axis < 3)
        field.moved[3 * row + axis] = field.positions[3 * row + axis] + field.reach * out[0][i];
    }
  }
}

__global__ void __launch_bounds__(kThreads) warp_half_backward_kernel(WarpField field) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800  // before, for so few warps registers do not suffice: torch serves
  using At = WarpBackwardPlaces;
  uint32_t *shared = dynamic_shared, *shown = shared + At::inputs, *deltas = shared + At::deltas;
  fill_hidden(field);
  fill<kWarpOutRows, kWidth>(shared + At::last, [&](int r, int c) { return field.number(field.last(r, c)); });
  __syncthreads();

  const Lane lane;
  const int warp = int(threadIdx.x) / kWarp;
  MatrixGradient<kHiddenTiles, kWarpIn / 8> v_first;
  MatrixGradient<kHiddenTiles, kWidth / 8> v_hidden[kDepth - 1];
  MatrixGradient<1, kWidth / 8> v_last;
  v_first.clear();
#pragma unroll
  for (int l = 0; l < kDepth - 1; ++l) v_hidden[l].clear();
  v_last.clear();
  const int64_t num = field.num_used();
  for (int64_t tile = blockIdx.x; tile * kTile < num; tile += gridDim.x) {
    const int64_t first = tile * kTile + 16 * warp;
    uint32_t inputs[kWarpIn / 16][4], given[kDepth][kHiddenTiles][4];
    encode(inputs, field, num, first);
    hidden_layers(given, inputs);
    uint32_t v_out[1][4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first + lane.group + 8 * half;
      float v[2] = {};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int axis = 2 * lane.place + i;
        if (row < num && axis < 3) v[i] = field.scale * field.reach * field.v_moved[3 * row + axis];
      }
      v_out[0][half] = pack_halves(v[0], v[1]);
    }
    learn(v_last, shown, deltas, given[kDepth - 1], v_out);
    uint32_t v_given[2][kHiddenTiles][4];  // of a layer and the one behind it, in turn
    apply_back_packed(v_given[0], v_out, shared + At::last, Masked<kHiddenTiles>{given[kDepth - 1]});
#pragma unroll
    for (int l = kDepth - 1; l > 0; --l) {
      auto& behind = v_given[(kDepth - 1 - l) % 2];
      learn(v_hidden[l - 1], shown, deltas, given[l - 1], behind);
      apply_back_packed(v_given[(kDepth - l) % 2], behind, shared + At::hidden + (l - 1) * At::hidden_size,
                        Masked<kHiddenTiles>{given[l - 1]});
    }
    learn(v_first, shown, deltas, inputs, v_given[(kDepth - 1) % 2]);
  }
  const float factor = 1 / field.scale;
  v_first.give(field.v_weights, factor, [&](int r, int c) { return field.first(r, c); });
#pragma unroll
  for (int l = 1; l < kDepth; ++l)
    v_hidden[l - 1].give(field.v_weights, factor, [&](int r, int c) { return field.hidden(l, r, c); });
  v_last.give(field.v_weights, factor, [&](int r, int c) { return field.last(r, c); });
#endif
}

inline WarpField describe_warp(const Tensor& positions, const Tensor& times, const Tensor& weights,
                               int64_t position_frequencies, int64_t time_frequencies, double reach,
                               const Tensor& used) {
  WarpField field{};
  field.num = positions.size(0);
  field.position_frequencies = int(position_frequencies);
  field.time_frequencies = int(time_frequencies);
  if (field.num_inputs() > kWarpIn || weights.numel() != kWidth * (field.num_inputs() + (kDepth - 1) * kWidth + 3))
    throw std::runtime_error("a warp on tensor cores: these widths are for others to evaluate");
  field.reach = float(reach);
  field.positions = read<float>(positions);
  field.times = read<float>(times);
  field.weights = read<float>(weights);
  field.used = last_of(used);
  return field;
}

// Of samples from used[-1] on, if anything says so, places are left as they are.
Tensor warp_half_fwd(const Tensor& positions, const Tensor& times, const Tensor& weights, int64_t position_frequencies,
                     int64_t time_frequencies, double reach, const Tensor& used) {
  WarpField field = describe_warp(positions, times, weights, position_frequencies, time_frequencies, reach, used);
  Tensor moved = make(positions, {field.num, 3});
  field.moved = write<float>(moved);
  if (field.num)
    launch_layers(positions, warp_half_forward_kernel, 4, WarpForwardPlaces::end, WarpForwardPlaces::end, field);
  return moved;
}

Tensor warp_half_bwd(const Tensor& positions, const Tensor& times, const Tensor& weights, const Tensor& v_moved,
                     int64_t position_frequencies, int64_t time_frequencies, double reach, const Tensor& used,
                     double scale) {
  WarpField field = describe_warp(positions, times, weights, position_frequencies, time_frequencies, reach, used);
  Tensor v_weights = torch::stable::new_zeros(weights, {weights.numel()});
  field.v_moved = read<float>(v_moved);
  field.v_weights = write<float>(v_weights);
  field.scale = float(scale);
  if (field.num)
    launch_layers(positions, warp_half_backward_kernel, 1, WarpBackwardPlaces::inputs, WarpBackwardPlaces::end, field);
  return v_weights;
}

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("warp_half_fwd", TORCH_BOX(&nerftrain::warp_half_fwd));
  m.impl("warp_half_bwd", TORCH_BOX(&nerftrain::warp_half_bwd));
}
