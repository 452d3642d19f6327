// Compositing in float32.
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

void forward(const nerftrain::CompositeForward<float>& body, int64_t begin, int64_t end) {
  constexpr int64_t kSamples = 2048;  // what stays in the first cache
  const nerftrain::PackedRays<float>& in = body.in;
  nerftrain::CompositeForward<float> own = body;
  float kept[kSamples];
  for (int64_t ray = begin; ray < end;) {
    const int64_t first = in.offsets[ray];
    int64_t stop = ray + 1;
    while (stop < end && in.offsets[stop + 1] - first <= kSamples) ++stop;
    const int64_t num_samples = in.offsets[stop] - first;
    own.in.kept = num_samples <= kSamples ? kept : nullptr;  // a single ray may have more
    own.in.kept_first = first;
    if (own.in.kept) run(in.density + first, in.t_starts + first, in.t_ends + first, kept, 0, num_samples);
    for (; ray < stop; ++ray) own(ray);
  }
}

void backward(const nerftrain::CompositeBackward<float>& body, int64_t begin, int64_t end) {
  for (int64_t ray = begin; ray < end; ++ray) body(ray);
}

}  // namespace
