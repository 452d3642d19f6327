// The interface between the marching operator and its kernels for each instruction set.
#pragma once
#include <optional>

#include "../common/march.h"
#include "x86.h"

namespace nerftrain {

// A grid of one box, whose words an int can number, and their halves.
struct OneBox {
  OccupancyBits bits;
  int words, groups;                    // 4^3 and 16^3 cells along the cube of bits
  int words_of_slice, groups_of_slice;  // of time
  int resolution[3];
  float center[3], half[3], inverse[3], unit[3], share[3];
  float low[3], high[3];  // around all cells that are occupied, with at least one empty cell between
};

// None where rays do not march through one box in equal steps.
std::optional<OneBox> one_box(const MarchRays& rays);

constexpr int kStretches = 64;    // of steps that a ray may have; one with more goes the long way
constexpr int kMarchBundle = 16;  // rays that are prepared at once, at most
constexpr int kMarchSlack = 16;   // numbers behind the samples that are asked for, which may be overwritten

// A ray in one box whose samples are found as they are asked for.
struct RayMarch {
  float origin[3], direction[3], near, far, jitter;
  int slice;          // of time
  int end_step;       // behind all that may have samples
  int num_stretches;  // more than kStretches: there was no room for all
  int stretch;        // the first that has not been looked at to its end
  int looked_at;      // the first of the steps that were looked at last
  uint32_t pending;   // which of these have samples that nobody has asked for
  struct {
    int from, to;
  } stretches[kStretches];

  bool may_have_more() const { return pending != 0 || stretch < num_stretches; }
};

struct MarchKernels {
  const char* name;
  // Marches rays begin ... end - 1 and appends their samples to t_starts and t_ends, which hold `room` of them and
  // kMarchSlack more numbers. Of ray r it writes counts[r - begin] and ends[r - begin]. Returns the first ray that it
  // did not march for want of room; its count is then how much is enough. Without a box rays are marched one by one.
  int64_t (*march)(const MarchRays& rays, const OneBox* box, int64_t begin, int64_t end, int64_t room, float* t_starts,
                   float* t_ends, int64_t* counts, float* ends);
  // Prepares rays r ... r + num - 1, at most kMarchBundle, of which there is room for so many.
  void (*begin)(const MarchRays& all, const OneBox& box, int64_t r, int num, RayMarch* rays);
  // Finds at most so many samples more of a ray, and returns their number: less only if there are no more.
  int (*next)(const MarchSettings& settings, const OneBox& box, RayMarch& ray, int most, float* t_starts,
              float* t_ends);
};

extern const MarchKernels march_portable;
NT_X86_KERNELS(MarchKernels, march, avx2);
NT_X86_KERNELS(MarchKernels, march, avx512);

const MarchKernels& march_kernels();

}  // namespace nerftrain
