// The interface between the marching operator and its kernels for each instruction set.
#pragma once
#include "../common/march.h"

namespace nerftrain {

// Cells [low, high) around all that are occupied in a grid of one box, with at least one empty cell between, lest
// rounding matter; none where none is.
struct OccupiedCells {
  int low[3] = {1, 1, 1}, high[3] = {0, 0, 0};
};

constexpr int kMarchSlack = 16;

struct MarchKernels {
  const char* name;
  // Marches rays begin ... end - 1 and appends their samples to t_starts and t_ends, which hold `room` of them and
  // kMarchSlack more numbers, while there is room for the most that a ray may have. Of ray r it writes counts[r - begin] and ends[r - begin]. Returns
  // the first ray that it did not march.
  int64_t (*march)(const MarchRays& rays, const OccupiedCells& occupied, int64_t begin, int64_t end, int64_t room,
                   float* t_starts, float* t_ends, int64_t* counts, float* ends);
};

extern const MarchKernels march_portable, march_avx2, march_avx512;

}  // namespace nerftrain
