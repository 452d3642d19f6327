// Running sums and products within chunks of a flattened tensor, and sums over the samples of rays.
//
// Exclusive product P_i = prod_{j<i} x_j, inclusive P_i x_i. With v_k the gradients of the outputs:
//   exclusive  v_x_i = P_i S_{i+1},  S_i = v_i + x_i S_{i+1}
//   inclusive  v_x_i = P_i S_i,      S_i = v_i + x_{i+1} S_{i+1}
// P runs from the front and S from the back: nothing is divided, so zeros need no care.
#pragma once
#include "macros.h"

namespace nerftrain {

// Chunk c owns [first(c), last(c)), cut to the tensor: no chunk reads or writes what is not there.
struct Chunks {
  const int64_t* starts;  // [R], starts_stride apart
  const int64_t* counts;  // [R], counts_stride apart
  int64_t starts_stride, counts_stride, num_values;

  NT_HD int64_t first(int64_t c) const { return max_of(starts[c * starts_stride], int64_t(0)); }
  NT_HD int64_t last(int64_t c) const {
    return first(c) + max_of(min_of(counts[c * counts_stride], num_values - first(c)), int64_t(0));
  }
};

template <class T>
struct ScanSum {
  Chunks chunks;
  const T* values;  // [N]
  bool inclusive, reverse;
  T* out;  // [N]

  // Four at a time, so that only one addition in four waits for the one before it.
  NT_HD void operator()(int64_t c) const {
    const int64_t first = chunks.first(c), count = chunks.last(c) - first, step = reverse ? -1 : 1;
    const int64_t begin = reverse ? first + count - 1 : first;
    T sum = 0;
    int64_t n = 0;
    for (; n + 4 <= count; n += 4) {
      const T* x = values + begin + n * step;
      T* y = out + begin + n * step;
      const T pair = x[0] + x[step], one = sum + x[0], two = sum + pair, three = sum + (pair + x[2 * step]);
      const T four = sum + (pair + (x[2 * step] + x[3 * step]));
      y[0] = inclusive ? one : sum;
      y[step] = inclusive ? two : one;
      y[2 * step] = inclusive ? three : two;
      y[3 * step] = inclusive ? four : three;
      sum = four;
    }
    for (; n < count; ++n) {
      const int64_t i = begin + n * step;
      const T with = sum + values[i];
      out[i] = inclusive ? with : sum;
      sum = with;
    }
  }
};

template <class T>
struct ScanProdForward {
  Chunks chunks;
  const T* values;  // [N]
  bool inclusive;
  T* out;  // [N]

  NT_HD void operator()(int64_t c) const {
    T product = 1;
    for (int64_t i = chunks.first(c); i < chunks.last(c); ++i) {
      const T with = product * values[i];
      out[i] = inclusive ? with : product;
      product = with;
    }
  }
};

template <class T>
struct ScanProdBackward {
  Chunks chunks;
  const T* values;  // [N]
  const T* v_out;   // [N]
  bool inclusive;
  T* v_values;  // [N]

  NT_HD void operator()(int64_t c) const {
    const int64_t first = chunks.first(c), last = chunks.last(c);
    T product = 1;
    for (int64_t i = first; i < last; ++i) {
      v_values[i] = product;
      product *= values[i];
    }
    T suffix = 0;  // S_{i+1}, or x_{i+1} S_{i+1} where inclusive
    for (int64_t i = last - 1; i >= first; --i) {
      if (inclusive) {
        suffix += v_out[i];
        v_values[i] *= suffix;
        suffix *= values[i];
      } else {
        v_values[i] *= suffix;
        suffix = v_out[i] + values[i] * suffix;
      }
    }
  }
};

// Column k of ray r is the sum over the samples with that ray's index, in their order: no atomics, so the same bits
// always. Samples in ray order are found by bisection; others, whose order only the device knows, one by one.
template <class T>
struct RaySums {
  const T* values;             // [N][K]
  const int64_t* ray_indices;  // [N]
  const bool* in_order;        // [] whether ray_indices do not decrease
  int64_t num_samples, num_columns;
  T* out;  // [R][K]

  // The first sample whose ray is `ray` or lies behind it.
  NT_HD int64_t bisect(int64_t ray) const {
    int64_t low = 0, high = num_samples;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (ray_indices[middle] < ray)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }

  NT_HD void operator()(int64_t place) const {
    const int64_t ray = place / num_columns, k = place % num_columns;
    const bool ordered = *in_order;
    T sum = 0;
    for (int64_t i = ordered ? bisect(ray) : 0; i < num_samples; ++i) {
      if (ray_indices[i] == ray)
        sum += values[i * num_columns + k];
      else if (ordered)
        break;
    }
    out[place] = sum;
  }
};

}  // namespace nerftrain
