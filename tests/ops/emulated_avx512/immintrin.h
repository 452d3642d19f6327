// What the bfloat16 kernels ask of AVX-512 and AMX, played by any CPU.
#pragma once
#include <cstdint>
#include <cstring>

#include "../emulated_tiles.h"

typedef float __m512 __attribute__((vector_size(64)));
typedef long long __m512i __attribute__((vector_size(64)));
typedef short __m512bh __attribute__((vector_size(64)));
typedef long long __m256i __attribute__((vector_size(32)));
typedef uint16_t __mmask16;

namespace emulated {

typedef uint16_t Words __attribute__((vector_size(64)));
typedef uint32_t Doubles __attribute__((vector_size(64)));

inline uint16_t rounded(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline float product(uint32_t a, uint32_t b) {
  return float_of(a & 0xffffu) * float_of(b & 0xffffu) + float_of(a >> 16) * float_of(b >> 16);
}

}  // namespace emulated

inline __m512i _mm512_set1_epi32(int x) {
  emulated::Doubles all;
  for (int i = 0; i < 16; ++i) all[i] = uint32_t(x);
  return (__m512i)all;
}
inline __m512i _mm512_loadu_si512(const void* from) {
  __m512i x;
  std::memcpy(&x, from, 64);
  return x;
}
inline void _mm512_storeu_si512(void* to, __m512i x) { std::memcpy(to, &x, 64); }
inline __m256i _mm256_loadu_si256(const __m256i* from) {
  __m256i x;
  std::memcpy(&x, from, 32);
  return x;
}
inline void _mm256_storeu_si256(__m256i* to, __m256i x) { std::memcpy(to, &x, 32); }
inline __m256i _mm256_setzero_si256() { return __m256i{}; }
inline __m256i _mm512_extracti64x4_epi64(__m512i x, int half) {
  __m256i part;
  std::memcpy(&part, reinterpret_cast<const char*>(&x) + 32 * half, 32);
  return part;
}
inline __m256i _mm512_castsi512_si256(__m512i x) { return _mm512_extracti64x4_epi64(x, 0); }
inline __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  for (int i = 0; i < 16; ++i) sum[i] += emulated::product(((emulated::Doubles)a)[i], ((emulated::Doubles)b)[i]);
  return sum;
}
inline __m512bh _mm512_cvtne2ps_pbh(__m512 high, __m512 low) {
  emulated::Words words;
  for (int i = 0; i < 16; ++i) {
    words[i] = emulated::rounded(low[i]);
    words[16 + i] = emulated::rounded(high[i]);
  }
  return (__m512bh)words;
}
template <class... W>
__m512i _mm512_set_epi16(W... from_the_last) {
  const int given[] = {from_the_last...};
  static_assert(sizeof(given) == 32 * sizeof(int));
  emulated::Words words;
  for (int i = 0; i < 32; ++i) words[31 - i] = uint16_t(given[i]);
  return (__m512i)words;
}
inline __m512i _mm512_permutexvar_epi16(__m512i order, __m512i x) {
  emulated::Words words;
  for (int i = 0; i < 32; ++i) words[i] = ((emulated::Words)x)[((emulated::Words)order)[i] % 32];
  return (__m512i)words;
}
inline __mmask16 _mm256_cmpgt_epi16_mask(__m256i a, __m256i b) {
  int16_t left[16], right[16];
  std::memcpy(left, &a, 32);
  std::memcpy(right, &b, 32);
  unsigned bits = 0;
  for (int i = 0; i < 16; ++i) bits |= unsigned(left[i] > right[i]) << i;
  return __mmask16(bits);
}
inline __m512 _mm512_maskz_mov_ps(__mmask16 mask, __m512 x) {
  for (int i = 0; i < 16; ++i)
    if (!(mask >> i & 1)) x[i] = 0.f;
  return x;
}

inline void _tile_loadconfig(const void* shapes) { emulated::load_shapes(shapes); }
inline void _tile_release() { emulated::release(); }
inline void _tile_zero(int t) { emulated::zero(t); }
inline void _tile_loadd(int t, const void* from, long stride) { emulated::load(t, from, stride); }
inline void _tile_stored(int t, void* to, long stride) { emulated::store(t, to, stride); }
inline void _tile_dpbf16ps(int c, int a, int b) { emulated::multiply(c, a, b); }
