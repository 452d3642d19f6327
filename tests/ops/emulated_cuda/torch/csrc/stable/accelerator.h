// There is no accelerator: nothing is to be guarded.
#pragma once
#include_next <torch/csrc/stable/accelerator.h>

namespace torch::stable::accelerator {
struct NoGuard {
  explicit NoGuard(int) {}
};
}  // namespace torch::stable::accelerator
#define DeviceGuard NoGuard
