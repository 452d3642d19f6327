// CUDA calls do not fail here.
#pragma once
#include_next <torch/csrc/stable/macros.h>

#undef STD_CUDA_CHECK
#undef STD_CUDA_KERNEL_LAUNCH_CHECK
#define STD_CUDA_CHECK(call) static_cast<void>(call)
#define STD_CUDA_KERNEL_LAUNCH_CHECK() static_cast<void>(0)
#define aoti_torch_get_current_cuda_stream(device, stream) (*(stream) = nullptr, 0)
