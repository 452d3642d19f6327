// Instant-NGP's two MLPs (arXiv:2201.05989, section 5.4) on tensor cores, from features in half precision: as in
// tiny-cuda-nn's fully fused MLPs (Mueller et al., arXiv:2106.12372) weights stay in shared memory and activations in
// registers (layers.h).
//
// Widths are padded with zeros: features to kIn, hidden layers to 64 (those of the colour have as many), the density
// MLP gives 16 numbers of which the first is the raw density, the colour MLP takes those (a zero in the density's
// place) and 16 harmonics.
#include <stdexcept>

#include "../common/spherical_harmonics.h"
#include "../operators/tensors.h"
#include "backend.h"
#include "layers.h"

namespace nerftrain {

constexpr int kGeometry = 16, kHarmonics = 16, kColorIn = kGeometry + kHarmonics, kOut = 8;
constexpr int kLogistic = 3;  // channels, the colour, that pass the logistic function

struct NgpHalf {
  int64_t num;  // N
  int num_features, width, num_geometry, num_harmonics, num_channels, degree;
  const uint32_t* features;      // [N][num_features / 2] pairs in half precision
  const float* directions;       // [N][3]
  const float* density_weights;  // [width][num_features], [1 + num_geometry][width]
  const float* color_weights;    // [64][num_geometry + num_harmonics], [64][64] for each further layer, [channels][64]
  float* channels;               // [N][num_channels]
  float* density;                // [N]
  // Of the backward pass:
  const float* v_channels;   // [N][num_channels]
  const float* v_density;    // [N]
  float* v_features;         // [N][num_features]
  uint32_t* v_geometry;      // [N][8] pairs in half precision, what the density MLP gave: between the two passes
  float* v_density_weights;  // as density_weights, zero at first
  float* v_color_weights;    // as color_weights, zero at first
  float scale;               // gradients are multiplied by it in half precision, a power of two
  const int64_t* used;       // [] how many samples count, of which those behind are nobody's; null: all

