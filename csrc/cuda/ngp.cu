// Instant-NGP's two MLPs (arXiv:2201.05989, section 5.4) on tensor cores, from features in half precision: as in
// tiny-cuda-nn's fully fused MLPs (Mueller et al., arXiv:2106.12372) weights stay in shared memory and activations in
// registers. A warp takes 16 samples; its matrices are the fragments of warp.h, so that what one layer gives is, packed
// to half precision, what the next takes. Sums are float32.
//
// Widths are padded with zeros: features to kIn, hidden layers are 64 wide, the density MLP gives 16 numbers of which
// the first is the raw density, the colour MLP takes those (a zero in the density's place) and 16 harmonics.
#include <stdexcept>

#include "../common/spherical_harmonics.h"
#include "../operators/tensors.h"
#include "backend.h"
#include "warp.h"

namespace nerftrain {

extern __shared__ uint32_t dynamic_shared[];

constexpr int kWidth = 64, kGeometry = 16, kHarmonics = 16, kColorIn = kGeometry + kHarmonics, kOut = 8;
constexpr int kLogistic = 3;  // channels, the colour, that pass the logistic function
constexpr int kWarps = 8, kThreads = kWarps * kWarp, kTile = kWarps * 16;  // samples of a block at a time
constexpr int kHiddenTiles = kWidth / 16;

struct NgpHalf {
  int64_t num;  // N
  int num_features, num_geometry, num_harmonics, num_channels, degree;
  const uint32_t* features;      // [N][num_features / 2] pairs in half precision
  const float* directions;       // [N][3]
  const float* density_weights;  // [64][num_features], [1 + num_geometry][64]
  const float* color_weights;    // [64][num_geometry + num_harmonics], [64][64] for each further layer, [channels][64]
  float* channels;               // [N][num_channels]
  float* density;                // [N]
  // Of the backward pass:
  const float* v_channels;   // [N][num_channels]
  const float* v_density;    // [N]
  float* v_features;         // [N][num_features]
  float* v_density_weights;  // as density_weights, zero at first
  float* v_color_weights;    // as color_weights, zero at first
  float scale;               // gradients are multiplied by it in half precision, a power of two

  __device__ int color_in() const { return num_geometry + num_harmonics; }
  // Where a padded matrix's number lies among its network's weights; below zero where it is padding.
  __device__ int density_hidden(int row, int column) const {
    return column < num_features ? row * num_features + column : -1;
  }
  __device__ int density_out(int row, int column) const {
    return row <= num_geometry ? kWidth * (num_features + row) + column : -1;
  }
  __device__ int color_first(int row, int column) const {
    const int harmonic = column - kGeometry;
    if (harmonic < 0) return column >= 1 && column <= num_geometry ? row * color_in() + column - 1 : -1;
    return harmonic < num_harmonics ? row * color_in() + num_geometry + harmonic : -1;
  }
  __device__ int color_hidden(int row, int column) const { return kWidth * (color_in() + row) + column; }
  __device__ int color_out(int num_layers, int row, int column) const {
    return row < num_channels ? kWidth * (color_in() + (num_layers - 1) * kWidth + row) + column : -1;
  }
};

// Words between the rows of a matrix of pairs in shared memory: the rows that a warp reads at once lie in other banks.
__host__ __device__ constexpr int stride_of(int columns) { return (columns + 8) / 2; }

// Where the matrices lie in shared memory, in words. Transposed ones are for the backward pass alone, as are the
// buffers in which a block's samples stand beside each other.
template <int kIn, int kLayers>
struct SharedPlaces {
  static constexpr int density_hidden = 0;
  static constexpr int density_out = density_hidden + kWidth * stride_of(kIn);
  static constexpr int color_first = density_out + kGeometry * stride_of(kWidth);
  static constexpr int color_hidden = color_first + kWidth * stride_of(kColorIn);
  static constexpr int color_out = color_hidden + (kLayers - 1) * kWidth * stride_of(kWidth);
  static constexpr int forward = color_out + kOut * stride_of(kWidth);

