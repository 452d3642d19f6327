#include "../operators/hash_encoding.h"

#include "backend.h"
#include "hash.h"
#include "isa.h"
#include "ranges.h"

namespace nerftrain {

struct CpuHash : Cpu {
  static const HashKernels& kernels() { return kernels_for(0, hash_portable, hash_avx2, hash_avx512); }

  using Cpu::for_each;

  template <int F, int D>
    requires(F > 1)
  static void for_each(const torch::stable::Tensor&, int64_t n, int, const HashEncodeForward<float, F, D>& body) {
    torch::stable::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
      kernels().forward(F, body.levels, body.positions, body.table, body.features, begin, end);
    });
  }

  template <int F, int D>
    requires(F > 1)
  static void for_each(const torch::stable::Tensor&, int64_t n, const HashPositionsBackward<float, F, D>& body) {
    const auto& rows = body.backward;
    torch::stable::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
      kernels().slopes(F, rows.levels, rows.positions, rows.table, rows.v_features, rows.v_positions, begin, end);
    });
  }

  // Each level's table is owned by one thread: no atomics, and the same bits
  // whatever the number of threads.
  template <class T, int F, int D>
  static void scatter(const torch::stable::Tensor&, int64_t n, const HashEncodeBackward<T, F, D>& body) {
    if (n == 0) return;
    // The finest levels, which take longest, come first.
    const int64_t num_levels = body.levels.num_levels;
    share(num_levels, [&](int64_t part, int64_t) { scatter_level(n, body, int(num_levels - 1 - part)); });
  }

  template <int F, int D>
    requires(F > 1)
  static void scatter_level(int64_t n, const HashEncodeBackward<float, F, D>& body, int level) {
    kernels().scatter(F, body.levels, level, body.positions, body.v_features, body.v_table, n);
  }

  template <class T, int F, int D>
  static void scatter_level(int64_t n, const HashEncodeBackward<T, F, D>& body, int level) {
    for (int64_t i = 0; i < n; ++i) body(i, level);
  }
};

// The table may be a copy in half precision; features are float32 all the same.
Tensor hash_encode_fwd_cpu(const Tensor& positions, const Tensor& table, std::vector<int64_t> resolutions,
                           std::vector<int64_t> offsets) {
  if (table.scalar_type() != ScalarType::Half) return hash_encode_fwd<CpuHash>(positions, table, resolutions, offsets);
  const HashLevels levels = hash_levels(positions.size(1), resolutions, offsets);
  const int num_features = int(table.size(1));
  if (num_features != 2 && num_features != 4 && num_features != 8)
    throw std::runtime_error("hash encoding: a half-precision table has 2, 4 or 8 features per level");
  Tensor features = make(positions, {positions.size(0), levels.num_levels * num_features});
  const float* from = read<float>(positions);
  const Half* rows = static_cast<const Half*>(table.const_data_ptr());
  float* to = write<float>(features);
  torch::stable::parallel_for(0, positions.size(0), Cpu::kGrain, [&](int64_t begin, int64_t end) {
    CpuHash::kernels().forward_half(num_features, levels, from, rows, to, begin, end);
  });
  return features;
}

void hash_encode_bwd_(const Tensor& positions, const Tensor& v_table, const Tensor& v_features,
                      std::vector<int64_t> resolutions, std::vector<int64_t> offsets) {
  const HashLevels levels = hash_levels(positions.size(1), resolutions, offsets);
  with_layout(v_table, levels.num_axes, [&]<class T, int F, int D>(T, Constant<F>, Constant<D>) {
    const HashEncodeBackward<T, F, D> body{levels, read<T>(positions), nullptr, read<T>(v_features), write<T>(v_table),
                                           nullptr};
    CpuHash::scatter(v_table, positions.size(0), body);
  });
}

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("hash_encode_fwd", TORCH_BOX(&nerftrain::hash_encode_fwd_cpu));
  m.impl("hash_encode_bwd_", TORCH_BOX(&nerftrain::hash_encode_bwd_));
  m.impl("hash_encode_bwd", TORCH_BOX(&nerftrain::hash_encode_bwd<nerftrain::CpuHash>));
}