  __device__ int64_t num_used() const { return used ? min_of(*used, num) : num; }
  __device__ int color_in() const { return num_geometry + num_harmonics; }
  // Where a padded matrix's number lies among its network's weights; below zero where it is padding.
  __device__ int density_hidden(int row, int column) const {
    return row < width && column < num_features ? row * num_features + column : -1;
  }
  __device__ int density_out(int row, int column) const {
    return row <= num_geometry && column < width ? width * (num_features + row) + column : -1;
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

// Where the matrices lie in shared memory, in words: those of the density MLP, then those of the colour MLP. Each pass
// has those that it needs; transposed ones lead gradients back, and in the buffers at the end a block's samples stand
// beside each other.
template <int kIn, int kLayers>
struct ForwardPlaces {
  static constexpr int density_hidden = 0;
  static constexpr int density_out = density_hidden + kWidth * stride_of(kIn);
  static constexpr int color_first = density_out + kGeometry * stride_of(kWidth);
  static constexpr int color_hidden = color_first + kWidth * stride_of(kColorIn);
  static constexpr int color_out = color_hidden + (kLayers - 1) * kWidth * stride_of(kWidth);
  static constexpr int end = color_out + kOut * stride_of(kWidth);
};

template <int kIn, int kLayers>
struct ColorBackwardPlaces : ForwardPlaces<kIn, kLayers> {
  static constexpr int color_first_t = ForwardPlaces<kIn, kLayers>::end;
  static constexpr int color_hidden_t = color_first_t + kGeometry * stride_of(kWidth);
  static constexpr int color_out_t = color_hidden_t + (kLayers - 1) * kWidth * stride_of(kWidth);
  static constexpr int inputs = color_out_t + kWidth * stride_of(16);
  static constexpr int deltas = inputs + kWidth * stride_of(kTile);
  static constexpr int end = deltas + kWidth * stride_of(kTile);
};

// Alone it has the raw density to find again.
template <int kIn, bool kAlone>
struct DensityBackwardPlaces {
  static constexpr int density_hidden = 0;
  static constexpr int density_hidden_t = density_hidden + kWidth * stride_of(kIn);
  static constexpr int density_out_t = density_hidden_t + kIn * stride_of(kWidth);
  static constexpr int inputs = density_out_t + kWidth * stride_of(kGeometry);
  static constexpr int deltas = inputs + kWidth * stride_of(kTile);
  static constexpr int density_out = deltas + kWidth * stride_of(kTile);
  static constexpr int end = density_out + (kAlone ? kGeometry * stride_of(kWidth) : 0);
};

// The numbers of the padded matrices by row and column.
struct Numbers {
  const NgpHalf& net;

  __device__ float of(const float* weights, int place) const { return place < 0 ? 0.f : weights[place]; }
  __device__ float density_hidden(int r, int c) const { return of(net.density_weights, net.density_hidden(r, c)); }
  __device__ float density_out(int r, int c) const { return of(net.density_weights, net.density_out(r, c)); }
  __device__ float color_first(int r, int c) const { return of(net.color_weights, net.color_first(r, c)); }
  __device__ float color_hidden(int r, int c) const { return of(net.color_weights, net.color_hidden(r, c)); }
  __device__ float color_out(int num_layers, int r, int c) const {
    return r < kOut ? of(net.color_weights, net.color_out(num_layers, r, c)) : 0.f;
  }
};

template <int kIn, int kLayers, bool kColor>
__device__ __forceinline__ void fill_forward(const NgpHalf& net) {
  using At = ForwardPlaces<kIn, kLayers>;
  uint32_t* shared = dynamic_shared;
  const Numbers numbers{net};
  fill<kWidth, kIn>(shared + At::density_hidden, [&](int r, int c) { return numbers.density_hidden(r, c); });
  fill<kGeometry, kWidth>(shared + At::density_out, [&](int r, int c) { return numbers.density_out(r, c); });
  if (!kColor) return;
  fill<kWidth, kColorIn>(shared + At::color_first, [&](int r, int c) { return numbers.color_first(r, c); });
  if (kLayers > 1)
    fill<kWidth, kWidth>(shared + At::color_hidden, [&](int r, int c) { return numbers.color_hidden(r, c); });
  fill<kOut, kWidth>(shared + At::color_out, [&](int r, int c) { return numbers.color_out(kLayers, r, c); });
}

// What 16 samples give in the layers of the colour MLP.
template <int kLayers>
struct Activations {
  uint32_t color_in[2][4], color[kLayers][kHiddenTiles][4];
  float raw_density[2];  // rows group and group + 8, in the lanes of place 0
  float out[1][4];
};

template <int kIn>
__device__ __forceinline__ void read_features(uint32_t (&features)[kIn / 16][4], const NgpHalf& net, int64_t num,
                                              int64_t first) {
  const Lane lane;
  const int pairs = net.num_features / 2;
#pragma unroll
  for (int k = 0; k < kIn / 16; ++k)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t row = first + lane.group + j % 2 * 8;
      const int pair = 8 * k + lane.place + j / 2 * 4;
      features[k][j] = row < num && pair < pairs ? net.features[row * pairs + pair] : 0u;
    }
}

template <int kIn, int kLayers>
__device__ __forceinline__ void density_forward(Activations<kLayers>& now, const NgpHalf& net, int64_t num,
                                                int64_t first) {
  using At = ForwardPlaces<kIn, kLayers>;
  const Lane lane;
  uint32_t features[kIn / 16][4], hidden[kHiddenTiles][4];
  read_features<kIn>(features, net, num, first);
  apply_packed(hidden, features, dynamic_shared + At::density_hidden, Rectified{});
  float geometry[2][4];
  apply(geometry, hidden, dynamic_shared + At::density_out);
  now.raw_density[0] = geometry[0][0];
  now.raw_density[1] = geometry[0][2];
  if (lane.place == 0) geometry[0][0] = geometry[0][2] = 0;
  uint32_t packed[1][4];
  pack(packed, geometry);
#pragma unroll
  for (int j = 0; j < 4; ++j) now.color_in[0][j] = packed[0][j];
}

template <int kIn, int kLayers>
__device__ __forceinline__ void color_forward(Activations<kLayers>& now, const NgpHalf& net, int64_t num,
                                              int64_t first) {
  using At = ForwardPlaces<kIn, kLayers>;
  const Lane lane;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = first + lane.group + 8 * half;
    float d[3] = {}, harmonics[kHarmonics] = {};
    if (row < num)
      for (int a = 0; a < 3; ++a) d[a] = net.directions[3 * row + a];
    spherical_harmonics<float>(d[0], d[1], d[2], net.degree, harmonics);
#pragma unroll
    for (int place = 0; place < 4; ++place) {  // chosen, not indexed: else they would lie in local memory
      if (place != lane.place) continue;
      now.color_in[1][half] = pack_halves(harmonics[2 * place], harmonics[2 * place + 1]);
      now.color_in[1][2 + half] = pack_halves(harmonics[2 * place + 8], harmonics[2 * place + 9]);
    }
  }
  apply_packed(now.color[0], now.color_in, dynamic_shared + At::color_first, Rectified{});
  if constexpr (kLayers > 1) apply_packed(now.color[1], now.color[0], dynamic_shared + At::color_hidden, Rectified{});
  apply(now.out, now.color[kLayers - 1], dynamic_shared + At::color_out);
}

__device__ __forceinline__ float logistic(float x) { return 1 / (1 + expf(-x)); }

template <int kIn, int kLayers, bool kColor>
__global__ void __launch_bounds__(kThreads) ngp_half_forward_kernel(NgpHalf net) {
  fill_forward<kIn, kLayers, kColor>(net);
  __syncthreads();
  const Lane lane;
  const int warp = int(threadIdx.x) / kWarp;
  const int64_t num = net.num_used();
  for (int64_t tile = blockIdx.x; tile * kTile < num; tile += gridDim.x) {
    const int64_t first = tile * kTile + 16 * warp;
    Activations<kLayers> now;
    density_forward<kIn>(now, net, num, first);
    if constexpr (kColor) color_forward<kIn>(now, net, num, first);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first + lane.group + 8 * half;
      if (row >= num) continue;
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

// Back from a density, by exp with the gradient that Instant-NGP's code clamps at exp(15).
__device__ __forceinline__ float v_of_raw_density(const NgpHalf& net, int64_t row, float raw) {
  return net.scale * net.v_density[row] * expf(min_of(raw - 1, 15.f));
}

// Back through the colour MLP, to what the density MLP gave. In two passes, this and the next, a thread's registers
// suffice for two blocks on a processor.
template <int kIn, int kLayers>
__global__ void __launch_bounds__(kThreads, 2) ngp_half_color_backward_kernel(NgpHalf net) {
  using At = ColorBackwardPlaces<kIn, kLayers>;
  uint32_t *shared = dynamic_shared, *inputs = shared + At::inputs, *deltas = shared + At::deltas;
  const Numbers numbers{net};
  fill_forward<kIn, kLayers, true>(net);
  fill<kGeometry, kWidth>(shared + At::color_first_t, [&](int r, int c) { return numbers.color_first(c, r); });
  if (kLayers > 1)
    fill<kWidth, kWidth>(shared + At::color_hidden_t, [&](int r, int c) { return numbers.color_hidden(c, r); });
  fill<kWidth, 16>(shared + At::color_out_t, [&](int r, int c) { return numbers.color_out(kLayers, c, r); });
  __syncthreads();

  const Lane lane;
  const int warp = int(threadIdx.x) / kWarp;
  MatrixGradient<1, kWidth / 8> v_color_out;
  MatrixGradient<kHiddenTiles, kColorIn / 8> v_color_first;
  MatrixGradient<kHiddenTiles, kWidth / 8> v_color_hidden;
  v_color_first.clear();
  v_color_hidden.clear();
  v_color_out.clear();
  const int64_t num = net.num_used();
  for (int64_t tile = blockIdx.x; tile * kTile < num; tile += gridDim.x) {
    const int64_t first = tile * kTile + 16 * warp;
    Activations<kLayers> now;
    density_forward<kIn>(now, net, num, first);
    color_forward<kIn>(now, net, num, first);

    float v_raw_density[2] = {};
    uint32_t v_out[1][4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first + lane.group + 8 * half;
      const bool there = row < num;
      if (there && lane.place == 0) v_raw_density[half] = v_of_raw_density(net, row, now.raw_density[half]);
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

    uint32_t v_hidden[kLayers][kHiddenTiles][4];
    learn(v_color_out, inputs, deltas, now.color[kLayers - 1], v_out);
    apply_packed(v_hidden[0], v_out, shared + At::color_out_t, Masked<kHiddenTiles>{now.color[kLayers - 1]});
    if constexpr (kLayers > 1) {
      learn(v_color_hidden, inputs, deltas, now.color[0], v_hidden[0]);
      apply_packed(v_hidden[1], v_hidden[0], shared + At::color_hidden_t, Masked<kHiddenTiles>{now.color[0]});
    }
    learn(v_color_first, inputs, deltas, now.color_in, v_hidden[kLayers - 1]);
    float v_geometry[2][4];
    apply(v_geometry, v_hidden[kLayers - 1], shared + At::color_first_t);
    if (lane.place == 0) {
      v_geometry[0][0] = v_raw_density[0];
      v_geometry[0][2] = v_raw_density[1];
    }
    uint32_t v_packed[1][4];
    pack(v_packed, v_geometry);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t row = first + lane.group + j % 2 * 8;
      if (row < num) net.v_geometry[row * (kGeometry / 2) + lane.place + j / 2 * 4] = v_packed[0][j];
    }
  }
  const float factor = 1 / net.scale;
  v_color_first.give(net.v_color_weights, factor, [&](int r, int c) { return net.color_first(r, c); });
  if (kLayers > 1)
    v_color_hidden.give(net.v_color_weights, factor, [&](int r, int c) { return net.color_hidden(r, c); });
  v_color_out.give(net.v_color_weights, factor, [&](int r, int c) { return net.color_out(kLayers, r, c); });
}

// Back through the density MLP: from what the pass before has left, or alone, from densities.
template <int kIn, bool kAlone>
__global__ void __launch_bounds__(kThreads, 2) ngp_half_density_backward_kernel(NgpHalf net) {
  using At = DensityBackwardPlaces<kIn, kAlone>;
  uint32_t *shared = dynamic_shared, *inputs = shared + At::inputs, *deltas = shared + At::deltas;
  const Numbers numbers{net};
  fill<kWidth, kIn>(shared + At::density_hidden, [&](int r, int c) { return numbers.density_hidden(r, c); });
  fill<kIn, kWidth>(shared + At::density_hidden_t, [&](int r, int c) { return numbers.density_hidden(c, r); });
  fill<kWidth, kGeometry>(shared + At::density_out_t, [&](int r, int c) { return numbers.density_out(c, r); });
  if (kAlone)
    fill<kGeometry, kWidth>(shared + At::density_out, [&](int r, int c) { return numbers.density_out(r, c); });
  __syncthreads();

  const Lane lane;
  const int warp = int(threadIdx.x) / kWarp;
  const float factor = 1 / net.scale;
  MatrixGradient<kHiddenTiles, kIn / 8> v_density_hidden;
  MatrixGradient<1, kWidth / 8> v_density_out;
  v_density_hidden.clear();
  v_density_out.clear();
  const int64_t num = net.num_used();
  for (int64_t tile = blockIdx.x; tile * kTile < net.num; tile += gridDim.x) {
    const int64_t first = tile * kTile + 16 * warp;
    if (tile * kTile >= num) {  // what is nobody's has no gradient
      const int64_t begin = tile * kTile * net.num_features;
      const int64_t end = min_of((tile + 1) * kTile, net.num) * net.num_features;
      for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) net.v_features[i] = 0;
      continue;
    }
    uint32_t features[kIn / 16][4], hidden[kHiddenTiles][4], v_out[1][4], v_hidden[kHiddenTiles][4];
    read_features<kIn>(features, net, num, first);
    apply_packed(hidden, features, shared + At::density_hidden, Rectified{});
    if constexpr (kAlone) {
      float geometry[2][4];
      apply(geometry, hidden, shared + At::density_out);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t row = first + lane.group + 8 * half;
        const bool is_density = row < num && lane.place == 0;
        v_out[0][half] = is_density ? pack_halves(v_of_raw_density(net, row, geometry[0][2 * half]), 0) : 0u;
        v_out[0][2 + half] = 0u;
      }
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int64_t row = first + lane.group + j % 2 * 8;
        v_out[0][j] = row < num ? net.v_geometry[row * (kGeometry / 2) + lane.place + j / 2 * 4] : 0u;
      }
    }
    learn(v_density_out, inputs, deltas, hidden, v_out);
    apply_packed(v_hidden, v_out, shared + At::density_out_t, Masked<kHiddenTiles>{hidden});
    learn(v_density_hidden, inputs, deltas, features, v_hidden);
#pragma unroll
    for (int n = 0; n < kIn / 8; ++n) {
      float v_in[1][4];
      apply(v_in, v_hidden, shared + At::density_hidden_t + 8 * n * stride_of(kWidth));
      const int feature = 8 * n + 2 * lane.place;  // and the next: their number is even
      if (feature >= net.num_features) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t row = first + lane.group + 8 * half;
        if (row < net.num)  // those behind the last that is used get zeros
          *reinterpret_cast<float2*>(net.v_features + row * net.num_features + feature) = {
              v_in[0][2 * half] * factor, v_in[0][2 * half + 1] * factor};
      }
    }
  }
  v_density_hidden.give(net.v_density_weights, factor, [&](int r, int c) { return net.density_hidden(r, c); });
  v_density_out.give(net.v_density_weights, factor, [&](int r, int c) { return net.density_out(r, c); });
}

