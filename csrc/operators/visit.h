#pragma once
#include <stdexcept>

#include "../common/visit.h"
#include "tensors.h"

namespace nerftrain {

template <class Backend, class T>
void visit_count_as(const Tensor& offsets, const Tensor& num, const Tensor& transmittance, double early_stop_eps,
                    int64_t most, const Tensor& counts) {
  const VisitCount<T> body{read<int64_t>(offsets), read<int64_t>(num), read<T>(transmittance), T(early_stop_eps), most,
                           write<int64_t>(counts)};
  Backend::for_each(offsets, counts.size(0), body);
}

template <class Backend>
Tensor visit_count(const Tensor& offsets, const Tensor& num, const Tensor& transmittance, double early_stop_eps,
                   int64_t most) {
  Tensor counts = make(num, {num.size(0)});
  const auto run = is_double(transmittance) ? visit_count_as<Backend, double> : visit_count_as<Backend, float>;
  run(offsets, num, transmittance, early_stop_eps, most, counts);
  return counts;
}

template <class Backend, class T>
void visit_pick_as(const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets, const Tensor& num,
                   const Tensor& round_offsets, const Tensor& starts, const Tensor& ends, const Tensor& rays) {
  const VisitPick<T> body{
      read<T>(t_starts), read<T>(t_ends), read<int64_t>(offsets), read<int64_t>(num), read<int64_t>(round_offsets),
      write<T>(starts),  write<T>(ends),  write<int64_t>(rays)};
  Backend::for_each(t_starts, num.size(0), body);
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> visit_pick(const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets,
                                              const Tensor& num, const Tensor& round_offsets, int64_t num_samples) {
  Tensor starts = make(t_starts, {num_samples}), ends = make(t_starts, {num_samples});
  Tensor rays = make(offsets, {num_samples});
  const auto run = is_double(t_starts) ? visit_pick_as<Backend, double> : visit_pick_as<Backend, float>;
  run(t_starts, t_ends, offsets, num, round_offsets, starts, ends, rays);
  return {starts, ends, rays};
}

template <class Backend, class T>
void visit_take_as(const Tensor& round_density, const Tensor& round_starts, const Tensor& round_ends,
                   const Tensor& round_offsets, const Tensor& offsets, const Tensor& num, const Tensor& transmittance,
                   const Tensor& sum_alpha, const Tensor& density) {
  const Visited<T> visited{write<int64_t>(num), write<T>(transmittance), write<T>(sum_alpha)};
  const VisitTake<T> body{read<T>(round_density), read<T>(round_starts),
                          read<T>(round_ends),    read<int64_t>(round_offsets),
                          read<int64_t>(offsets), visited,
                          write<T>(density)};
  Backend::for_each(density, num.size(0), body);
}

template <class Backend>
void visit_take_(const Tensor& round_density, const Tensor& round_starts, const Tensor& round_ends,
                 const Tensor& round_offsets, const Tensor& offsets, const Tensor& num, const Tensor& transmittance,
                 const Tensor& sum_alpha, const Tensor& density) {
  const auto run = is_double(density) ? visit_take_as<Backend, double> : visit_take_as<Backend, float>;
  run(round_density, round_starts, round_ends, round_offsets, offsets, num, transmittance, sum_alpha, density);
}

template <class Backend>
Tensor select_count(const Tensor& keep, const Tensor& offsets) {
  Tensor counts = make(offsets, {offsets.size(0) - 1});
  Backend::for_each(keep, counts.size(0),
                    SelectCount{read<bool>(keep), read<int64_t>(offsets), write<int64_t>(counts)});
  return counts;
}

template <class Backend, class T>
void select_pick_as(const Tensor& keep, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets,
                    const Tensor& kept_offsets, const int64_t* before, int64_t first_row, const Tensor& starts,
                    const Tensor& ends, const Tensor& rays, const Tensor& rows) {
  const SelectPick<T> body{
      read<bool>(keep), read<T>(t_starts), read<T>(t_ends), read<int64_t>(offsets), read<int64_t>(kept_offsets), before,
      first_row,        write<T>(starts),  write<T>(ends),  write<int64_t>(rays),   write<int64_t>(rows)};
  if (before)  // others have the rest
    Backend::for_each(keep, offsets.size(0) - 1, body);
  else
    for_each_ray<Backend>(keep, kept_offsets, {starts, ends, rays, rows}, body);
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> select_pick(const Tensor& keep, const Tensor& t_starts, const Tensor& t_ends,
                                                       const Tensor& offsets, const Tensor& kept_offsets,
                                                       int64_t num_samples) {
  Tensor starts = make(t_starts, {num_samples}), ends = make(t_starts, {num_samples});
  Tensor rays = make(offsets, {num_samples}), rows = make(offsets, {num_samples});
  const auto run = is_double(t_starts) ? select_pick_as<Backend, double> : select_pick_as<Backend, float>;
  run(keep, t_starts, t_ends, offsets, kept_offsets, nullptr, 0, starts, ends, rays, rows);
  return {starts, ends, rays, rows};
}

// The same for samples behind those that were picked before.
template <class Backend>
void select_more(const Tensor& keep, const Tensor& t_starts, const Tensor& t_ends, const Tensor& offsets,
                 const Tensor& kept_offsets, const Tensor& before, int64_t first_row, const Tensor& starts,
                 const Tensor& ends, const Tensor& rays, const Tensor& rows) {
  const auto run = is_double(t_starts) ? select_pick_as<Backend, double> : select_pick_as<Backend, float>;
  run(keep, t_starts, t_ends, offsets, kept_offsets, read<int64_t>(before), first_row, starts, ends, rays, rows);
}

template <class Backend, class Word>
void gather_rows_as(const Tensor& from, const Tensor& more, const Tensor& rows, const Tensor& to) {
  const int64_t num_words = from.size(1) * int64_t(from.element_size()) / int64_t(sizeof(Word));
  const GatherRows<Word> body{static_cast<const Word*>(from.const_data_ptr()),
                              from.size(0),
                              static_cast<const Word*>(more.const_data_ptr()),
                              read<int64_t>(rows),
                              num_words,
                              static_cast<Word*>(to.mutable_data_ptr())};
  Backend::for_each(rows, rows.size(0) * num_words, body);
}

// more: rows that come after those of `from`; it may have none.
template <class Backend>
Tensor gather_rows(const Tensor& from, const Tensor& rows, const Tensor& more) {
  const int64_t row_bytes = from.size(1) * int64_t(from.element_size());
  if (row_bytes % 4) throw std::runtime_error("gather_rows: rows must be of whole words");
  Tensor to = make(from, {rows.size(0), from.size(1)});
  const auto starts_well = [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0; };
  const bool aligned = row_bytes % 16 == 0 && starts_well(from) && starts_well(more);
  (aligned ? gather_rows_as<Backend, Chunk> : gather_rows_as<Backend, uint32_t>)(from, more, rows, to);
  return to;
}

template <class Backend>
std::tuple<Tensor, Tensor> fit(const Tensor& ends, int64_t room) {
  const int64_t num_rays = ends.size(0);
  Tensor offsets = make(ends, {num_rays + 1}), whole = make(ends, {num_rays}, ScalarType::Bool);
  Backend::for_each(ends, num_rays + 1,
                    FitRays{read<int64_t>(ends), num_rays, room, write<int64_t>(offsets), write<bool>(whole)});
  return {offsets, whole};
}

}  // namespace nerftrain
