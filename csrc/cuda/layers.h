// Layers of small MLPs on tensor cores. A warp takes 16 samples; its matrices are the fragments of warp.h, so that what
// one layer gives is, packed to half precision, what the next takes. Sums are float32. Matrices of weights stand in
// shared memory, the gradients of weights are summed over the samples of a block.
#pragma once
#include "backend.h"
#include "warp.h"

namespace nerftrain {

// Warps of a block. GPUs before sm_80 have 64 KiB of shared memory on a processor: what more of them show each other
// does not fit beside the weights.
constexpr int kMostWarps = 8, kFewerWarps = 4;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kWarps = kFewerWarps;
#else
constexpr int kWarps = kMostWarps;
#endif
constexpr int kThreads = kWarps * kWarp, kTile = kWarps * 16;  // samples of a block at a time
constexpr int kWidth = 64;                                     // of hidden layers
constexpr int kHiddenTiles = kWidth / 16;

// Launches kernel(net) by blocks that stay for many tiles, `each` to a processor: their weights are read once. These
// are `fixed` words of shared memory; on to `end` there is what a block of kMostWarps shows itself.
template <class Net>
void launch_layers(const torch::stable::Tensor& like, void (*kernel)(Net), int each, int fixed, int end,
                   const Net& net) {
  const bool many = Cuda::attribute_of(like, cudaDevAttrComputeCapabilityMajor) >= 8;
  const int warps = many ? kMostWarps : kFewerWarps;
  const size_t words = fixed + (end - fixed) / kMostWarps * warps;
  Cuda::launch(like, kernel, Cuda::standing_grid(like, net.num, 16 * warps, each), warps * kWarp,
               words * sizeof(uint32_t), net);
}

// Words between the rows of a matrix of pairs in shared memory: the rows that a warp reads at once lie in other banks.
__host__ __device__ constexpr int stride_of(int columns) { return (columns + 8) / 2; }

// Fills a matrix in shared memory with what number(row, column) gives, by all threads of the block.
template <int kRows, int kColumns, class Number>
__device__ __forceinline__ void fill(uint32_t* words, Number number) {
  constexpr int kPairs = kRows * kColumns / 2;
#pragma unroll
  for (int i = 0; i < kPairs; i += kThreads) {
    const int its = i + int(threadIdx.x), row = its / (kColumns / 2), pair = its % (kColumns / 2);
    if (kPairs % kThreads == 0 || its < kPairs)
      words[row * stride_of(kColumns) + pair] = pack_halves(number(row, 2 * pair), number(row, 2 * pair + 1));
  }
}

// A number of a padded matrix: its place is below zero where it is padding. All are read, so that none waits for
// others.
__device__ __forceinline__ float number_at(const float* weights, int place) {
  const float number = weights[max_of(place, 0)];
  return place < 0 ? 0.f : number;
}

// The thread's number, as nobody knows it outside of a loop: the addresses that follow from it would fill registers.
__device__ __forceinline__ uint32_t thread_here() {
  uint32_t thread = threadIdx.x;
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(thread));
#endif
  return thread;
}

// The places of a lane in the fragments.
struct Lane {
  int group, place;
  __device__ Lane(uint32_t thread = threadIdx.x) : group(int(thread % kWarp / 4)), place(int(thread % 4)) {}
};

// Where a lane's rows begin in a matrix in shared memory, for load_matrices: of 8 rows and 32 columns, or of 16 and 16.
template <int kStride>
__device__ __forceinline__ const uint32_t* wide_rows(const uint32_t* matrix) {
  const uint32_t lane = thread_here() % kWarp;
  return matrix + lane % 8 * kStride + lane / 8 * 4;
}
template <int kStride>
__device__ __forceinline__ const uint32_t* square_rows(const uint32_t* matrix) {
  const uint32_t lane = thread_here() % kWarp;
  return matrix + lane % 16 * kStride + lane / 16 * 4;
}

// What reads and multiplies matrices is done by all lanes of a warp together: where some have parted before a layer,
// __syncwarp stands between.

