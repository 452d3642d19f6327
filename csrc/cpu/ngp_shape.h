// What operators of MLPs share.
#pragma once
#include <cstdint>
#include <vector>

#include "ngp.h"

namespace nerftrain {

// The kernels that serve a call's wish (see isa.h).
const MlpKernels& mlp_kernels(int64_t lanes);
const NgpKernels& ngp_kernels(int64_t lanes);

// Throws where there are none or too many layers.
MlpShape mlp_shape(const std::vector<int64_t>& widths);

// Throws where the widths or the harmonics' degree do not fit each other.
NgpShape ngp_shape(const std::vector<int64_t>& density, const std::vector<int64_t>& color, int64_t degree);

}  // namespace nerftrain