  static constexpr int density_hidden_t = forward;
  static constexpr int density_out_t = density_hidden_t + kIn * stride_of(kWidth);
  static constexpr int color_first_t = density_out_t + kWidth * stride_of(kGeometry);
  static constexpr int color_hidden_t = color_first_t + kGeometry * stride_of(kWidth);
  static constexpr int color_out_t = color_hidden_t + (kLayers - 1) * kWidth * stride_of(kWidth);
  static constexpr int inputs = color_out_t + kWidth * stride_of(16);
  static constexpr int deltas = inputs + kWidth * stride_of(kTile);
  static constexpr int backward = deltas + kWidth * stride_of(kTile);
};

// Fills a matrix in shared memory with what number(row, column) gives, by all threads of the block.
template <int kRows, int kColumns, class Number>
__device__ __forceinline__ void fill(uint32_t* words, Number number) {
  for (int i = int(threadIdx.x); i < kRows * kColumns / 2; i += kThreads) {
    const int row = i / (kColumns / 2), pair = i % (kColumns / 2);
    words[row * stride_of(kColumns) + pair] = pack_halves(number(row, 2 * pair), number(row, 2 * pair + 1));
  }
}

template <int kIn, int kLayers, bool kColor, bool kTransposed>
__device__ __forceinline__ void fill_weights(const NgpHalf& net) {
  using At = SharedPlaces<kIn, kLayers>;
  uint32_t* shared = dynamic_shared;
  const auto of_density = [&net](int place) { return place < 0 ? 0.f : net.density_weights[place]; };
  const auto of_color = [&net](int place) { return place < 0 ? 0.f : net.color_weights[place]; };
  const auto density_hidden = [&](int r, int c) { return of_density(net.density_hidden(r, c)); };
  const auto density_out = [&](int r, int c) { return of_density(net.density_out(r, c)); };
  const auto color_first = [&](int r, int c) { return of_color(net.color_first(r, c)); };
  const auto color_hidden = [&](int r, int c) { return of_color(net.color_hidden(r, c)); };
  const auto color_out = [&](int r, int c) { return of_color(net.color_out(kLayers, r, c)); };
  fill<kWidth, kIn>(shared + At::density_hidden, density_hidden);
  fill<kGeometry, kWidth>(shared + At::density_out, density_out);
  if (kColor) {
    fill<kWidth, kColorIn>(shared + At::color_first, color_first);
    if (kLayers > 1) fill<kWidth, kWidth>(shared + At::color_hidden, color_hidden);
    fill<kOut, kWidth>(shared + At::color_out, color_out);
  }
  if (kTransposed) {
    fill<kIn, kWidth>(shared + At::density_hidden_t, [&](int r, int c) { return density_hidden(c, r); });
    fill<kWidth, kGeometry>(shared + At::density_out_t, [&](int r, int c) { return density_out(c, r); });
    fill<kGeometry, kWidth>(shared + At::color_first_t, [&](int r, int c) { return color_first(c, r); });
    if (kLayers > 1)
      fill<kWidth, kWidth>(shared + At::color_hidden_t, [&](int r, int c) { return color_hidden(c, r); });
    fill<kWidth, 16>(shared + At::color_out_t, [&](int r, int c) { return c < kOut ? color_out(c, r) : 0.f; });
  }
  __syncthreads();
}

// The places of a lane in the fragments.
struct Lane {
  int group, place;
  __device__ Lane() : group(lane_of_warp() / 4), place(lane_of_warp() % 4) {}
};

// sums = inputs * matrix^T for 16 samples: a matrix [8 kTilesN][16 kTilesK] in shared memory, a row for each output.
template <int kTilesK, int kTilesN>
__device__ __forceinline__ void apply(float (&sums)[kTilesN][4], const uint32_t (&inputs)[kTilesK][4],
                                      const uint32_t* matrix) {
  const Lane lane;
#pragma unroll
  for (int n = 0; n < kTilesN; ++n) {
    sums[n][0] = sums[n][1] = sums[n][2] = sums[n][3] = 0;
    const uint32_t* row = matrix + (8 * n + lane.group) * stride_of(16 * kTilesK) + lane.place;
#pragma unroll
    for (int k = 0; k < kTilesK; ++k) {
      const uint32_t b[2] = {row[8 * k], row[8 * k + 4]};
      multiply_add(sums[n], inputs[k], b);
    }
  }
}

template <int kTiles>
__device__ __forceinline__ void pack(uint32_t (&out)[kTiles][4], const float (&sums)[2 * kTiles][4]) {
#pragma unroll
  for (int k = 0; k < kTiles; ++k)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      out[k][j] = pack_halves(sums[2 * k + j / 2][j % 2 * 2], sums[2 * k + j / 2][j % 2 * 2 + 1]);
}

template <int kTiles>
__device__ __forceinline__ void rectify(float (&sums)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[n][i] = max_of(0.f, sums[n][i]);  // NaN stays NaN
}

// What passes a rectified layer backwards: what it gave was more than zero.
template <int kTiles>
__device__ __forceinline__ void mask(float (&sums)[2 * kTiles][4], const uint32_t (&given)[kTiles][4]) {
#pragma unroll
  for (int k = 0; k < kTiles; ++k)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float* pair = sums[2 * k + j / 2] + j % 2 * 2;
      if (!(given[k][j] & 0x7fffu)) pair[0] = 0;
      if (!(given[k][j] & 0x7fff0000u)) pair[1] = 0;
    }
}

