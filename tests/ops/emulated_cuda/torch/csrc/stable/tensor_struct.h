// Tells the player where tensors lie.
#pragma once
#ifdef PLAYED_PTX
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstdint>

#include "../../../../global_memory.h"

namespace played {

// What the call that has found `data` has returned.
template <class T, class Result>
Result told(AtenTensorHandle tensor, T* const* data, bool writable, Result result) {
  int64_t numel = 0;
  int32_t type = 0;
  aoti_torch_get_numel(tensor, &numel);
  aoti_torch_get_dtype(tensor, &type);
  tensors().add(*data, size_t(numel) * aoti_torch_dtype_element_size(type), writable);
  return result;
}

}  // namespace played

#define torch_get_const_data_ptr(tensor, data) played::told(tensor, data, false, torch_get_const_data_ptr(tensor, data))
#define torch_get_mutable_data_ptr(tensor, data) \
  played::told(tensor, data, true, torch_get_mutable_data_ptr(tensor, data))
#endif
#include_next <torch/csrc/stable/tensor_struct.h>
