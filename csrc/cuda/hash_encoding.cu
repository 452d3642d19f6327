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

template <int F, int D>
__global__ void hash_encode_half_kernel(int64_t n, HashEncodeHalf<F, D> body) {
  constexpr int kPairs = F / 2, kLevels = HashEncodeHalf<F, D>::kLevels;
  const int64_t i = piece_of(blockIdx.x, blockDim.x, threadIdx.x);
  if (i >= n) return;
  const int first = int(blockIdx.y) * kLevels, num_levels = body.levels.num_levels;
  uint32_t out[kLevels * kPairs];
#pragma unroll
  for (int l = 0; l < kLevels; ++l) {
    const int level = first + l;
    float sum[F] = {};
    if (level < num_levels) {
      const CellCorners<float, D> cell(body.positions + D * i, body.levels.resolution[level], body.levels.size[level]);
      const uint32_t* rows = body.table + body.levels.offset[level] * kPairs;
#pragma unroll
      for (int corner = 0; corner < 1 << D; ++corner) {
        uint32_t pairs[kPairs];
        read_pairs(rows + int64_t(cell.entry(corner)) * kPairs, pairs);
        const float w = cell.weight(corner);
#pragma unroll
        for (int k = 0; k < kPairs; ++k) {
          const float2 pair = unpack_halves(pairs[k]);
          sum[2 * k] += w * pair.x;
          sum[2 * k + 1] += w * pair.y;
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

Tensor hash_encode_half(const Tensor& positions, const Tensor& table, std::vector<int64_t> resolutions,
                        std::vector<int64_t> offsets) {
  const HashLevels levels = hash_levels(positions.size(1), resolutions, offsets);
  const int64_t num = positions.size(0), num_features = table.size(1);
  Tensor features = make(table, {num, levels.num_levels * num_features});
  const auto run = [&]<int F, int D>(Constant<F>, Constant<D>) {
    const HashEncodeHalf<F, D> body{levels, read<float>(positions),
                                    static_cast<const uint32_t*>(table.const_data_ptr()),
                                    static_cast<uint32_t*>(features.mutable_data_ptr())};
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
  m.impl("hash_encode_bwd", TORCH_BOX(&nerftrain::hash_encode_bwd<nerftrain::Cuda>));
}
