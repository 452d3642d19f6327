// Registers what is meant for CUDA as ops of another name on the CPU.
#pragma once
#include_next <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY
#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY(ns, m) STABLE_TORCH_LIBRARY_FRAGMENT(nerftrain_emulated, m)
#define STABLE_TORCH_LIBRARY_IMPL(ns, k, m) _STABLE_TORCH_LIBRARY_IMPL(nerftrain_emulated, CPU, m, C10_UID)
