// Registers what is meant for CUDA as ops of another name, EMULATED_OPS, on the CPU.
#pragma once
#include_next <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY
#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY(ns, m) EMULATED_LIBRARY(EMULATED_OPS, m)
#define STABLE_TORCH_LIBRARY_IMPL(ns, k, m) EMULATED_LIBRARY_IMPL(EMULATED_OPS, m, __COUNTER__)
// Once more, because torch 2.10 takes names as they are written.
#define EMULATED_LIBRARY(ns, m) STABLE_TORCH_LIBRARY_FRAGMENT(ns, m)
#define EMULATED_LIBRARY_IMPL(ns, m, uid) _STABLE_TORCH_LIBRARY_IMPL(ns, CPU, m, uid)
