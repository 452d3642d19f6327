#pragma once
#include "../common/scan.h"
#include "tensors.h"

namespace nerftrain {

inline Chunks chunks_of(const Tensor& values, const Tensor& starts, const Tensor& counts) {
  return {read<int64_t>(starts), read<int64_t>(counts), starts.stride(0), counts.stride(0), values.size(0)};
}

// Zeros, because what no chunk owns is never written.
inline Tensor blank(const Tensor& values) {
  return torch::stable::new_zeros(values, std::vector<int64_t>{values.size(0)});
}

template <class Backend, class T>
void scan_sum_as(const Tensor& values, const Tensor& starts, const Tensor& counts, bool inclusive, bool reverse,
                 const Tensor& out) {
  const ScanSum<T> body{chunks_of(values, starts, counts), read<T>(values), inclusive, reverse, write<T>(out)};
  Backend::for_each(values, starts.size(0), body);
}

template <class Backend>
Tensor scan_sum(const Tensor& values, const Tensor& starts, const Tensor& counts, bool inclusive, bool reverse) {
  Tensor out = blank(values);
  const auto run = is_double(values) ? scan_sum_as<Backend, double> : scan_sum_as<Backend, float>;
  run(values, starts, counts, inclusive, reverse, out);
  return out;
}

template <class Backend, class T>
void scan_prod_fwd_as(const Tensor& values, const Tensor& starts, const Tensor& counts, bool inclusive,
                      const Tensor& out) {
  const ScanProdForward<T> body{chunks_of(values, starts, counts), read<T>(values), inclusive, write<T>(out)};
  Backend::for_each(values, starts.size(0), body);
}

template <class Backend>
Tensor scan_prod_fwd(const Tensor& values, const Tensor& starts, const Tensor& counts, bool inclusive) {
  Tensor out = blank(values);
  const auto run = is_double(values) ? scan_prod_fwd_as<Backend, double> : scan_prod_fwd_as<Backend, float>;
  run(values, starts, counts, inclusive, out);
  return out;
}

template <class Backend, class T>
void scan_prod_bwd_as(const Tensor& values, const Tensor& starts, const Tensor& counts, const Tensor& v_out,
                      bool inclusive, const Tensor& v_values) {
  const ScanProdBackward<T> body{chunks_of(values, starts, counts), read<T>(values), read<T>(v_out), inclusive,
                                 write<T>(v_values)};
  Backend::for_each(values, starts.size(0), body);
}

template <class Backend>
Tensor scan_prod_bwd(const Tensor& values, const Tensor& starts, const Tensor& counts, const Tensor& v_out,
                     bool inclusive) {
  Tensor v_values = blank(values);
  const auto run = is_double(values) ? scan_prod_bwd_as<Backend, double> : scan_prod_bwd_as<Backend, float>;
  run(values, starts, counts, v_out, inclusive, v_values);
  return v_values;
}

template <class Backend, class T>
void ray_sums_as(const Tensor& values, const Tensor& ray_indices, const Tensor& in_order, const Tensor& out) {
  const RaySums<T> body{
      read<T>(values), read<int64_t>(ray_indices), read<bool>(in_order), values.size(0), values.size(1), write<T>(out)};
  Backend::for_each(values, out.size(0) * out.size(1), body);
}

template <class Backend>
Tensor ray_sums(const Tensor& values, const Tensor& ray_indices, const Tensor& in_order, int64_t num_rays) {
  Tensor out = make(values, {num_rays, values.size(1)});
  const auto run = is_double(values) ? ray_sums_as<Backend, double> : ray_sums_as<Backend, float>;
  run(values, ray_indices, in_order, out);
  return out;
}

}  // namespace nerftrain
