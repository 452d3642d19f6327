// Adam over a range of entries in float32.
//
// Compiled once per instruction set and chosen at run time (measured on a table of 3.3 M entries, AVX-512 takes half
// the time of the portable one). A step's samples touch a part of a hash table: whole blocks of gradients are zero, and
// finding that out in vectors is faster than asking entry by entry.
#pragma once
#include "adam.h"

namespace {

void run(const nerftrain::AdamEntry<float>& entries, int64_t begin, int64_t end) {
  const nerftrain::AdamEntry<float> body = entries;  // a copy that no store can alias
  constexpr int64_t kBlock = 32;
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t last = first + kBlock < end ? first + kBlock : end;
    int seen = 0;
    for (int64_t i = first; i < last; ++i) seen |= body.gradient[i] != 0.f;
    if (body.skip && !seen) continue;
#pragma GCC ivdep
    for (int64_t i = first; i < last; ++i) body(i);
  }
}

}  // namespace