// Describes the networks; the colour's widths are empty where densities alone are asked for.
inline NgpHalf describe(const Tensor& features, const Tensor& density_weights,
                        const std::vector<int64_t>& density_widths, const std::vector<int64_t>& color_widths,
                        int64_t degree) {
  const auto fits = [](bool yes) {
    if (!yes) throw std::runtime_error("ngp on tensor cores: these widths are for others to evaluate");
  };
  fits(density_widths.size() == 3 && density_widths[1] <= kWidth && density_widths[2] <= kGeometry);
  fits(density_widths[0] % 2 == 0 && density_widths[0] <= 64 && features.size(1) == density_widths[0]);
  NgpHalf net{};
  net.num = features.size(0);
  net.num_features = int(density_widths[0]);
  net.width = int(density_widths[1]);
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
  using At = ForwardPlaces<kIn, kLayers>;
  const size_t shared = (color ? At::end : At::color_first) * sizeof(uint32_t);
  const auto kernel =
      color ? ngp_half_forward_kernel<kIn, kLayers, true> : ngp_half_forward_kernel<kIn, kLayers, false>;
  Cuda::launch(like, kernel, Cuda::standing_grid(like, net.num, kTile, 4), kThreads, shared, net);
}

template <int kIn, int kLayers>
void run_backward(const Tensor& like, const NgpHalf& net) {
  if (net.num == 0) return;
  const dim3 grid = Cuda::standing_grid(like, net.num, kTile, 2);
  const size_t color = ColorBackwardPlaces<kIn, kLayers>::end * sizeof(uint32_t);
  const size_t density = DensityBackwardPlaces<kIn, false>::end * sizeof(uint32_t);
  Cuda::launch(like, ngp_half_color_backward_kernel<kIn, kLayers>, grid, kThreads, color, net);
  Cuda::launch(like, ngp_half_density_backward_kernel<kIn, false>, grid, kThreads, density, net);
}

