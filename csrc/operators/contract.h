#pragma once
#include "../common/contract.h"
#include "tensors.h"

namespace nerftrain {

template <class Backend, class T>
void contract_fwd_as(const Tensor& positions, bool infinity_norm, const Tensor& out) {
  Backend::for_each(positions, positions.size(0), ContractForward<T>{read<T>(positions), infinity_norm, write<T>(out)});
}

template <class Backend>
Tensor contract_fwd(const Tensor& positions, bool infinity_norm) {
  Tensor out = make(positions, {positions.size(0), 3});
  const auto run = is_double(positions) ? contract_fwd_as<Backend, double> : contract_fwd_as<Backend, float>;
  run(positions, infinity_norm, out);
  return out;
}

template <class Backend, class T>
void contract_bwd_as(const Tensor& positions, const Tensor& v_out, bool infinity_norm, const Tensor& v_positions) {
  const ContractBackward<T> body{read<T>(positions), read<T>(v_out), infinity_norm, write<T>(v_positions)};
  Backend::for_each(positions, positions.size(0), body);
}

template <class Backend>
Tensor contract_bwd(const Tensor& positions, const Tensor& v_out, bool infinity_norm) {
  Tensor v_positions = make(positions, {positions.size(0), 3});
  const auto run = is_double(positions) ? contract_bwd_as<Backend, double> : contract_bwd_as<Backend, float>;
  run(positions, v_out, infinity_norm, v_positions);
  return v_positions;
}

}  // namespace nerftrain