// What 16 samples give in each layer.
template <int kIn, int kLayers>
struct Activations {
  uint32_t features[kIn / 16][4], hidden[kHiddenTiles][4], color_in[2][4], color[kLayers][kHiddenTiles][4];
  float raw_density[2];  // rows group and group + 8, in the lanes of place 0
  float out[1][4];
};

template <int kIn, int kLayers>
__device__ __forceinline__ void density_forward(Activations<kIn, kLayers>& now, const NgpHalf& net, int64_t first) {
  using At = SharedPlaces<kIn, kLayers>;
  const Lane lane;
  const int pairs = net.num_features / 2;
#pragma unroll
  for (int k = 0; k < kIn / 16; ++k)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t row = first + lane.group + j % 2 * 8;
      const int pair = 8 * k + lane.place + j / 2 * 4;
      now.features[k][j] = row < net.num && pair < pairs ? net.features[row * pairs + pair] : 0u;
    }
  float sums[2 * kHiddenTiles][4], geometry[2][4];
  apply(sums, now.features, dynamic_shared + At::density_hidden);
  rectify(sums);
  pack(now.hidden, sums);
  apply(geometry, now.hidden, dynamic_shared + At::density_out);
  now.raw_density[0] = geometry[0][0];
  now.raw_density[1] = geometry[0][2];
  if (lane.place == 0) geometry[0][0] = geometry[0][2] = 0;
  uint32_t packed[1][4];
  pack(packed, geometry);
#pragma unroll
  for (int j = 0; j < 4; ++j) now.color_in[0][j] = packed[0][j];
}

template <int kIn, int kLayers>
__device__ __forceinline__ void color_forward(Activations<kIn, kLayers>& now, const NgpHalf& net, int64_t first) {
  using At = SharedPlaces<kIn, kLayers>;
  const Lane lane;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = first + lane.group + 8 * half;
    float d[3] = {}, harmonics[kHarmonics] = {};
    if (row < net.num)
      for (int a = 0; a < 3; ++a) d[a] = net.directions[3 * row + a];
    spherical_harmonics<float>(d[0], d[1], d[2], net.degree, harmonics);
#pragma unroll
    for (int place = 0; place < 4; ++place) {  // chosen, not indexed: else they would lie in local memory
      if (place != lane.place) continue;
      now.color_in[1][half] = pack_halves(harmonics[2 * place], harmonics[2 * place + 1]);
      now.color_in[1][2 + half] = pack_halves(harmonics[2 * place + 8], harmonics[2 * place + 9]);
    }
  }
  float sums[2 * kHiddenTiles][4];
  apply(sums, now.color_in, dynamic_shared + At::color_first);
  rectify(sums);
  pack(now.color[0], sums);
  if constexpr (kLayers > 1) {
    apply(sums, now.color[0], dynamic_shared + At::color_hidden);
    rectify(sums);
    pack(now.color[1], sums);
  }
  apply(now.out, now.color[kLayers - 1], dynamic_shared + At::color_out);
}

