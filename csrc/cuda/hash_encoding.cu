#include "../common/number_bits.h"
#include "../operators/hash_encoding.h"
#include "backend.h"
#include "warp.h"

namespace nerftrain {

// What all samples need of a level. A cell's vertex comes as the bits of a number (number_bits.h).
template <int D>
struct HalfLevel {
  float cells[D];               // along each axis
  float last[D];                // the number of the last of them
  uint32_t factor[D], bias[D];  // its share in the entry is its bits times the factor, and the bias
  uint32_t mask;                // of the hash; 0 where the level is stored in order
  int64_t offset;               // of its first entry

  HalfLevel() = default;
  HalfLevel(const HashLevels& levels, int level) {
    const VertexFactors<D> vertex(levels.resolution[level], levels.size[level]);
    for (int a = 0; a < D; ++a) {
      const uint32_t resolution = levels.resolution[level][a];
      cells[a] = float(resolution);
      last[a] = 8388608.f + float(resolution - 1);
      factor[a] = vertex.factor[a];
      bias[a] = 0u - uint32_t(kNumber) * factor[a];
    }
    mask = vertex.mask;
    offset = levels.offset[level];
  }
};

// Features in half precision from a table in half precision, sums in float32. A thread takes as many levels of a sample
// as fill the 32 bytes that memory moves at once; groups of levels come one after the other, so that those in flight
// share few levels' tables.
template <int F, int D>
struct HashEncodeHalf {
  static constexpr int kNumbers = 16, kLevels = kNumbers / F;
  int num_levels;
  HalfLevel<D> levels[kMaxLevels];
  const float* positions;  // [N][D]
  const uint32_t* table;   // [entries][F / 2] pairs
  uint32_t* features;      // [N][L * F / 2]
  const int64_t* used;     // [] how many positions count; null: all

  NT_HD int num_groups() const { return (num_levels + kLevels - 1) / kLevels; }
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
// pair is, hashed or not, they are read at once, if an even row begins where that can be.
template <int kPairs, bool kEven>
struct TwoRows {
  static constexpr bool kTogether = kEven && kPairs <= 2;
  uint32_t first[kTogether ? 2 * kPairs : kPairs], second[kPairs];
  bool is_odd, apart;