// sums = inputs * matrix^T for 16 samples: a matrix [8 kTilesN][16 kTilesK], a row for each output, told by wide_rows.
template <int kTilesK, int kTilesN>
__device__ __forceinline__ void apply_rows(float (&sums)[kTilesN][4], const uint32_t (&inputs)[kTilesK][4],
                                           const uint32_t* rows) {
  constexpr int kStride = stride_of(16 * kTilesK);
#pragma unroll
  for (int n = 0; n < kTilesN; ++n) {
    sums[n][0] = sums[n][1] = sums[n][2] = sums[n][3] = 0;
#pragma unroll
    for (int k = 0; k + 1 < kTilesK; k += 2) {
      uint32_t b[4];
      load_matrices<false>(b, rows + 8 * n * kStride + 8 * k);
      multiply_add(sums[n], inputs[k], {b[0], b[1]});
      multiply_add(sums[n], inputs[k + 1], {b[2], b[3]});
    }
    if constexpr (kTilesK % 2 == 1) {
      uint32_t b[2];
      load_matrices<false>(b, rows + 8 * n * kStride + 8 * (kTilesK - 1));
      multiply_add(sums[n], inputs[kTilesK - 1], b);
    }
  }
}

template <int kTilesK, int kTilesN>
__device__ __forceinline__ void apply(float (&sums)[kTilesN][4], const uint32_t (&inputs)[kTilesK][4],
                                      const uint32_t* matrix) {
  apply_rows(sums, inputs, wide_rows<stride_of(16 * kTilesK)>(matrix));
}

// sums = inputs * matrix for 16 samples and 16 columns: back through a layer, whose matrix has 16 kTilesK rows of
// kColumns numbers, told by square_rows.
template <int kColumns, int kTilesK>
__device__ __forceinline__ void apply_back(float (&sums)[2][4], const uint32_t (&inputs)[kTilesK][4],
                                           const uint32_t* rows) {
#pragma unroll
  for (int n = 0; n < 2; ++n) sums[n][0] = sums[n][1] = sums[n][2] = sums[n][3] = 0;
#pragma unroll
  for (int k = 0; k < kTilesK; ++k) {
    uint32_t b[4];
    load_matrices<true>(b, rows + 16 * k * stride_of(kColumns));
    multiply_add(sums[0], inputs[k], {b[0], b[1]});
    multiply_add(sums[1], inputs[k], {b[2], b[3]});
  }
}

// Packs the sums of 16 kTiles outputs as the next layer's inputs: pair(k, j, low, high) those of out[k][j].
template <int kTiles, class Pair>
__device__ __forceinline__ void pack(uint32_t (&out)[kTiles][4], const float (&sums)[2 * kTiles][4], Pair pair) {
#pragma unroll
  for (int k = 0; k < kTiles; ++k)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      out[k][j] = pair(k, j, sums[2 * k + j / 2][j % 2 * 2], sums[2 * k + j / 2][j % 2 * 2 + 1]);
}

// Fills a layer's outputs, packed, 16 at a time: sum(k, sums) finds those of out[k].
template <int kTiles, class Sum, class Pair>
__device__ __forceinline__ void each_packed(uint32_t (&out)[kTiles][4], Sum sum, Pair pair) {
#pragma unroll
  for (int k = 0; k < kTiles; ++k) {
    float sums[2][4];
    sum(k, sums);
    uint32_t packed[1][4];
    pack(packed, sums, [&](int, int j, float low, float high) { return pair(k, j, low, high); });
#pragma unroll
    for (int j = 0; j < 4; ++j) out[k][j] = packed[0][j];
  }
}

template <int kTilesK, int kTiles, class Pair>
__device__ __forceinline__ void apply_packed(uint32_t (&out)[kTiles][4], const uint32_t (&inputs)[kTilesK][4],
                                             const uint32_t* matrix, Pair pair) {
  constexpr int kStride = stride_of(16 * kTilesK);
  const uint32_t* rows = wide_rows<kStride>(matrix);
  each_packed(out, [&](int k, float (&sums)[2][4]) { apply_rows(sums, inputs, rows + 16 * k * kStride); }, pair);
}

template <int kTilesK, int kTiles, class Pair>
__device__ __forceinline__ void apply_back_packed(uint32_t (&out)[kTiles][4], const uint32_t (&inputs)[kTilesK][4],
                                                  const uint32_t* matrix, Pair pair) {
  constexpr int kColumns = 16 * kTiles;
  const uint32_t* rows = square_rows<stride_of(kColumns)>(matrix);
  each_packed(out, [&](int k, float (&sums)[2][4]) { apply_back<kColumns>(sums, inputs, rows + 8 * k); }, pair);
}

struct AsTheyAre {
  __device__ __forceinline__ uint32_t operator()(int, int, float low, float high) const {
    return pack_halves(low, high);
  }
};

struct Rectified {
  __device__ __forceinline__ uint32_t operator()(int, int, float low, float high) const {
    return pack_rectified(low, high);
  }
};

// What passes a rectified layer backwards: what it gave was more than zero.
template <int kTiles>
struct Masked {
  const uint32_t (&given)[kTiles][4];

