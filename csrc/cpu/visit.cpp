#include "../operators/visit.h"

#include "backend.h"

namespace nerftrain {

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
  pick(keep, t_starts, t_ends, offsets, kept_offsets, nullptr, 0, starts, ends, rays, rows);
  return {starts, ends, rays, kept_offsets, rows};
}

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("visit_count", TORCH_BOX(&nerftrain::visit_count<nerftrain::Cpu>));
  m.impl("visit_pick", TORCH_BOX(&nerftrain::visit_pick<nerftrain::Cpu>));
  m.impl("visit_take_", TORCH_BOX(&nerftrain::visit_take_<nerftrain::Cpu>));
  m.impl("gather_rows", TORCH_BOX(&nerftrain::gather_rows<nerftrain::Cpu>));
  m.impl("fit", TORCH_BOX(&nerftrain::fit<nerftrain::Cpu>));
  m.impl("select", TORCH_BOX(&nerftrain::select));
  m.impl("select_count", TORCH_BOX(&nerftrain::select_count<nerftrain::Cpu>));
  m.impl("select_pick", TORCH_BOX(&nerftrain::select_pick<nerftrain::Cpu>));
  m.impl("select_more_", TORCH_BOX(&nerftrain::select_more<nerftrain::Cpu>));
}
