#include "../operators/hash_encoding.h"
#include "backend.h"
#include "warp.h"

namespace nerftrain {

// Features in half precision from a table in half precision, sums in float32. A thread takes as many levels of a sample
// as fill the 32 bytes that memory moves at once; groups of levels come one after the other, so that those in flight
// share few levels' tables.
template <int F, int D>
struct HashEncodeHalf {
  static constexpr int kNumbers = 16, kLevels = kNumbers / F;
  HashLevels levels;
  const float* positions;  // [N][D]
  const uint32_t* table;   // [entries][F / 2] pairs
  uint32_t* features;      // [N][L * F / 2]
  bool even;               // whether two entries from an even one on can be read at once
  const int64_t* used;     // [] how many positions count; null: all

  NT_HD int num_groups() const { return (levels.num_levels + kLevels - 1) / kLevels; }
};

template <int kPairs>
__device__ __forceinline__ void read_pairs(const uint32_t* row, uint32_t (&pairs)[kPairs]) {
  if constexpr (kPairs == 4) {
    const uint4 read = *reinterpret_cast<const uint4*>(row);
    pairs[0] = read.x, pairs[1] = read.y, pairs[2] = read.z, pairs[3] = read.w;
  } else if constexpr (kPairs == 2) {
    const uint2 read = *reinterpret_cast<const uint2*>(row);
    pairs[0] = read.x, pairs[1] = read.y;
  } else {
    pairs[0] = *row;
  }
}

// The rows of two corners that are neighbours along x. Where they are neighbours in memory too, as every other such
// pair is, hashed or not, they are read at once.
template <int kPairs>
__device__ __forceinline__ void read_two(const uint32_t* table, int64_t first, int64_t second, bool even,
                                         uint32_t (&a)[kPairs], uint32_t (&b)[kPairs]) {
  if constexpr (kPairs > 2) {
    read_pairs(table + first * kPairs, a);
    read_pairs(table + second * kPairs, b);
  } else {
    const bool together = even && (first ^ second) == 1;
    if (together) {
      uint32_t both[2 * kPairs];
      read_pairs(table + (first & ~int64_t(1)) * kPairs, both);
#pragma unroll
      for (int k = 0; k < kPairs; ++k) {
        a[k] = first & 1 ? both[kPairs + k] : both[k];
        b[k] = first & 1 ? both[k] : both[kPairs + k];
      }
    } else {
      read_pairs(table + first * kPairs, a);
      read_pairs(table + second * kPairs, b);
    }
  }
}

template <int F, int D>
__global__ void hash_encode_half_kernel(int64_t n, HashEncodeHalf<F, D> body) {
  constexpr int kPairs = F / 2, kLevels = HashEncodeHalf<F, D>::kLevels;
  const int64_t i = piece_of(blockIdx.x, blockDim.x, threadIdx.x);
  if (i >= n || (body.used && i >= *body.used)) return;
  const int first = int(blockIdx.y) * kLevels, num_levels = body.levels.num_levels;
  uint32_t out[kLevels * kPairs];
#pragma unroll
  for (int l = 0; l < kLevels; ++l) {
    const int level = first + l;
    float sum[F] = {};
    if (level < num_levels) {
      const CellCorners<float, D> cell(body.positions + D * i, body.levels.resolution[level], body.levels.size[level]);
      const int64_t begin = body.levels.offset[level];
#pragma unroll
      for (int corner = 0; corner < 1 << D; corner += 2) {
        uint32_t rows[2][kPairs];
        read_two(body.table, begin + cell.entry(corner), begin + cell.entry(corner + 1), body.even, rows[0], rows[1]);
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const float w = cell.weight(corner + side);
#pragma unroll
          for (int k = 0; k < kPairs; ++k) {
            const float2 pair = unpack_halves(rows[side][k]);
            sum[2 * k] += w * pair.x;
            sum[2 * k + 1] += w * pair.y;
          }
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kPairs; ++k) out[l * kPairs + k] = pack_halves(sum[2 * k], sum[2 * k + 1]);
  }
  const int row_pairs = num_levels * kPairs, begin = first * kPairs,
            there = min_of(row_pairs - begin, kLevels * kPairs);
  uint32_t* to = body.features + i * row_pairs + begin;
  if (row_pairs % 4 == 0) {
#pragma unroll
    for (int k = 0; k < kLevels * kPairs; k += 4)
      if (k < there) *reinterpret_cast<uint4*>(to + k) = {out[k], out[k + 1], out[k + 2], out[k + 3]};
  } else {
#pragma unroll
    for (int k = 0; k < kLevels * kPairs; ++k)
      if (k < there) to[k] = out[k];
  }
}

// To two rows that are neighbours along x; at once where they are so in memory and the GPU can.
template <int F, class T>
__device__ __forceinline__ void add_two(T* rows, uint32_t first, uint32_t second, bool even, const T (&a)[F],
                                        const T (&b)[F]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (sizeof(T) == 4 && F <= 2) {
    if (even && (first ^ second) == 1) {
      T both[2 * F];
#pragma unroll
      for (int k = 0; k < F; ++k) {
        both[k] = first & 1 ? b[k] : a[k];
        both[F + k] = first & 1 ? a[k] : b[k];
      }
      atomic_add_row<2 * F>(rows + int64_t(first & ~1u) * F, both);
      return;
    }
  }
#endif
  atomic_add_row<F>(rows + int64_t(first) * F, a);
  atomic_add_row<F>(rows + int64_t(second) * F, b);
}

// To the table. Samples that stand beside each other lie along a ray, at coarse levels in one cell: a thread takes kRun
// of them at a level, and memory is asked to add only once they leave a cell. What has no gradient is not added: rows
// that are nobody's would all be added to one place.
constexpr int kRun = 8;

template <class T, int F, int D>
__global__ void hash_scatter_kernel(int64_t n, HashEncodeBackward<T, F, D> body) {
  constexpr int kCorners = 1 << D;
  const int64_t first = piece_of(blockIdx.x, blockDim.x, threadIdx.x) * kRun, last = min_of(first + kRun, n);
  const int level = int(blockIdx.y);
  const uint32_t *resolution = body.levels.resolution[level], size = body.levels.size[level];
  T* const rows = body.v_table + body.levels.offset[level] * F;
  const bool even = body.levels.offset[level] % 2 == 0;
  T sums[kCorners][F] = {};
  uint32_t entries[kCorners], held[D];
  bool holds = false;
  for (int64_t i = first; i <= last; ++i) {
    T v[F] = {};
    bool any = false;
    if (i < last) {
      const T* from = body.gradient(i, level);
#pragma unroll
      for (int k = 0; k < F; ++k) {
        v[k] = from[k];
        any = any || v[k] != T(0);  // NaN is a gradient
      }
      if (!any) continue;
    }
    const CellCorners<T, D> cell(body.positions + D * min_of(i, n - 1), resolution, size);
    bool same = any;
#pragma unroll
    for (int a = 0; a < D; ++a) same = same && cell.c[a] == held[a];
    if (holds && !same) {
#pragma unroll
      for (int corner = 0; corner < kCorners; corner += 2)
        add_two<F>(rows, entries[corner], entries[corner + 1], even, sums[corner], sums[corner + 1]);
    }
    if (!any) break;
#pragma unroll
    for (int corner = 0; corner < kCorners; ++corner) {
      const T w = cell.weight(corner);
      entries[corner] = cell.entry(corner);
#pragma unroll
      for (int k = 0; k < F; ++k) sums[corner][k] = (holds && same ? sums[corner][k] : T(0)) + w * v[k];
    }
#pragma unroll
    for (int a = 0; a < D; ++a) held[a] = cell.c[a];
    holds = true;
  }
}

struct CudaHash : Cuda {
  template <class T, int F, int D>
  static void scatter(const Tensor& like, int64_t n, const HashEncodeBackward<T, F, D>& body) {
    constexpr bool kFits = sizeof(T) * F << D <= 256;  // its sums, into a thread's registers
    if constexpr (kFits) {
      if (n)
        launch(like, hash_scatter_kernel<T, F, D>, grid_of(blocks_for(n, kRun), body.levels.num_levels), kThreads, 0, n,
               body);
    } else {
      for_each(like, n, body.levels.num_levels, body);
    }
  }
};

// Of positions from used[-1] on, if anything says so, the features are left as they are.
Tensor hash_encode_half(const Tensor& positions, const Tensor& table, std::vector<int64_t> resolutions,
                        std::vector<int64_t> offsets, const Tensor& used) {
  const HashLevels levels = hash_levels(positions.size(1), resolutions, offsets);
  const int64_t num = positions.size(0), num_features = table.size(1);
  Tensor features = make(table, {num, levels.num_levels * num_features});
  const bool even =
      table.size(0) % 2 == 0 && reinterpret_cast<uintptr_t>(table.const_data_ptr()) % (4 * num_features) == 0;
  const auto run = [&]<int F, int D>(Constant<F>, Constant<D>) {
    const HashEncodeHalf<F, D> body{levels,
                                    read<float>(positions),
                                    static_cast<const uint32_t*>(table.const_data_ptr()),
                                    static_cast<uint32_t*>(features.mutable_data_ptr()),
                                    even,
                                    last_of(used)};
    if (num)
      Cuda::launch(positions, hash_encode_half_kernel<F, D>, Cuda::grid_of(num, body.num_groups()), Cuda::kThreads, 0,
                   num, body);
  };
  const auto with_axes = [&](auto features) {
    levels.num_axes == 4 ? run(features, Constant<4>{}) : run(features, Constant<3>{});
  };
  switch (num_features) {
    case 2:
      with_axes(Constant<2>{});
      break;
    case 4:
      with_axes(Constant<4>{});
      break;
    case 8:
      with_axes(Constant<8>{});
      break;
    default:
      throw std::runtime_error("hash encoding: a half-precision table has 2, 4 or 8 features per level");
  }
  return features;
}

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("hash_encode_fwd", TORCH_BOX(&nerftrain::hash_encode_fwd<nerftrain::Cuda>));
  m.impl("hash_encode_half", TORCH_BOX(&nerftrain::hash_encode_half));
  m.impl("hash_encode_bwd", TORCH_BOX(&nerftrain::hash_encode_bwd<nerftrain::CudaHash>));
}