  __device__ __forceinline__ uint32_t operator()(int k, int j, float low, float high) const {
    return pack_halves(low, high) & mask_of(given[k][j]);
  }
};

// Words of what a block shows itself: a row for each sample, of up to so many numbers.
constexpr int shown_words(int numbers) { return kTile * stride_of(numbers); }
constexpr int kShown = shown_words(kWidth);

// Where a lane's numbers begin in what is shown in rows of kNumbers, the 16 samples of a warp behind those of the
// others; and how far behind given[k][j] lies.
template <int kNumbers>
__device__ __forceinline__ uint32_t* shown_row(uint32_t* words) {
  const uint32_t thread = thread_here();
  const Lane lane(thread);
  return words + (thread / kWarp * 16 + lane.group) * stride_of(kNumbers) + lane.place;
}
template <int kNumbers>
__device__ __forceinline__ constexpr int shown_place(int k, int j) {
  return j % 2 * 8 * stride_of(kNumbers) + 8 * k + j / 2 * 4;
}

template <int kNumbers = kWidth, int kTiles>
__device__ __forceinline__ void show(uint32_t* words, const uint32_t (&given)[kTiles][4]) {
  uint32_t* row = shown_row<kNumbers>(words);
#pragma unroll
  for (int k = 0; k < kTiles; ++k)
#pragma unroll
    for (int j = 0; j < 4; ++j) row[shown_place<kNumbers>(k, j)] = given[k][j];
}

// As Masked, by what the warp has shown, which need not be kept so.
struct MaskedAsShown {
  const uint32_t* row;

  __device__ __forceinline__ uint32_t operator()(int k, int j, float low, float high) const {
    return pack_halves(low, high) & mask_of(row[shown_place<kWidth>(k, j)]);
  }
};

// The gradient of a matrix, over all samples of the block: tiles of 16 x 8 of its numbers are dealt out to the warps,
// to each such that lie in the same rows.
template <int kTilesM, int kTilesN>
struct MatrixGradient {
  static constexpr int kCount = kTilesM * kTilesN / kWarps;
  static_assert(kTilesM * kTilesN % kWarps == 0 && kTilesN % kCount == 0);
  float sums[kCount][4];

  // The first of a warp's tiles; the others follow in the row.
  static __device__ __forceinline__ uint32_t row_of(uint32_t thread) { return thread / kWarp * kCount / kTilesN; }
  static __device__ __forceinline__ uint32_t column_of(uint32_t thread) { return thread / kWarp * kCount % kTilesN; }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int t = 0; t < kCount; ++t) sums[t][0] = sums[t][1] = sums[t][2] = sums[t][3] = 0;
  }

  // Of what is shown, in rows of so many numbers.
  template <int kDeltas = kWidth, int kInputs = kWidth>
  __device__ __forceinline__ void add(const uint32_t* deltas, const uint32_t* inputs) {
    constexpr int kRow = stride_of(kDeltas), kColumn = stride_of(kInputs);
    const uint32_t thread = thread_here(), i = thread % 8, low = thread / 8 % 2, high = thread / 16 % 2;
    const uint32_t* rows = deltas + (i + 8 * high) * kRow + 8 * row_of(thread) + 4 * low;
    const uint32_t* columns = inputs + (i + 8 * low) * kColumn + 4 * (column_of(thread) + high);
#pragma unroll 2  // or registers would not suffice
    for (int s = 0; s < kTile; s += 16, rows += 16 * kRow, columns += 16 * kColumn) {
      uint32_t a[4];
      load_matrices<true>(a, rows);
#pragma unroll
      for (int t = 0; t + 1 < kCount; t += 2) {
        uint32_t b[4];
        load_matrices<true>(b, columns + 4 * t);
        multiply_add(sums[t], a, {b[0], b[1]});
        multiply_add(sums[t + 1], a, {b[2], b[3]});
      }
      if constexpr (kCount % 2 == 1) {
        uint32_t b[2];
        load_matrices<true>(b, columns + 4 * (kCount - 1));
        multiply_add(sums[kCount - 1], a, b);
      }
    }
  }

  // place(row, column) says where a number belongs, below zero nowhere.
  template <class Place>
  __device__ __forceinline__ void give(float* weights, float factor, Place place) const {
    const Lane lane;
#pragma unroll
    for (int t = 0; t < kCount; ++t)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = 16 * int(row_of(threadIdx.x)) + lane.group + i / 2 * 8;
        const int column = 8 * int(column_of(threadIdx.x) + t) + 2 * lane.place + i % 2;
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

}  // namespace nerftrain