__device__ __forceinline__ float logistic(float x) { return 1 / (1 + expf(-x)); }

template <int kIn, int kLayers, bool kColor>
__global__ void __launch_bounds__(kThreads) ngp_half_forward_kernel(NgpHalf net) {
  fill_weights<kIn, kLayers, kColor, false>(net);
  const Lane lane;
  const int warp = int(threadIdx.x) / kWarp;
  for (int64_t tile = blockIdx.x; tile * kTile < net.num; tile += gridDim.x) {
    const int64_t first = tile * kTile + 16 * warp;
    Activations<kIn, kLayers> now;
    density_forward(now, net, first);
    if constexpr (kColor) color_forward(now, net, first);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first + lane.group + 8 * half;
      if (row >= net.num) continue;
      if (lane.place == 0) net.density[row] = expf(min_of(now.raw_density[half] - 1, 80.f));
      if constexpr (kColor)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int channel = 2 * lane.place + i;
          const float raw = now.out[0][2 * half + i];
          if (channel < net.num_channels)
            net.channels[row * net.num_channels + channel] = channel < kLogistic ? logistic(raw) : raw;
        }
    }
  }
}

// Puts the 16 samples of a warp beside those of the others: row by row a number of all samples of the block.
template <int kTiles>
__device__ __forceinline__ void show(uint32_t* words, const uint32_t (&given)[kTiles][4]) {
  const Lane lane;
  uint16_t* numbers = reinterpret_cast<uint16_t*>(words);
  const int sample = int(threadIdx.x) / kWarp * 16 + lane.group;
#pragma unroll
  for (int k = 0; k < kTiles; ++k)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint16_t* to = numbers + (16 * k + 2 * lane.place + j / 2 * 8) * (2 * stride_of(kTile)) + sample + j % 2 * 8;
      to[0] = uint16_t(given[k][j] & 0xffffu);
      to[2 * stride_of(kTile)] = uint16_t(given[k][j] >> 16);
    }
}

// The gradient of a matrix, over all samples of the block: tiles of 16 x 8 of its numbers are dealt out to the warps.
template <int kTilesM, int kTilesN>
struct MatrixGradient {
  static constexpr int kCount = kTilesM * kTilesN / kWarps;
  static_assert(kTilesM * kTilesN % kWarps == 0);
  float sums[kCount][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int t = 0; t < kCount; ++t) sums[t][0] = sums[t][1] = sums[t][2] = sums[t][3] = 0;
  }

  __device__ __forceinline__ void add(const uint32_t* deltas, const uint32_t* inputs) {
    const Lane lane;
    const int warp = int(threadIdx.x) / kWarp;
    constexpr int kStride = stride_of(kTile);
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      const int tile = t * kWarps + warp;
      const uint32_t* row = deltas + (tile / kTilesN * 16 + lane.group) * kStride + lane.place;
      const uint32_t* column = inputs + (tile % kTilesN * 8 + lane.group) * kStride + lane.place;
#pragma unroll
      for (int s = 0; s < kTile / 2; s += 8) {
        const uint32_t a[4] = {row[s], row[8 * kStride + s], row[s + 4], row[8 * kStride + s + 4]};
        const uint32_t b[2] = {column[s], column[s + 4]};
        multiply_add(sums[t], a, b);
      }
    }
  }

  // place(row, column) says where a number belongs, below zero nowhere.
  template <class Place>
  __device__ __forceinline__ void give(float* weights, float factor, Place place) const {
    const Lane lane;
    const int warp = int(threadIdx.x) / kWarp;
#pragma unroll
    for (int t = 0; t < kCount; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int tile = t * kWarps + warp;
        const int row = tile / kTilesN * 16 + lane.group + i / 2 * 8,
                  column = tile % kTilesN * 8 + 2 * lane.place + i % 2;
        const int to = place(row, column);
        if (to >= 0) atomic_add(weights + to, sums[t][i] * factor);
      }
  }
};

