#pragma once
#include "../common/importance.h"
#include "tensors.h"

namespace nerftrain {

template <class Backend, class T>
void sample_importance_as(const Tensor& edges, const Tensor& cdf, const Tensor& chunks, const Tensor& jitter,
                          const Tensor& sample_chunks, const Tensor& interval_chunks, const Tensor& samples,
                          const Tensor& bounds) {
  const SampleImportance<T> body{read<T>(edges),
                                 read<T>(cdf),
                                 read<int64_t>(chunks),
                                 read<T>(jitter),
                                 read<int64_t>(sample_chunks),
                                 read<int64_t>(interval_chunks),
                                 write<T>(samples),
                                 write<T>(bounds)};
  Backend::for_each(edges, chunks.size(0), body);
}

template <class Backend>
std::tuple<Tensor, Tensor> sample_importance(const Tensor& edges, const Tensor& cdf, const Tensor& chunks,
                                             const Tensor& jitter, const Tensor& sample_chunks,
                                             const Tensor& interval_chunks, int64_t num_samples, int64_t num_bounds) {
  Tensor samples = make(edges, {num_samples}), bounds = make(edges, {num_bounds});
  const auto run = is_double(edges) ? sample_importance_as<Backend, double> : sample_importance_as<Backend, float>;
  run(edges, cdf, chunks, jitter, sample_chunks, interval_chunks, samples, bounds);
  return {samples, bounds};
}

template <class Backend, class T>
void search_edges_as(const Tensor& edges, const Tensor& chunks, const Tensor& values, const Tensor& value_chunks,
                     const Tensor& left, const Tensor& right) {
  const SearchEdges<T> body{read<T>(edges), read<int64_t>(chunks), read<T>(values),      read<int64_t>(value_chunks),
                            edges.size(0),  write<int64_t>(left),  write<int64_t>(right)};
  Backend::for_each(edges, chunks.size(0), body);
}

template <class Backend>
std::tuple<Tensor, Tensor> search_edges(const Tensor& edges, const Tensor& chunks, const Tensor& values,
                                        const Tensor& value_chunks) {
  Tensor left = make(values, {values.size(0)}, ScalarType::Long),
         right = make(values, {values.size(0)}, ScalarType::Long);
  const auto run = is_double(edges) ? search_edges_as<Backend, double> : search_edges_as<Backend, float>;
  run(edges, chunks, values, value_chunks, left, right);
  return {left, right};
}

}  // namespace nerftrain