  __device__ __forceinline__ void read(const uint32_t* table, uint32_t low, uint32_t high) {
    is_odd = low & 1;
    apart = !kTogether || (low ^ high) != 1;
    if constexpr (kTogether)
      read_pairs(table + uint64_t(low >> 1) * (2 * kPairs), first);
    else
      read_pairs(table + uint64_t(low) * kPairs, first);
    if (apart) read_pairs(table + uint64_t(high) * kPairs, second);
  }
  __device__ __forceinline__ uint32_t low(int k) const {
    if constexpr (!kTogether) return first[k];
    return is_odd ? first[kPairs + k] : first[k];
  }
  __device__ __forceinline__ uint32_t high(int k) const {
    if constexpr (!kTogether) return second[k];
    return apart ? second[k] : is_odd ? first[k] : first[kPairs + k];
  }
};

// The features of one level at a place in [0, 1]^D.
template <int F, int D, bool kEven>
__device__ __forceinline__ void encode_half(const HalfLevel<D>& level, const uint32_t* table, const float (&place)[D],
                                            float (&sum)[F]) {
  constexpr int kPairs = F / 2, kLines = 1 << (D - 1);  // pairs of features; corners but for x
  float f[D];
  uint32_t key[D][2];
#pragma unroll
  for (int a = 0; a < D; ++a) {
    const float x = place[a] * level.cells[a];
    const NumberBits vertex{fminf(with_bits(floor_bits(x)), level.last[a])};
    f[a] = x - (vertex.number - 8388608.f);
    key[a][0] = uint32_t(vertex.bits) * level.factor[a] + level.bias[a];
    key[a][1] = key[a][0] + level.factor[a];
  }
  uint32_t first[kLines], second[kLines];
  float weight[kLines];
#pragma unroll
  for (int line = 0; line < kLines; ++line) {
    uint32_t hash = 0, sum_of_keys = 0;
    weight[line] = 1;
#pragma unroll
    for (int a = D - 1; a >= 1; --a) {
      const int side = line >> (a - 1) & 1;
      hash ^= key[a][side];
      sum_of_keys += key[a][side];
      weight[line] *= side ? f[a] : 1 - f[a];
    }
    first[line] = level.mask ? hash & level.mask : sum_of_keys;
  }
  if (level.mask) {
    const uint32_t low = key[0][0] & level.mask, high = key[0][1] & level.mask;
#pragma unroll
    for (int line = 0; line < kLines; ++line) {
      second[line] = first[line] ^ high;
      first[line] ^= low;
    }
  } else {
#pragma unroll
    for (int line = 0; line < kLines; ++line) {
      second[line] = first[line] + key[0][1];
      first[line] += key[0][0];
    }
  }
  const uint32_t* its_table = table + level.offset * kPairs;
  TwoRows<kPairs, kEven> rows[kLines];
#pragma unroll
  for (int line = 0; line < kLines; ++line) rows[line].read(its_table, first[line], second[line]);
#pragma unroll
  for (int line = 0; line < kLines; ++line) {
    const float of_high = f[0] * weight[line], of_low = (1 - f[0]) * weight[line];
#pragma unroll
    for (int k = 0; k < kPairs; ++k) {
      const float2 low = unpack_halves(rows[line].low(k)), high = unpack_halves(rows[line].high(k));
      sum[2 * k] = sum[2 * k] + of_low * low.x + of_high * high.x;
      sum[2 * k + 1] = sum[2 * k + 1] + of_low * low.y + of_high * high.y;
    }
  }
}

template <int F, int D, bool kEven>
__global__ void hash_encode_half_kernel(int64_t n, HashEncodeHalf<F, D> body) {
  constexpr int kPairs = F / 2, kLevels = HashEncodeHalf<F, D>::kLevels;
  const int64_t i = piece_of(blockIdx.x, blockDim.x, threadIdx.x);
  if (i >= n || (body.used && i >= *body.used)) return;
  const int first = int(blockIdx.y) * kLevels, num_levels = body.num_levels;
  float place[D];  // NaN counts as 0
#pragma unroll
  for (int a = 0; a < D; ++a) place[a] = fminf(fmaxf(body.positions[D * i + a], 0.f), 1.f);
  uint32_t out[kLevels * kPairs];
#pragma unroll
  for (int l = 0; l < kLevels; ++l) {
    float sum[F] = {};
    if (first + l < num_levels) encode_half<F, D, kEven>(body.levels[first + l], body.table, place, sum);
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
  for (const int64_t resolution : resolutions)
    if (resolution > kMaxNumbered)
      throw std::runtime_error("hash encoding in half precision: at most 2^22 cells an axis");
  Tensor features = make(table, {num, levels.num_levels * num_features});
  bool even = reinterpret_cast<uintptr_t>(table.const_data_ptr()) % (4 * num_features) == 0;
  for (const int64_t offset : offsets) even = even && offset % 2 == 0;
  const auto run = [&]<int F, int D>(Constant<F>, Constant<D>) {
    HashEncodeHalf<F, D> body{levels.num_levels,
                              {},
                              read<float>(positions),
                              static_cast<const uint32_t*>(table.const_data_ptr()),
                              static_cast<uint32_t*>(features.mutable_data_ptr()),
                              last_of(used)};
    for (int level = 0; level < levels.num_levels; ++level) body.levels[level] = HalfLevel<D>(levels, level);
    const auto kernel = even ? hash_encode_half_kernel<F, D, true> : hash_encode_half_kernel<F, D, false>;
    if (num) Cuda::launch(positions, kernel, Cuda::grid_of(num, body.num_groups()), Cuda::kThreads, 0, num, body);
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
