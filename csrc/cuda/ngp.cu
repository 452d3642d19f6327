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
constexpr int kOutRows = 16;  // of the matrix of the channels, for the way back
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

// Where the matrices lie in shared memory, in words: those of the density MLP, then those of the colour MLP and what it
// is given. Each pass has those that it needs; in the buffers at the end a block's samples stand beside each other.
template <int kIn, int kLayers>
struct ForwardPlaces {
  static constexpr int density_hidden = 0;
  static constexpr int density_out = density_hidden + kWidth * stride_of(kIn);
  static constexpr int color_first = density_out + kGeometry * stride_of(kWidth);
  static constexpr int color_hidden = color_first + kWidth * stride_of(kColorIn);
  static constexpr int color_out = color_hidden + (kLayers - 1) * kWidth * stride_of(kWidth);
  static constexpr int color_in = color_out + kOutRows * stride_of(kWidth);
  static constexpr int end = color_in + shown_words(kColorIn);
};

template <int kIn, int kLayers>
struct ColorBackwardPlaces : ForwardPlaces<kIn, kLayers> {
  static constexpr int v_out = ForwardPlaces<kIn, kLayers>::end;
  static constexpr int hidden = v_out + shown_words(kOutRows);  // of each layer, then its gradient
  static constexpr int end = hidden + kLayers * kShown;
};

template <int kIn>
struct DensityBackwardPlaces {
  static constexpr int density_hidden = 0;
  static constexpr int density_out = density_hidden + kWidth * stride_of(kIn);
  static constexpr int inputs = density_out + kGeometry * stride_of(kWidth);
  static constexpr int deltas = inputs + kShown;
  static constexpr int end = deltas + kShown;
};

// The numbers of the padded matrices by row and column.
struct Numbers {
  const NgpHalf& net;

