#pragma once
#include <stdexcept>

#include "../common/hash_encoding.h"
#include "tensors.h"

namespace nerftrain {

// resolutions: [L * D], level by level; offsets: [L + 1]. What is refused here would be read outside the table.
inline HashLevels hash_levels(int64_t num_axes, const std::vector<int64_t>& resolutions,
                              const std::vector<int64_t>& offsets) {
  if (num_axes != 3 && num_axes != 4) throw std::runtime_error("hash encoding: positions must have 3 or 4 axes");
  const size_t num_levels = resolutions.size() / num_axes;
  if (num_levels > kMaxLevels) throw std::runtime_error("hash encoding: at most 32 levels");
  if (resolutions.size() % num_axes || offsets.size() != num_levels + 1)
    throw std::runtime_error("hash encoding: needs a resolution per level and axis, and an offset per level and one");
  HashLevels levels{};
  levels.num_levels = int(num_levels);
  levels.num_axes = int(num_axes);
  for (size_t l = 0; l < num_levels; ++l) {
    for (int64_t a = 0; a < num_axes; ++a) {
      const int64_t resolution = resolutions[l * num_axes + a];
      if (resolution < 1 || resolution > 1 << 24)  // beyond it float32 knows no whole numbers
        throw std::runtime_error("hash encoding: resolutions must lie in 1 to 2^24");
      levels.resolution[l][a] = uint32_t(resolution);
    }
    const int64_t size = offsets[l + 1] - offsets[l];
    if (size < 2 || size > 1ll << 31)  // of one entry the hash's mask would be that of no hash
      throw std::runtime_error("hash encoding: levels must have 2 to 2^31 entries");
    levels.size[l] = uint32_t(size);
    levels.offset[l] = offsets[l];
  }
  return levels;
}

// Calls run(T, F, D) with the table's number type, the features per level and the axes as compile-time constants.
template <int N>
using Constant = std::integral_constant<int, N>;

template <class Run>
void with_layout(const Tensor& table, int num_axes, Run run) {
  const auto with_features = [&](auto zero, auto axes) {
    switch (table.size(1)) {
      case 1:
        return run(zero, Constant<1>{}, axes);
      case 2:
        return run(zero, Constant<2>{}, axes);
      case 4:
        return run(zero, Constant<4>{}, axes);
      case 8:
        return run(zero, Constant<8>{}, axes);
      default:
        throw std::runtime_error("hash encoding: features per level must be 1, 2, 4 or 8");
    }
  };
  const auto with_axes = [&](auto zero) {
    num_axes == 4 ? with_features(zero, Constant<4>{}) : with_features(zero, Constant<3>{});
  };
  is_double(table) ? with_axes(0.0) : with_axes(0.0f);
}

template <class Backend>
Tensor hash_encode_fwd(const Tensor& positions, const Tensor& table, std::vector<int64_t> resolutions,
                       std::vector<int64_t> offsets) {
  const HashLevels levels = hash_levels(positions.size(1), resolutions, offsets);
  Tensor features = make(table, {positions.size(0), levels.num_levels * table.size(1)});
  with_layout(table, levels.num_axes, [&]<class T, int F, int D>(T, Constant<F>, Constant<D>) {
    const HashEncodeForward<T, F, D> body{levels, read<T>(positions), read<T>(table), write<T>(features)};
    Backend::for_each(table, positions.size(0), levels.num_levels, body);
  });
  return features;
}

// Backend::scatter(like, n, body) adds every sample's gradient to the table.
template <class Backend>
std::tuple<Tensor, Tensor> hash_encode_bwd(const Tensor& positions, const Tensor& table, const Tensor& v_features,
                                           std::vector<int64_t> resolutions, std::vector<int64_t> offsets,
                                           bool to_positions) {
  const HashLevels levels = hash_levels(positions.size(1), resolutions, offsets);
  const int64_t num = positions.size(0);
  Tensor v_table = torch::stable::new_zeros(table, std::vector<int64_t>{table.size(0), table.size(1)});
  Tensor v_positions = make(table, {to_positions ? num : 0, levels.num_axes});
  with_layout(table, levels.num_axes, [&]<class T, int F, int D>(T, Constant<F>, Constant<D>) {
    const HashEncodeBackward<T, F, D> body{
        levels, read<T>(positions), read<T>(table), read<T>(v_features), write<T>(v_table), write<T>(v_positions)};
    Backend::scatter(table, num, body);
    if (to_positions) Backend::for_each(table, num, HashPositionsBackward<T, F, D>{body});
  });
  return {v_table, v_positions};
}

}  // namespace nerftrain
