// How n pieces of work are laid out over the threads of a CUDA grid. Free of CUDA, so that the host tests it.
//
// Piece i belongs to thread i % threads of block i / threads, and no thread has a second one: the largest grid holds
// 5e11 pieces, more than any GPU's memory, and a loop over strides of the grid takes 8 more registers in the hash
// encoding. blockIdx and threadIdx are 32 bits wide: their product is taken in 64.
#pragma once
#include "macros.h"

namespace nerftrain {

constexpr int64_t kMaxBlocksX = 2147483647;  // 2^31 - 1, of every architecture since sm_30
constexpr int64_t kMaxBlocksY = 65535;

NT_HD bool fits_grid(int64_t n, int64_t threads) { return n <= kMaxBlocksX * threads; }

NT_HD int64_t blocks_for(int64_t n, int64_t threads) { return n / threads + (n % threads != 0); }

NT_HD int64_t piece_of(uint32_t block, uint32_t threads, uint32_t thread) { return int64_t(block) * threads + thread; }

}  // namespace nerftrain
