// What each sample lets through, in float32.
//
// Compiled once per instruction set and chosen at run time: on their way along rays samples come one by one, but the
// exponential, most of the cost, needs no order.
#pragma once
#include "composite.h"
#include "exponential.h"

namespace {

void run(const float* density, const float* t_starts, const float* t_ends, float* kept, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) kept[i] = exponential(-density[i] * (t_ends[i] - t_starts[i]));
}

}  // namespace