  __device__ float density_hidden(int r, int c) const {
    return number_at(net.density_weights, net.density_hidden(r, c));
  }
  __device__ float density_out(int r, int c) const { return number_at(net.density_weights, net.density_out(r, c)); }
  __device__ float color_first(int r, int c) const { return number_at(net.color_weights, net.color_first(r, c)); }
  __device__ float color_hidden(int r, int c) const { return number_at(net.color_weights, net.color_hidden(r, c)); }
  __device__ float color_out(int num_layers, int r, int c) const {
    return number_at(net.color_weights, net.color_out(num_layers, r, c));
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
  fill<kOutRows, kWidth>(shared + At::color_out, [&](int r, int c) { return numbers.color_out(kLayers, r, c); });
}

// What 16 samples give in the layers of the colour MLP.
template <int kLayers>
struct Activations {
  uint32_t color[kLayers][kHiddenTiles][4];
  uint32_t geometry[1][4];
  float raw_density[2];  // rows group and group + 8, in the lanes of place 0
  float out[1][4];
};

template <int kIn>
__device__ __forceinline__ void read_features(uint32_t (&features)[kIn / 16][4], const NgpHalf& net, int64_t num,
                                              int64_t first) {
  const Lane lane(thread_here());
  const int pairs = net.num_features / 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = first + lane.group + half * 8;
    const uint32_t* its = net.features + min_of(row, num - 1) * pairs;
#pragma unroll
    for (int k = 0; k < kIn / 8; ++k) {
      const int pair = 4 * k + lane.place;
      const uint32_t word = its[min_of(pair, pairs - 1)];
      features[k / 2][half + k % 2 * 2] = row < num && pair < pairs ? word : 0u;
    }
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
  pack(now.geometry, geometry, AsTheyAre{});
}

// Puts what the colour MLP is given into shared memory: geometry, and a lane for each of 16 samples the harmonics of
// its direction.
__device__ __forceinline__ void show_color_in(uint32_t* color_in, const uint32_t (&geometry)[1][4], const NgpHalf& net,
                                              int64_t num, int64_t first) {
  show<kColorIn>(color_in, geometry);
  const int lane = lane_of_warp();
  if (lane >= 16) return;
  const float* d = net.directions + 3 * min_of(first + lane, num - 1);
  float harmonics[kHarmonics] = {};
  spherical_harmonics<float>(d[0], d[1], d[2], net.degree, harmonics);
  uint32_t* row = color_in + (int(threadIdx.x) / kWarp * 16 + lane) * stride_of(kColorIn) + kGeometry / 2;
#pragma unroll
  for (int i = 0; i < kHarmonics / 2; ++i) row[i] = pack_halves(harmonics[2 * i], harmonics[2 * i + 1]);
}

template <int kIn, int kLayers>
__device__ __forceinline__ void color_forward(Activations<kLayers>& now, const NgpHalf& net, int64_t num,
                                              int64_t first) {
  using At = ForwardPlaces<kIn, kLayers>;
  constexpr int kStride = stride_of(kColorIn);
  __syncwarp();  // nobody reads what stood there
  show_color_in(dynamic_shared + At::color_in, now.geometry, net, num, first);
  __syncwarp();
  const uint32_t* rows = square_rows<kStride>(dynamic_shared + At::color_in + int(threadIdx.x) / kWarp * 16 * kStride);
  uint32_t color_in[2][4];
  load_matrices<false>(color_in[0], rows);
  load_matrices<false>(color_in[1], rows + 8);
  apply_packed(now.color[0], color_in, dynamic_shared + At::color_first, Rectified{});
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
    __syncwarp();  // rows that are not there have parted lanes, in the tile before
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
  uint32_t *shared = dynamic_shared, *last = shared + At::hidden + (kLayers - 1) * kShown;
  fill_forward<kIn, kLayers, true>(net);
  __syncthreads();

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
    const Lane lane(thread_here());
    Activations<kLayers> now;
    __syncwarp();  // rows that are not there have parted lanes, in the tile before
    density_forward<kIn>(now, net, num, first);
    __syncthreads();  // nobody reads what stands in the buffers
    color_forward<kIn>(now, net, num, first);
#pragma unroll
    for (int l = 0; l < kLayers; ++l) show(shared + At::hidden + l * kShown, now.color[l]);

    float v_raw_density[2] = {};
    uint32_t v_out[1][4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first + lane.group + 8 * half, its = min_of(row, num - 1);
      const bool there = row < num;
      v_raw_density[half] = v_of_raw_density(net, its, now.raw_density[half]) * (there ? 1.f : 0.f);
      float v[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int channel = 2 * lane.place + i;
        const float y = logistic(now.out[0][2 * half + i]), slope = channel < kLogistic ? y * (1 - y) : 1.f;
        v[i] = net.v_channels[its * net.num_channels + min_of(channel, net.num_channels - 1)] *
               (there && channel < net.num_channels ? net.scale * slope : 0.f);
      }
      v_out[0][half] = pack_halves(v[0], v[1]);
    }

    show<kOutRows>(shared + At::v_out, v_out);
    __syncthreads();
    uint32_t v_hidden[kLayers][kHiddenTiles][4];
    v_color_out.template add<kOutRows>(shared + At::v_out, last);
    apply_back_packed(v_hidden[0], v_out, shared + At::color_out, MaskedAsShown{shown_row<kWidth>(last)});
    __syncthreads();
    show(last, v_hidden[0]);
    __syncthreads();
    if constexpr (kLayers > 1) {
      uint32_t* before = shared + At::hidden;
      v_color_hidden.add(last, before);
      apply_back_packed(v_hidden[1], v_hidden[0], shared + At::color_hidden, MaskedAsShown{shown_row<kWidth>(before)});
      __syncthreads();
      show(before, v_hidden[1]);
      __syncthreads();
    }
    v_color_first.template add<kWidth, kColorIn>(shared + At::hidden, shared + At::color_in);
    float v_geometry[2][4];
    apply_back<kColorIn>(v_geometry, v_hidden[kLayers - 1], square_rows<stride_of(kColorIn)>(shared + At::color_first));
    if (lane.place == 0) {
      v_geometry[0][0] = v_raw_density[0];
      v_geometry[0][2] = v_raw_density[1];
    }
    uint32_t v_packed[1][4];
    pack(v_packed, v_geometry, AsTheyAre{});
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
  using At = DensityBackwardPlaces<kIn>;
  uint32_t *shared = dynamic_shared, *inputs = shared + At::inputs, *deltas = shared + At::deltas;
  const Numbers numbers{net};
  fill<kWidth, kIn>(shared + At::density_hidden, [&](int r, int c) { return numbers.density_hidden(r, c); });
  fill<kGeometry, kWidth>(shared + At::density_out, [&](int r, int c) { return numbers.density_out(r, c); });
  __syncthreads();

  const int warp = int(threadIdx.x) / kWarp;
  const float factor = 1 / net.scale;
  MatrixGradient<kHiddenTiles, kIn / 8> v_density_hidden;
  MatrixGradient<1, kWidth / 8> v_density_out;
  v_density_hidden.clear();
  v_density_out.clear();
  const int64_t num = net.num_used();
  for (int64_t tile = blockIdx.x; tile * kTile < net.num; tile += gridDim.x) {
    const int64_t first = tile * kTile + 16 * warp;
    const Lane lane(thread_here());
    if (tile * kTile >= num) {  // what is nobody's has no gradient
      const int64_t begin = tile * kTile * net.num_features;
      const int64_t end = min_of((tile + 1) * kTile, net.num) * net.num_features;
      for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) net.v_features[i] = 0;
      continue;
    }
    uint32_t features[kIn / 16][4], hidden[kHiddenTiles][4], v_out[1][4], v_hidden[kHiddenTiles][4];
    __syncwarp();  // rows that are not there have parted lanes, in the tile before
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
    apply_back_packed(v_hidden, v_out, shared + At::density_out, Masked<kHiddenTiles>{hidden});
    learn(v_density_hidden, inputs, deltas, features, v_hidden);
    const uint32_t* rows = square_rows<stride_of(kIn)>(shared + At::density_hidden);
#pragma unroll
    for (int k = 0; k < kIn / 16; ++k) {
      float v_in[2][4];
      __syncwarp();  // features that are not there have parted lanes
      apply_back<kIn>(v_in, v_hidden, rows + 8 * k);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int feature = 16 * k + 8 * n + 2 * lane.place;  // and the next: their number is even
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int64_t row = first + lane.group + 8 * half;
          if (feature < net.num_features && row < net.num)  // those behind the last that is used get zeros
            *reinterpret_cast<float2*>(net.v_features + row * net.num_features + feature) = {
                v_in[n][2 * half] * factor, v_in[n][2 * half + 1] * factor};
        }
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

template <int kIn, int kLayers>
void run_forward(const Tensor& like, const NgpHalf& net, bool color) {
  if (net.num == 0) return;
  using At = ForwardPlaces<kIn, kLayers>;
  if (color)
    launch_layers(like, ngp_half_forward_kernel<kIn, kLayers, true>, 4, At::color_in, At::end, net);
  else
    launch_layers(like, ngp_half_forward_kernel<kIn, kLayers, false>, 4, At::color_first, At::color_first, net);
}

template <int kIn, int kLayers>
void run_backward(const Tensor& like, const NgpHalf& net) {
  if (net.num == 0) return;
  using Color = ColorBackwardPlaces<kIn, kLayers>;
  using Density = DensityBackwardPlaces<kIn>;
  launch_layers(like, ngp_half_color_backward_kernel<kIn, kLayers>, 2, Color::color_in, Color::end, net);
  launch_layers(like, ngp_half_density_backward_kernel<kIn, false>, 2, Density::inputs, Density::end, net);
}

template <int kIn>
void run_density_backward(const Tensor& like, const NgpHalf& net) {
  if (net.num == 0) return;
  using At = DensityBackwardPlaces<kIn>;
  launch_layers(like, ngp_half_density_backward_kernel<kIn, true>, 2, At::inputs, At::end, net);
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
