// Products of small matrices with tiles of samples: the one kernel of both MLP families.
//
// Compiled once per instruction set: an including file sets NT_LANES floats in a vector, NT_VECTORS of them and NT_ROWS
// rows in a block of registers, NT_BF16 where an element is a pair of bfloat16 numbers along the depth of a product
// (then sums are float32 all the same), and NT_AMX where tiles multiply these (tile_kernel.h). Everything here has
// internal linkage and includes nothing of the project, so that no function compiled for one instruction set can be
// linked in place of another's.
#pragma once
#include <cstdint>
#if defined(NT_BF16)
#include <immintrin.h>
#endif

namespace {

typedef float Lanes __attribute__((vector_size(4 * NT_LANES)));
// In memory. A local of this type may lie anywhere too, but clang stores to it as to a vector's own boundary.
typedef float LanesAnywhere __attribute__((vector_size(4 * NT_LANES), aligned(4), may_alias));
constexpr int kLanes = NT_LANES, kVectors = NT_VECTORS, kRows = NT_ROWS;
constexpr int kTile = 96;  // samples, a multiple of kRows and even: a tile's activations stay in the L2 cache

inline int padded(int width) { return (width + kLanes - 1) / kLanes * kLanes; }

inline Lanes load(const float* from) { return *reinterpret_cast<const LanesAnywhere*>(from); }
inline void store(float* to, Lanes values) { *reinterpret_cast<LanesAnywhere*>(to) = values; }

#if defined(NT_BF16)
typedef uint32_t Element;
constexpr int kPair = 2;

inline void multiply_add(Lanes& sum, Element a, const Element* b) {
  sum = (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int(a)), (__m512bh)_mm512_loadu_si512(b));
}
#else
typedef float Element;
constexpr int kPair = 1;

inline void multiply_add(Lanes& sum, Element a, const Element* b) { sum += a * load(b); }
#endif

// Hands sum_k A(m, k) B[k][n] for ROWS x (VECTORS * kLanes) of the product to put(m, n, sums);
// A(m, k) = a[m * a_row + k * a_step].
template <int ROWS, int VECTORS, class Put>
inline void block(int m, int n, int depth, const Element* a, long a_row, long a_step, const Element* b, long b_row,
                  const Put& put) {
  Lanes sum[ROWS][VECTORS] = {};
  a += m * a_row;
  b += n;
  for (int k = 0; k < depth; ++k)
    for (int i = 0; i < ROWS; ++i) {
      const Element x = a[i * a_row + k * a_step];
      for (int v = 0; v < VECTORS; ++v) multiply_add(sum[i][v], x, b + k * b_row + v * kLanes);
    }
  put.template operator()<ROWS, VECTORS>(m, n, sum);
}

template <int VECTORS, class Put>
inline void rows(int m_end, int n, int depth, const Element* a, long a_row, long a_step, const Element* b, long b_row,
                 const Put& put) {
  int m = 0;
  for (; m + kRows <= m_end; m += kRows) block<kRows, VECTORS>(m, n, depth, a, a_row, a_step, b, b_row, put);
  for (; m + 2 <= m_end; m += 2) block<2, VECTORS>(m, n, depth, a, a_row, a_step, b, b_row, put);
  if (m < m_end) block<1, VECTORS>(m, n, depth, a, a_row, a_step, b, b_row, put);
}

#if !defined(NT_AMX)
// The product of m_end rows and n_end columns (a multiple of kLanes); depth counts elements.
template <class Put>
inline void multiply(int m_end, int n_end, int depth, const Element* a, long a_row, long a_step, const Element* b,
                     long b_row, const Put& put) {
  int n = 0;
  for (; n + kVectors * kLanes <= n_end; n += kVectors * kLanes)
    rows<kVectors>(m_end, n, depth, a, a_row, a_step, b, b_row, put);
  for (; n < n_end; n += kLanes) rows<1>(m_end, n, depth, a, a_row, a_step, b, b_row, put);
}
#endif

// Adds the product to C.
struct AddTo {
  float* c;
  long c_row;
  template <int ROWS, int VECTORS>
  inline void operator()(int m, int n, const Lanes (&sum)[ROWS][VECTORS]) const {
    for (int i = 0; i < ROWS; ++i)
      for (int v = 0; v < VECTORS; ++v) {
        float* at = c + (m + i) * c_row + n + v * kLanes;
        store(at, load(at) + sum[i][v]);
      }
  }
};

// Writes the product to C.
struct WriteTo {
  float* c;
  long c_row;
  template <int ROWS, int VECTORS>
  inline void operator()(int m, int n, const Lanes (&sum)[ROWS][VECTORS]) const {
    for (int i = 0; i < ROWS; ++i)
      for (int v = 0; v < VECTORS; ++v) store(c + (m + i) * c_row + n + v * kLanes, sum[i][v]);
  }
};

// A tile's activations as products take them: row by row, and, for products along the samples, pair of rows by pair of
// rows (the same memory where an element is one number). Widths are padded.
struct Activations {
  Element* by_row;   // [kTile][width / kPair]
  Element* by_pair;  // [kTile / kPair][width]
  int width;

  // Rows s and s + 1, s even, from column n on.
  inline void put(int s, int n, Lanes first, Lanes second) const {
#if defined(NT_BF16)
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    _mm256_storeu_si256((__m256i*)(by_row + (s * width + n) / 2), _mm512_castsi512_si256(both));
    _mm256_storeu_si256((__m256i*)(by_row + ((s + 1) * width + n) / 2), _mm512_extracti64x4_epi64(both, 1));
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    _mm512_storeu_si512(by_pair + long(s / 2) * width + n, _mm512_permutexvar_epi16(order, both));
#else
    store(by_row + s * width + n, first);
    store(by_row + (s + 1) * width + n, second);
#endif
  }

  // The values where this is above zero, else zero.
  inline Lanes where_active(int s, int n, Lanes values) const {
#if defined(NT_BF16)
    const __m256i here = _mm256_loadu_si256((const __m256i*)(by_row + (s * width + n) / 2));
    return (Lanes)_mm512_maskz_mov_ps(_mm256_cmpgt_epi16_mask(here, _mm256_setzero_si256()), (__m512)values);
#else
    const Lanes here = load(by_row + s * width + n);
    return here > 0.f ? values : Lanes{};
#endif
  }
};

// Puts max(product, 0) into activations; NaN stays NaN.
struct Rectified {
  Activations to;
  template <int ROWS, int VECTORS>
  inline void operator()(int m, int n, const Lanes (&sum)[ROWS][VECTORS]) const {
    for (int i = 0; i + 1 < ROWS; i += 2)  // tiles have whole pairs of rows
      for (int v = 0; v < VECTORS; ++v) {
        const Lanes first = sum[i][v], second = sum[i + 1][v];
        to.put(m + i, n + v * kLanes, first < 0.f ? Lanes{} : first, second < 0.f ? Lanes{} : second);
      }
  }
};

// Puts the product into activations where others are above zero.
struct Masked {
  Activations to, others;
  template <int ROWS, int VECTORS>
  inline void operator()(int m, int n, const Lanes (&sum)[ROWS][VECTORS]) const {
    for (int i = 0; i + 1 < ROWS; i += 2)
      for (int v = 0; v < VECTORS; ++v) {
        const int at = n + v * kLanes;
        to.put(m + i, at, others.where_active(m + i, at, sum[i][v]), others.where_active(m + i + 1, at, sum[i + 1][v]));
      }
  }
};

}  // namespace

#if defined(NT_AMX)
#include "tile_kernel.h"
#else
namespace {
struct TileRegisters {};  // there are none
}  // namespace
#endif
