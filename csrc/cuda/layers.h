// Layers of small MLPs on tensor cores. A warp takes 16 samples; its matrices are the fragments of warp.h, so that what
// one layer gives is, packed to half precision, what the next takes. Sums are float32. Matrices of weights stand in
// shared memory, the gradients of weights are summed over the samples of a block.
#pragma once
#include "backend.h"
#include "warp.h"

namespace nerftrain {

constexpr int kWidth = 64;                                                 // of hidden layers
constexpr int kWarps = 8, kThreads = kWarps * kWarp, kTile = kWarps * 16;  // samples of a block at a time
constexpr int kHiddenTiles = kWidth / 16;

// Words between the rows of a matrix of pairs in shared memory: the rows that a warp reads at once lie in other banks.
__host__ __device__ constexpr int stride_of(int columns) { return (columns + 8) / 2; }

// Fills a matrix in shared memory with what number(row, column) gives, by all threads of the block.
template <int kRows, int kColumns, class Number>
__device__ __forceinline__ void fill(uint32_t* words, Number number) {
  for (int i = int(threadIdx.x); i < kRows * kColumns / 2; i += kThreads) {
    const int row = i / (kColumns / 2), pair = i % (kColumns / 2);
    words[row * stride_of(kColumns) + pair] = pack_halves(number(row, 2 * pair), number(row, 2 * pair + 1));
  }
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

// The same, 16 outputs at a time, packed as the next layer's inputs after finish(k, sums of tiles 2 k and the next).
template <int kTilesK, int kTiles, class Finish>
__device__ __forceinline__ void apply_packed(uint32_t (&out)[kTiles][4], const uint32_t (&inputs)[kTilesK][4],
                                             const uint32_t* matrix, Finish finish) {
#pragma unroll
  for (int k = 0; k < kTiles; ++k) {
    float sums[2][4];
    apply(sums, inputs, matrix + 16 * k * stride_of(16 * kTilesK));
    finish(k, sums);
    uint32_t packed[1][4];
    pack(packed, sums);
#pragma unroll
    for (int j = 0; j < 4; ++j) out[k][j] = packed[0][j];
  }
}

// What apply_packed does with the sums of 16 outputs.
struct Rectified {
  __device__ __forceinline__ void operator()(int, float (&sums)[2][4]) const {
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] = max_of(0.f, sums[n][i]);  // NaN stays NaN
  }
};

// What passes a rectified layer backwards: what it gave was more than zero.
template <int kTiles>
struct Masked {
  const uint32_t (&given)[kTiles][4];

  __device__ __forceinline__ void operator()(int k, float (&sums)[2][4]) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float* pair = sums[j / 2] + j % 2 * 2;
      if (!(given[k][j] & 0x7fffu)) pair[0] = 0;
      if (!(given[k][j] & 0x7fff0000u)) pair[1] = 0;
    }
  }
};

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

// The gradient of a matrix, over all samples of the block: tiles of 16 x 8 of its numbers are dealt out to the warps,
// to each such that lie in the same rows.
template <int kTilesM, int kTilesN>
struct MatrixGradient {
  static constexpr int kCount = kTilesM * kTilesN / kWarps;
  static_assert(kTilesM * kTilesN % kWarps == 0 && kTilesN % kCount == 0);
  float sums[kCount][4];

  // The first of a warp's tiles; the others follow in the row.
  static __device__ __forceinline__ int row_of() { return int(threadIdx.x) / kWarp * kCount / kTilesN; }
  static __device__ __forceinline__ int column_of() { return int(threadIdx.x) / kWarp * kCount % kTilesN; }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int t = 0; t < kCount; ++t) sums[t][0] = sums[t][1] = sums[t][2] = sums[t][3] = 0;
  }

  __device__ __forceinline__ void add(const uint32_t* deltas, const uint32_t* inputs) {
    const Lane lane;
    constexpr int kStride = stride_of(kTile);
    const uint32_t* row = deltas + (16 * row_of() + lane.group) * kStride + lane.place;
    const uint32_t* column = inputs + (8 * column_of() + lane.group) * kStride + lane.place;
#pragma unroll 2  // or registers would not suffice
    for (int s = 0; s < kTile / 2; s += 8) {
      const uint32_t a[4] = {row[s], row[8 * kStride + s], row[s + 4], row[8 * kStride + s + 4]};
#pragma unroll
      for (int t = 0; t < kCount; ++t) {
        const uint32_t b[2] = {column[8 * t * kStride + s], column[8 * t * kStride + s + 4]};
        multiply_add(sums[t], a, b);
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
        const int row = 16 * row_of() + lane.group + i / 2 * 8, column = 8 * (column_of() + t) + 2 * lane.place + i % 2;
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
