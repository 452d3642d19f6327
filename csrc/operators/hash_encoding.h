#pragma once
#include <stdexcept>

#include "../common/hash_encoding.h"
#include "tensors.h"

namespace nerftrain {

inline HashLevels hash_levels(const std::vector<int64_t>& resolutions, const std::vector<int64_t>& offsets) {
  if (resolutions.size() > kMaxLevels) throw std::runtime_error("hash encoding: at most 32 levels");
  HashLevels levels{};
  levels.num_levels = int(resolutions.size());
  for (int l = 0; l < levels.num_levels; ++l) {
    levels.resolution[l] = uint32_t(resolutions[l]);
    levels.size[l] = uint32_t(offsets[l + 1] - offsets[l]);
    levels.offset[l] = offsets[l];
  }
  return levels;
}

// Calls run(T, F) with the table's number type and features per level as compile-time constants.
template <int F>
using Features = std::integral_constant<int, F>;

template <class Run>
void with_layout(const Tensor& table, Run run) {
  const auto with_type = [&](auto zero) {
    switch (table.size(1)) {
      case 1:
        return run(zero, Features<1>{});
      case 2:
        return run(zero, Features<2>{});
      case 4:
        return run(zero, Features<4>{});
      case 8:
        return run(zero, Features<8>{});
      default:
        throw std::runtime_error("hash encoding: features per level must be 1, 2, 4 or 8");
    }
  };
  is_double(table) ? with_type(0.0) : with_type(0.0f);
}

template <class Backend>
Tensor hash_encode_fwd(const Tensor& positions, const Tensor& table, std::vector<int64_t> resolutions,
                       std::vector<int64_t> offsets) {
  const HashLevels levels = hash_levels(resolutions, offsets);
  Tensor features = make(table, {positions.size(0), levels.num_levels * table.size(1)});
  with_layout(table, [&]<class T, int F>(T, Features<F>) {
    const HashEncodeForward<T, F> body{levels, read<T>(positions), read<T>(table), write<T>(features)};
    Backend::for_each(table, positions.size(0), levels.num_levels, body);
  });
  return features;
}

// Backend::scatter(like, n, levels, body) adds every sample's gradient to the table.
template <class Backend>
std::tuple<Tensor, Tensor> hash_encode_bwd(const Tensor& positions, const Tensor& table, const Tensor& v_features,
                                           std::vector<int64_t> resolutions, std::vector<int64_t> offsets,
                                           bool to_positions) {
  const HashLevels levels = hash_levels(resolutions, offsets);
  const int64_t num = positions.size(0);
  Tensor v_table = torch::stable::new_zeros(table, std::vector<int64_t>{table.size(0), table.size(1)});
  Tensor v_positions = make(table, {to_positions ? num : 0, 3});
  with_layout(table, [&]<class T, int F>(T, Features<F>) {
    const HashEncodeBackward<T, F> body{
        levels, read<T>(positions), read<T>(table), read<T>(v_features), write<T>(v_table), write<T>(v_positions)};
    Backend::scatter(table, num, body);
    if (to_positions) Backend::for_each(table, num, HashPositionsBackward<T, F>{body});
  });
  return {v_table, v_positions};
}

}  // namespace nerftrain
