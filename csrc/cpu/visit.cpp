#include "../operators/visit.h"

#include <algorithm>
#include <atomic>

#include "backend.h"

namespace nerftrain {

constexpr int64_t kRecallGrain = 1 << 11;  // samples

// What select_count and select_pick do, with the row that each sample was in.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> select(const Tensor& keep, const Tensor& t_starts,
                                                          const Tensor& t_ends, const Tensor& offsets) {
  const int64_t num_rays = offsets.size(0) - 1;
  Tensor kept_offsets = make(offsets, {num_rays + 1});
  int64_t* first = write<int64_t>(kept_offsets);
  Cpu::for_each(keep, num_rays, SelectCount{read<bool>(keep), read<int64_t>(offsets), first + 1});
  first[0] = 0;
  for (int64_t r = 0; r < num_rays; ++r) first[r + 1] += first[r];
  const int64_t num = first[num_rays];
  Tensor starts = make(t_starts, {num}), ends = make(t_starts, {num});
  Tensor rays = make(offsets, {num}), rows = make(offsets, {num});
  const auto pick = is_double(t_starts) ? select_pick_as<Cpu, double> : select_pick_as<Cpu, float>;
  pick(keep, t_starts, t_ends, offsets, kept_offsets, starts, ends, rays, rows);
  return {starts, ends, rays, kept_offsets, rows};
}

// What was looked up at samples, whose rows are below zero where nothing was, and whether it was at all of them.
std::tuple<Tensor, Tensor, Tensor> recall(const Tensor& places, const Tensor& features, const Tensor& rows,
                                          const Tensor& samples) {
  const int64_t num = samples.size(0), num_axes = places.size(1), num_features = features.size(1);
  Tensor places_there = make(places, {num, num_axes}), features_there = make(features, {num, num_features});
  Tensor all_there = make(rows, {1}, ScalarType::Bool);
  const float *from_places = read<float>(places), *from_features = read<float>(features);
  float *to_places = write<float>(places_there), *to_features = write<float>(features_there);
  const int64_t *row_of = read<int64_t>(rows), *sample = read<int64_t>(samples);
  std::atomic<bool> all = true;
  torch::stable::parallel_for(0, num, kRecallGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = row_of[sample[i]];
      if (row < 0) {
        all = false;
        continue;
      }
      std::copy_n(from_places + row * num_axes, num_axes, to_places + i * num_axes);
      std::copy_n(from_features + row * num_features, num_features, to_features + i * num_features);
    }
  });
  *write<bool>(all_there) = all;
  return {places_there, features_there, all_there};
}

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("visit_count", TORCH_BOX(&nerftrain::visit_count<nerftrain::Cpu>));
  m.impl("visit_pick", TORCH_BOX(&nerftrain::visit_pick<nerftrain::Cpu>));
  m.impl("visit_take_", TORCH_BOX(&nerftrain::visit_take_<nerftrain::Cpu>));
  m.impl("gather_rows", TORCH_BOX(&nerftrain::gather_rows<nerftrain::Cpu>));
  m.impl("fit", TORCH_BOX(&nerftrain::fit<nerftrain::Cpu>));
  m.impl("select", TORCH_BOX(&nerftrain::select));
  m.impl("recall", TORCH_BOX(&nerftrain::recall));
  m.impl("select_count", TORCH_BOX(&nerftrain::select_count<nerftrain::Cpu>));
  m.impl("select_pick", TORCH_BOX(&nerftrain::select_pick<nerftrain::Cpu>));
}
