// Visiting packed samples front to back, a few of each ray at a time, until nothing behind them can be seen; and
// leaving out samples that nobody wants.
//
// What has been visited of a ray: how many of its samples, the transmittance behind them (NeRF, arXiv:2003.08934,
// eq. 3), and the sum of their opacities.
#pragma once
#include "macros.h"

namespace nerftrain {

template <class T>
struct Visited {
  int64_t* num;      // [R]
  T* transmittance;  // [R]
  T* sum_alpha;      // [R]
};

// How many samples of each ray are next: at most `most`, none where a ray is at its end or opaque.
template <class T>
struct VisitCount {
  static constexpr int64_t kGrain = 1 << 15;
  const int64_t* offsets;  // [R + 1] of all samples
  const int64_t* num;      // [R]
  const T* transmittance;  // [R]
  T early_stop_eps;
  int64_t most;
  int64_t* counts;  // [R]

  NT_HD void operator()(int64_t r) const {
    const int64_t left = offsets[r + 1] - offsets[r] - num[r];
    counts[r] = transmittance[r] >= early_stop_eps ? min_of(left, most) : 0;
  }
};

template <class T>
struct VisitPick {
  static constexpr int64_t kGrain = 1 << 12;
  const T* t_starts;             // [N]
  const T* t_ends;               // [N]
  const int64_t* offsets;        // [R + 1]
  const int64_t* num;            // [R]
  const int64_t* round_offsets;  // [R + 1] of the samples that are next
  T* round_starts;               // [M]
  T* round_ends;                 // [M]
  int64_t* round_rays;           // [M]

  NT_HD void operator()(int64_t r) const {
    const int64_t shift = offsets[r] + num[r] - round_offsets[r];
    for (int64_t i = round_offsets[r]; i < round_offsets[r + 1]; ++i) {
      round_starts[i] = t_starts[i + shift];
      round_ends[i] = t_ends[i + shift];
      round_rays[i] = r;
    }
  }
};

// Takes in the densities of the samples that VisitPick gave; a density below zero counts as zero.
template <class T>
struct VisitTake {
  static constexpr int64_t kGrain = 1 << 11;
  const T* round_density;        // [M]
  const T* round_starts;         // [M]
  const T* round_ends;           // [M]
  const int64_t* round_offsets;  // [R + 1]
  const int64_t* offsets;        // [R + 1]
  Visited<T> visited;
  T* density;  // [N]

  NT_HD void operator()(int64_t r) const {
    const int64_t first = round_offsets[r], last = round_offsets[r + 1];
    const int64_t shift = offsets[r] + visited.num[r] - first;
    T transmittance = visited.transmittance[r], sum = visited.sum_alpha[r];
    for (int64_t i = first; i < last; ++i) {
      const T sigma = round_density[i] < T(0) ? T(0) : round_density[i];  // NaN stays NaN
      const T kept = exp_of(-sigma * (round_ends[i] - round_starts[i]));
      density[i + shift] = sigma;
      transmittance *= kept;
      sum += T(1) - kept;
    }
    visited.num[r] += last - first;
    visited.transmittance[r] = transmittance;
    visited.sum_alpha[r] = sum;
  }
};

struct SelectCount {
  static constexpr int64_t kGrain = 1 << 12;
  const bool* keep;        // [N]
  const int64_t* offsets;  // [R + 1]
  int64_t* counts;         // [R]

  NT_HD void operator()(int64_t r) const {
    int64_t count = 0;
    for (int64_t i = offsets[r]; i < offsets[r + 1]; ++i) count += keep[i];
    counts[r] = count;
  }
};

template <class T>
struct SelectPick {
  static constexpr int64_t kGrain = 1 << 12;
  const bool* keep;             // [N]
  const T* t_starts;            // [N]
  const T* t_ends;              // [N]
  const int64_t* offsets;       // [R + 1]
  const int64_t* kept_offsets;  // [R + 1]
  const int64_t* before;        // [R] how many of a ray are kept already; null: none
  int64_t first_row;            // the number of the first sample
  T* kept_starts;               // [M]
  T* kept_ends;                 // [M]
  int64_t* kept_rays;           // [M]
  int64_t* kept_rows;           // [M] where they were

  NT_HD void operator()(int64_t r) const {
    int64_t to = kept_offsets[r] + (before ? before[r] : 0);
    const int64_t end = kept_offsets[r + 1];  // a ray without room keeps none
    for (int64_t i = offsets[r]; i < offsets[r + 1] && to < end; ++i) {
      if (!keep[i]) continue;
      kept_starts[to] = t_starts[i];
      kept_ends[to] = t_ends[i];
      kept_rows[to] = first_row + i;
      kept_rays[to++] = r;
    }
  }
};

struct alignas(16) Chunk {
  uint32_t words[4];
};

// Rows of a matrix, a few words each.
template <class Word>
struct GatherRows {
  static constexpr int64_t kGrain = 1 << 14;
  const Word* from;     // [M][K]
  int64_t num_rows;     // M
  const Word* more;     // [M'][K], which come after those
  const int64_t* rows;  // [N], below M + M'
  int64_t num_words;    // K
  Word* to;             // [N][K]

  NT_HD void operator()(int64_t i) const {
    const int64_t row = rows[i / num_words], word = i % num_words;
    to[i] = row < num_rows ? from[row * num_words + word] : more[(row - num_rows) * num_words + word];
  }
};

// Rays are taken in their order until the next one would not fit; those without room have no samples.
struct FitRays {
  static constexpr int64_t kGrain = 1 << 12;
  const int64_t* ends;  // [R] of the samples of each ray and all before it
  int64_t num_rays;     // R
  int64_t room;
  int64_t* offsets;  // [R + 1]
  bool* whole;       // [R]

  NT_HD void operator()(int64_t i) const {
    const int64_t before = i > 0 ? ends[i - 1] : 0;
    offsets[i] = before > room ? used() : before;
    if (i < num_rays) whole[i] = ends[i] <= room;
  }

 private:
  NT_HD int64_t used() const {
    int64_t low = 0, high = num_rays;  // the first ray that does not fit lies between
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      ends[middle] <= room ? low = middle + 1 : high = middle;
    }
    return low > 0 ? ends[low - 1] : 0;
  }
};

}  // namespace nerftrain
