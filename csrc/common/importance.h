// Sampling where a distribution along a ray has its mass, and finding values among a ray's edges.
//
// Rays may own different numbers of things: chunks [R][2] tell the first one of each ray and how many there are.
#pragma once
#include "macros.h"

namespace nerftrain {

// Inverse transform sampling (NeRF, arXiv:2003.08934, section 5.2): sample i of n lies where the cumulated
// distribution, linear between edges, is (i + jitter) / n on its way from the ray's first edge to the last. Bounds of
// the new intervals lie midway between samples; the outermost are as far away as the next ones, but never beyond the
// ray's ends. A single sample stands for all of the ray.
template <class T>
struct SampleImportance {
  const T* edges;                  // [E]
  const T* cdf;                    // [E]
  const int64_t* chunks;           // [R][2] of the edges
  const T* jitter;                 // [R] in 0..1
  const int64_t* sample_chunks;    // [R][2]
  const int64_t* interval_chunks;  // [R][2] of the bounds, one more than samples
  T* samples;                      // [N]
  T* bounds;                       // [B]

  NT_HD void operator()(int64_t r) const {
    const int64_t num_edges = chunks[2 * r + 1], n = sample_chunks[2 * r + 1];
    if (n <= 0) return;
    T *t = samples + sample_chunks[2 * r], *b = bounds + interval_chunks[2 * r];
    if (num_edges <= 0) {  // nowhere to sample
      for (int64_t i = 0; i < n; ++i) t[i] = b[i] = 0;
      b[n] = 0;
      return;
    }
    const int64_t first = chunks[2 * r];
    draw(edges + first, cdf + first, num_edges - 1, jitter[r], n, t);
    const T near = edges[first], far = edges[first + num_edges - 1];
    b[0] = n > 1 ? max_of(t[0] - (t[1] - t[0]) * T(0.5), near) : near;
    for (int64_t i = 1; i < n; ++i) b[i] = (t[i - 1] + t[i]) * T(0.5);
    b[n] = n > 1 ? min_of(t[n - 1] + (t[n - 1] - t[n - 2]) * T(0.5), far) : far;
  }

  NT_HD void draw(const T* s, const T* c, int64_t last, T shift, int64_t n, T* t) const {
    const bool empty = !(c[last] > c[0]);  // then all bins count alike, and an edge's number serves
    const T low = empty ? T(0) : c[0], step = (empty ? T(last) : c[last] - c[0]) / T(n);
    int64_t bin = 0;
    for (int64_t i = 0; i < n; ++i) {
      const T u = low + (T(i) + shift) * step;
      while (bin < last - 1 && (empty ? T(bin + 1) : c[bin + 1]) <= u) ++bin;
      const int64_t next = min_of(bin + 1, last);
      const T before = empty ? T(bin) : c[bin], mass = (empty ? T(next) : c[next]) - before;
      const T share = mass > T(0) ? min_of(max_of((u - before) / mass, T(0)), T(1)) : T(0.5);
      // Rounding must not lead beyond the bin, or samples would not ascend.
      t[i] = min_of(s[bin] + share * (s[next] - s[bin]), s[next]);
    }
  }
};

// Finds edges[left] <= value < edges[right] on the value's ray; beyond the ends of the ray the outermost two edges.
template <class T>
struct SearchEdges {
  const T* edges;               // [E]
  const int64_t* chunks;        // [R][2] of the edges
  const T* values;              // [N] in any order
  const int64_t* value_chunks;  // [R][2]
  int64_t num_edges;            // E
  int64_t* left;                // [N] from the first edge of all
  int64_t* right;               // [N]

  NT_HD void operator()(int64_t r) const {
    const int64_t first = min_of(chunks[2 * r], num_edges - 1);  // a ray may have no edges: it can still be read
    const int64_t last = max_of(chunks[2 * r + 1] - 1, int64_t(0));
    const int64_t begin = value_chunks[2 * r], end = begin + value_chunks[2 * r + 1];
    for (int64_t i = begin; i < end; ++i) {
      int64_t low = 0, high = last;
      while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (edges[first + middle] > values[i])
          high = middle;
        else
          low = middle + 1;
      }
      left[i] = first + max_of(low - 1, int64_t(0));
      right[i] = first + low;
    }
  }
};

}  // namespace nerftrain