// Shows a layer's inputs and the gradient of its sums to the block, and adds what follows for its matrix.
template <int kTilesX, int kTilesY, int kTilesM, int kTilesN>
__device__ __forceinline__ void learn(MatrixGradient<kTilesM, kTilesN>& gradient, uint32_t* inputs, uint32_t* deltas,
                                      const uint32_t (&x)[kTilesX][4], const uint32_t (&y)[kTilesY][4]) {
  __syncthreads();  // nobody reads what stood there
  show(inputs, x);
  show(deltas, y);
  __syncthreads();
  gradient.add(deltas, inputs);
}

template <int kIn, int kLayers>
__global__ void __launch_bounds__(kThreads, 1) ngp_half_backward_kernel(NgpHalf net) {
  using At = SharedPlaces<kIn, kLayers>;
  fill_weights<kIn, kLayers, true, true>(net);
  uint32_t *shared = dynamic_shared, *inputs = shared + At::inputs, *deltas = shared + At::deltas;
  const Lane lane;
  const int warp = int(threadIdx.x) / kWarp;
  MatrixGradient<kHiddenTiles, kIn / 8> v_density_hidden;
  MatrixGradient<1, kWidth / 8> v_density_out, v_color_out;
  MatrixGradient<kHiddenTiles, kColorIn / 8> v_color_first;
  MatrixGradient<kHiddenTiles, kWidth / 8> v_color_hidden;
  v_density_hidden.clear();
  v_density_out.clear();
  v_color_first.clear();
  v_color_hidden.clear();
  v_color_out.clear();
  for (int64_t tile = blockIdx.x; tile * kTile < net.num; tile += gridDim.x) {
    const int64_t first = tile * kTile + 16 * warp;
    Activations<kIn, kLayers> now;
    density_forward(now, net, first);
    color_forward(now, net, first);

    float v_raw_density[2] = {};
    uint32_t v_out[1][4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first + lane.group + 8 * half;
      const bool there = row < net.num;
      // exp with the gradient that Instant-NGP's code clamps at exp(15).
      if (there && lane.place == 0)
        v_raw_density[half] = net.scale * net.v_density[row] * expf(min_of(now.raw_density[half] - 1, 15.f));
      float v[2] = {};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int channel = 2 * lane.place + i;
        if (!there || channel >= net.num_channels) continue;
        const float y = logistic(now.out[0][2 * half + i]);
        v[i] = net.scale * net.v_channels[row * net.num_channels + channel] * (channel < kLogistic ? y * (1 - y) : 1.f);
      }
      v_out[0][half] = pack_halves(v[0], v[1]);
    }

    float sums[2 * kHiddenTiles][4];
    uint32_t v_hidden[kHiddenTiles][4];
    learn(v_color_out, inputs, deltas, now.color[kLayers - 1], v_out);
    apply(sums, v_out, shared + At::color_out_t);
    mask(sums, now.color[kLayers - 1]);
    pack(v_hidden, sums);
    if constexpr (kLayers > 1) {
      learn(v_color_hidden, inputs, deltas, now.color[0], v_hidden);
      apply(sums, v_hidden, shared + At::color_hidden_t);
      mask(sums, now.color[0]);
      pack(v_hidden, sums);
    }
    learn(v_color_first, inputs, deltas, now.color_in, v_hidden);
    float v_geometry[2][4];
    apply(v_geometry, v_hidden, shared + At::color_first_t);
    if (lane.place == 0) {
      v_geometry[0][0] = v_raw_density[0];
      v_geometry[0][2] = v_raw_density[1];
    }
    uint32_t v_packed[1][4];
    pack(v_packed, v_geometry);
    learn(v_density_out, inputs, deltas, now.hidden, v_packed);
    apply(sums, v_packed, shared + At::density_out_t);
    mask(sums, now.hidden);
    pack(v_hidden, sums);
    learn(v_density_hidden, inputs, deltas, now.features, v_hidden);
    float v_in[kIn / 8][4];
    apply(v_in, v_hidden, shared + At::density_hidden_t);
#pragma unroll
    for (int n = 0; n < kIn / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t row = first + lane.group + i / 2 * 8;
        const int feature = 8 * n + 2 * lane.place + i % 2;
        if (row < net.num && feature < net.num_features)
          net.v_features[row * net.num_features + feature] = v_in[n][i] / net.scale;
      }
  }
  const float factor = 1 / net.scale;
  v_density_hidden.give(net.v_density_weights, factor, [&](int r, int c) { return net.density_hidden(r, c); });
  v_density_out.give(net.v_density_weights, factor, [&](int r, int c) { return net.density_out(r, c); });
  v_color_first.give(net.v_color_weights, factor, [&](int r, int c) { return net.color_first(r, c); });
  if (kLayers > 1)
    v_color_hidden.give(net.v_color_weights, factor, [&](int r, int c) { return net.color_hidden(r, c); });
  v_color_out.give(net.v_color_weights, factor, [&](int r, int c) { return net.color_out(kLayers, r, c); });
}

