// AMX's tiles on any CPU, as Intel's manual says (Software Developer's Manual, volume 2). What AMX would refuse ends
// the process.
#pragma once
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace emulated {

struct Tiles {
  bool shaped;
  int rows[8], row_bytes[8];
  uint8_t data[8][16][64];
};

// Of this thread. initial-exec: a handler of signals must not allocate.
inline thread_local Tiles tiles __attribute__((tls_model("initial-exec")));

[[noreturn]] inline void refuse(const char* why) {
  for (const char* part : {"AMX refuses ", why, "\n"})
    if (write(STDERR_FILENO, part, std::strlen(part)) < 0) break;
  _exit(99);
}

inline void load_shapes(const void* shapes) {
  const auto* from = static_cast<const uint8_t*>(shapes);
  tiles = {};
  if (from[0] == 0) return;
  if (from[0] != 1 || from[1] != 0) refuse("a palette other than 1, or a row to go on with");
  tiles.shaped = true;
  for (int i = 2; i < 64; ++i) {
    const bool of_bytes = i >= 16 && i < 32, of_rows = i >= 48 && i < 56;
    if (!of_bytes && !of_rows && from[i]) refuse("a reserved byte that is not 0");
  }
  for (int t = 0; t < 8; ++t) {
    tiles.row_bytes[t] = from[16 + 2 * t] | from[17 + 2 * t] << 8;
    tiles.rows[t] = from[48 + t];
    const bool fits = tiles.rows[t] <= 16 && tiles.row_bytes[t] <= 64;
    if (!fits || !tiles.rows[t] != !tiles.row_bytes[t]) refuse("the shape of a tile");
  }
}

inline void release() { tiles = {}; }

inline void check(int tile) {
  if (!tiles.shaped || tile > 7 || !tiles.rows[tile] || tiles.row_bytes[tile] % 4) refuse("a tile without a shape");
}

inline void zero(int tile) {
  check(tile);
  std::memset(tiles.data[tile], 0, sizeof(tiles.data[tile]));
}

inline void load(int tile, const void* from, int64_t stride) {
  zero(tile);
  for (int row = 0; row < tiles.rows[tile]; ++row)
    std::memcpy(tiles.data[tile][row], static_cast<const uint8_t*>(from) + row * stride, size_t(tiles.row_bytes[tile]));
}

inline void store(int tile, void* to, int64_t stride) {
  check(tile);
  for (int row = 0; row < tiles.rows[tile]; ++row)
    std::memcpy(static_cast<uint8_t*>(to) + row * stride, tiles.data[tile][row], size_t(tiles.row_bytes[tile]));
}

inline float float_of(uint32_t bfloat16) {
  const uint32_t bits = bfloat16 << 16;
  float number;
  std::memcpy(&number, &bits, 4);
  return number;
}

// Numbers too small for float32's full precision count as zero.
inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x; }

// TDPBF16PS: what is first of each pair and what is second are summed apart.
inline void multiply(int to, int a, int b) {
  if (to == a || to == b || a == b) refuse("tiles that are one");
  for (int tile : {to, a, b}) check(tile);
  const int rows = tiles.rows[to], columns = tiles.row_bytes[to] / 4, depth = tiles.row_bytes[a] / 4;
  if (tiles.rows[a] != rows || tiles.row_bytes[b] != 4 * columns || tiles.rows[b] != depth)
    refuse("shapes that do not fit");
  for (int m = 0; m < rows; ++m) {
    float parts[32] = {}, sums[16];
    uint16_t of_a[32], of_b[32];
    std::memcpy(of_a, tiles.data[a][m], 64);
    for (int k = 0; k < depth; ++k) {
      std::memcpy(of_b, tiles.data[b][k], 64);
      for (int i = 0; i < 2 * columns; ++i) {
        const float x = flushed(float_of(of_a[2 * k + i % 2])), y = flushed(float_of(of_b[i]));
        parts[i] = flushed(std::fma(x, y, parts[i]));
      }
    }
    std::memcpy(sums, tiles.data[to][m], 64);
    for (int n = 0; n < columns; ++n) sums[n] = flushed(flushed(sums[n]) + flushed(parts[2 * n] + parts[2 * n + 1]));
    std::memcpy(tiles.data[to][m], sums, 64);
  }
}

}  // namespace emulated
