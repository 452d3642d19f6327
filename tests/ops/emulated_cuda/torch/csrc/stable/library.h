// Registers what is meant for CUDA as ops of another name, EMULATED_OPS, on the CPU.
#pragma once
#include_next <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY
#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY(ns, m) STABLE_TORCH_LIBRARY_FRAGMENT(EMULATED_OPS, m)
#define STABLE_TORCH_LIBRARY_IMPL(ns, k, m) _STABLE_TORCH_LIBRARY_IMPL(EMULATED_OPS, CPU, m, C10_UID)