// Describes the networks; the colour's widths are empty where densities alone are asked for.
inline NgpHalf describe(const Tensor& features, const Tensor& density_weights,
                        const std::vector<int64_t>& density_widths, const std::vector<int64_t>& color_widths,
                        int64_t degree) {
  const auto fits = [](bool yes) {
    if (!yes) throw std::runtime_error("ngp on tensor cores: these widths are for others to evaluate");
  };
  fits(density_widths.size() == 3 && density_widths[1] == kWidth && density_widths[2] <= kGeometry);
  fits(density_widths[0] % 2 == 0 && density_widths[0] <= 64 && features.size(1) == density_widths[0]);
  NgpHalf net{};
  net.num = features.size(0);
  net.num_features = int(density_widths[0]);
  net.num_geometry = int(density_widths[2]) - 1;
  net.num_harmonics = int(degree * degree);
  net.degree = int(degree);
  net.features = static_cast<const uint32_t*>(features.const_data_ptr());
  net.density_weights = read<float>(density_weights);
  net.scale = 1;
  if (color_widths.empty()) return net;
  fits(color_widths.size() == 3 || color_widths.size() == 4);
  for (size_t l = 1; l + 1 < color_widths.size(); ++l) fits(color_widths[l] == kWidth);
  fits(degree >= 1 && degree <= kMaxShDegree && color_widths[0] == net.num_geometry + degree * degree);
  net.num_channels = int(color_widths.back());
  fits(net.num_channels <= kOut);
  return net;
}

// Blocks stay for many tiles: their weights are read once.
template <int kIn, int kLayers>
void run_forward(const Tensor& like, const NgpHalf& net, bool color) {
  if (net.num == 0) return;
  using At = SharedPlaces<kIn, kLayers>;
  const size_t shared = (color ? At::forward : At::color_first) * sizeof(uint32_t);
  const auto kernel =
      color ? ngp_half_forward_kernel<kIn, kLayers, true> : ngp_half_forward_kernel<kIn, kLayers, false>;
  Cuda::launch(like, kernel, Cuda::standing_grid(net.num, kTile, color ? 3 : 4), kThreads, shared, net);
}