template <int kIn>
void run_density_backward(const Tensor& like, const NgpHalf& net) {
  if (net.num == 0) return;
  const size_t shared = DensityBackwardPlaces<kIn, true>::end * sizeof(uint32_t);
  Cuda::launch(like, ngp_half_density_backward_kernel<kIn, true>, Cuda::standing_grid(like, net.num, kTile, 2),
               kThreads, shared, net);
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

// Of samples from used[-1] on, if anything says so, densities and channels are left as they are.
Tensor ngp_half_density(const Tensor& features, const Tensor& weights, std::vector<int64_t> widths,
                        const Tensor& used) {
  NgpHalf net = describe(features, weights, widths, {}, 0);
  net.used = last_of(used);
  Tensor density = make(weights, {net.num});
  net.density = write<float>(density);
  with_shape(net, 1, [&]<int kIn, int kLayers>(std::integral_constant<int, kIn>, std::integral_constant<int, kLayers>) {
    run_forward<kIn, kLayers>(weights, net, false);
  });
  return density;
}

std::tuple<Tensor, Tensor> ngp_half_density_bwd(const Tensor& features, const Tensor& weights, const Tensor& v_density,
                                                std::vector<int64_t> widths, const Tensor& used, double scale) {
  NgpHalf net = describe(features, weights, widths, {}, 0);
  net.used = last_of(used);
  Tensor v_features = make(weights, {net.num, net.num_features});
  Tensor v_weights = torch::stable::new_zeros(weights, {weights.numel()});
  net.v_density = read<float>(v_density);
  net.v_features = write<float>(v_features);
  net.v_density_weights = write<float>(v_weights);
  net.scale = float(scale);
  with_shape(net, 1, [&]<int kIn, int kLayers>(std::integral_constant<int, kIn>, std::integral_constant<int, kLayers>) {
    run_density_backward<kIn>(weights, net);
  });
  return {v_features, v_weights};
}

std::tuple<Tensor, Tensor> ngp_half_fwd(const Tensor& features, const Tensor& directions, const Tensor& density_weights,
                                        const Tensor& color_weights, std::vector<int64_t> density_widths,
                                        std::vector<int64_t> color_widths, int64_t degree, const Tensor& used) {
  NgpHalf net = describe(features, density_weights, density_widths, color_widths, degree);
  net.used = last_of(used);
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
                                                int64_t degree, const Tensor& used, double scale) {
  NgpHalf net = describe(features, density_weights, density_widths, color_widths, degree);
  net.used = last_of(used);
  Tensor v_features = make(directions, {net.num, net.num_features}), v_geometry = make(features, {net.num, kGeometry});
  Tensor v_density_weights = torch::stable::new_zeros(density_weights, {density_weights.numel()});
  Tensor v_color_weights = torch::stable::new_zeros(color_weights, {color_weights.numel()});
  net.directions = read<float>(directions);
  net.color_weights = read<float>(color_weights);
  net.v_channels = read<float>(v_channels);
  net.v_density = read<float>(v_density);
  net.v_features = write<float>(v_features);
  net.v_geometry = static_cast<uint32_t*>(v_geometry.mutable_data_ptr());
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
  m.impl("ngp_half_density_bwd", TORCH_BOX(&nerftrain::ngp_half_density_bwd));
  m.impl("ngp_half_fwd", TORCH_BOX(&nerftrain::ngp_half_fwd));
  m.impl("ngp_half_bwd", TORCH_BOX(&nerftrain::ngp_half_bwd));
}
