// Tensors in and out of the operators: pointers, allocation and checks against PyTorch's stable ABI.
//
// An operator is written once, for a Backend that offers
//   Backend::for_each(like, n, body)              body(i) for i in [0, n)
//   Backend::for_each(like, n, num_levels, body)  body(i, level)
//   Backend::clear_rest(offsets, {packed ...})    zeros from row offsets[R] on, which are nobody's: at most four
//   tensors
// and may offer for_each_ray (below) where it has both of one launch.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

namespace nerftrain {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
const T* read(const Tensor& t) {
  return t.const_data_ptr<T>();
}

// What an operator may do without comes as a tensor without elements.
template <class T>
const T* read_or_none(const Tensor& t) {
  return t.numel() ? t.const_data_ptr<T>() : nullptr;
}

// Where the last of some numbers lies; null where there are none.
inline const int64_t* last_of(const Tensor& t) {
  return t.numel() ? t.const_data_ptr<int64_t>() + t.numel() - 1 : nullptr;
}

template <class T>
T* write(const Tensor& t) {
  return t.mutable_data_ptr<T>();
}

inline Tensor make(const Tensor& like, std::vector<int64_t> shape) { return torch::stable::new_empty(like, shape); }

inline Tensor make(const Tensor& like, std::vector<int64_t> shape, ScalarType type) {
  return torch::stable::new_empty(like, shape, type);
}

// body(r) for all R rays, and zeros behind the rows of packed tensors that are theirs.
template <class Backend, class Body>
void for_each_ray(const Tensor& like, const Tensor& offsets, const std::vector<Tensor>& packed, const Body& body) {
  if constexpr (requires { Backend::for_each_ray(like, offsets, packed, body); }) {
    Backend::for_each_ray(like, offsets, packed, body);
  } else {
    Backend::clear_rest(offsets, packed);
    Backend::for_each(like, offsets.size(0) - 1, body);
  }
}

inline bool is_double(const Tensor& t) { return t.scalar_type() == ScalarType::Double; }

}  // namespace nerftrain