template <int kIn, int kLayers>
void run_backward(const Tensor& like, const NgpHalf& net) {
  if (net.num == 0) return;
  const size_t shared = SharedPlaces<kIn, kLayers>::backward * sizeof(uint32_t);
  Cuda::launch(like, ngp_half_backward_kernel<kIn, kLayers>, Cuda::standing_grid(net.num, kTile, 1), kThreads, shared,
               net);
}

// Calls run(kIn, kLayers) with the padded number of features and the colour's hidden layers as constants.
template <class Run>
void with_shape(const NgpHalf& net, size_t num_layers, Run run) {
  const auto with_layers = [&](auto in) {
    num_layers > 1 ? run(in, std::integral_constant<int, 2>{}) : run(in, std::integral_constant<int, 1>{});
  };
  net.num_features > 32 ? with_layers(std::integral_constant<int, 64>{})
                        : with_layers(std::integral_constant<int, 32>{});
}

Tensor ngp_half_density(const Tensor& features, const Tensor& weights, std::vector<int64_t> widths) {
  NgpHalf net = describe(features, weights, widths, {}, 0);
  Tensor density = make(weights, {net.num});
  net.density = write<float>(density);
  with_shape(net, 1, [&]<int kIn, int kLayers>(std::integral_constant<int, kIn>, std::integral_constant<int, kLayers>) {
    run_forward<kIn, kLayers>(weights, net, false);
  });
  return density;
}

std::tuple<Tensor, Tensor> ngp_half_fwd(const Tensor& features, const Tensor& directions, const Tensor& density_weights,
                                        const Tensor& color_weights, std::vector<int64_t> density_widths,
                                        std::vector<int64_t> color_widths, int64_t degree) {
  NgpHalf net = describe(features, density_weights, density_widths, color_widths, degree);
  Tensor channels = make(directions, {net.num, net.num_channels}), density = make(directions, {net.num});
  net.directions = read<float>(directions);
  net.color_weights = read<float>(color_weights);
  net.channels = write<float>(channels);
  net.density = write<float>(density);
  with_shape(net, color_widths.size() - 2,
             [&]<int kIn, int kLayers>(std::integral_constant<int, kIn>, std::integral_constant<int, kLayers>) {
               run_forward<kIn, kLayers>(directions, net, true);
             });
  return {channels, density};
}

std::tuple<Tensor, Tensor, Tensor> ngp_half_bwd(const Tensor& features, const Tensor& directions,
                                                const Tensor& density_weights, const Tensor& color_weights,
                                                const Tensor& v_channels, const Tensor& v_density,
                                                std::vector<int64_t> density_widths, std::vector<int64_t> color_widths,
                                                int64_t degree, double scale) {
  NgpHalf net = describe(features, density_weights, density_widths, color_widths, degree);
  Tensor v_features = make(directions, {net.num, net.num_features});
  Tensor v_density_weights = torch::stable::new_zeros(density_weights, {density_weights.numel()});
  Tensor v_color_weights = torch::stable::new_zeros(color_weights, {color_weights.numel()});
  net.directions = read<float>(directions);
  net.color_weights = read<float>(color_weights);
  net.v_channels = read<float>(v_channels);
  net.v_density = read<float>(v_density);
  net.v_features = write<float>(v_features);
  net.v_density_weights = write<float>(v_density_weights);
  net.v_color_weights = write<float>(v_color_weights);
  net.scale = float(scale);
  with_shape(net, color_widths.size() - 2,
             [&]<int kIn, int kLayers>(std::integral_constant<int, kIn>, std::integral_constant<int, kLayers>) {
               run_backward<kIn, kLayers>(directions, net);
             });
  return {v_features, v_density_weights, v_color_weights};
}

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("ngp_half_density", TORCH_BOX(&nerftrain::ngp_half_density));
  m.impl("ngp_half_fwd", TORCH_BOX(&nerftrain::ngp_half_fwd));
  m.impl("ngp_half_bwd", TORCH_BOX(&nerftrain::ngp_half_bwd));
}
