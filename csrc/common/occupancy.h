// Occupancy grids: boxes of cells, a bit per cell, and a bit per block of cells above it.
//
// All boxes have the same number of cells, ordered x slowest, z fastest. Where boxes overlap the first of them counts:
// most often each is twice as large as the one before it, about the same centre (Instant-NGP, arXiv:2201.05989, section
// 5.2). The bits of a level fill a cube, of which cells beyond the level's own stay empty.
#pragma once
#include "macros.h"

namespace nerftrain {

constexpr int kMaxBoxes = 16;

NT_HD int64_t cubed(int64_t n) { return n * n * n; }

struct OccupancyBits {
  const uint64_t* cells;   // [L][(side / 4)^3] a bit per cell of a 4^3 block
  const uint64_t* blocks;  // [L][(side / 16)^3] a bit per 4^3 block that has an occupied cell
  const uint8_t* empty;    // [L][(side / 4)^3] see PackBlocks; null where nobody asks
};

struct OccupancyGrid {
  OccupancyBits bits;  // where there are slices of time, of the first; those of the others follow
  int num_levels;
  int side;           // of the cube of bits, a multiple of 16
  int resolution[3];  // cells along each axis, at most side
  float center[kMaxBoxes][3];
  float half[kMaxBoxes][3];     // half the size of a box
  float inverse[kMaxBoxes][3];  // one over half

  NT_HD int64_t words_of_slice() const { return num_levels * cubed(side / 4); }
  NT_HD int64_t groups_of_slice() const { return num_levels * cubed(side / 16); }
  NT_HD OccupancyBits slice(int64_t s) const {
    return {bits.cells + s * words_of_slice(), bits.blocks + s * groups_of_slice(),
            bits.empty ? bits.empty + s * words_of_slice() : nullptr};
  }
};

// The place of (x, y, z) in a cube of 4^3-bit words with `side` units per side.
struct BitPlace {
  int64_t word;
  int bit;
};

NT_HD BitPlace bit_place(int x, int y, int z, int side) {
  const int words = side / 4;
  return {(int64_t(x >> 2) * words + (y >> 2)) * words + (z >> 2), (((x & 3) << 2) | (y & 3)) << 2 | (z & 3)};
}

// 4^3 flags of [L][side^3] that make one word of the next level of detail, [L][(side / 4)^3].
struct FlagsOfWord {
  const bool* flags;
  int side;
  int64_t first;

  NT_HD FlagsOfWord(const bool* flags_, int side_, int64_t word) : flags(flags_), side(side_) {
    const int words = side / 4;
    const int64_t level = word / cubed(words), place = word % cubed(words);
    const int64_t x = place / (int64_t(words) * words), y = place / words % words, z = place % words;
    first = level * cubed(side) + ((4 * x * side) + 4 * y) * side + 4 * z;
  }
  NT_HD int64_t place(int bit) const { return first + (int64_t(bit >> 4) * side + (bit >> 2 & 3)) * side + (bit & 3); }
  NT_HD uint64_t word() const {
    uint64_t bits = 0;
    for (int bit = 0; bit < 64; ++bit) bits |= uint64_t(flags[place(bit)]) << bit;
    return bits;
  }
};

struct PackCells {
  const bool* flags;  // [L][side^3]
  int side;
  uint64_t* words;  // [L][(side / 4)^3]
  bool* any;        // [L][(side / 4)^3] whether the word has a bit set

  NT_HD void operator()(int64_t i) const {
    const uint64_t word = FlagsOfWord(flags, side, i).word();
    words[i] = word;
    any[i] = word != 0;
  }
};

// Of each block the bit, and how large an aligned cube of empty cells lies around it: one less than its side, 3, 7 or
// 15; 0 where the block has an occupied cell.
struct PackBlocks {
  const bool* any;  // [L][side^3]
  int side;         // in blocks
  uint64_t* words;  // [L][(side / 4)^3]
  uint8_t* empty;   // [L][side^3]

  NT_HD void operator()(int64_t i) const {
    const FlagsOfWord blocks(any, side, i);
    const uint64_t word = blocks.word();
    words[i] = word;
    for (int bit = 0; bit < 64; ++bit) {
      const uint64_t around = word & 0x330033ull << (bit & 0b101010);
      empty[blocks.place(bit)] = word >> bit & 1 ? 0 : around ? 3 : word ? 7 : 15;
    }
  }
};

// Of the cells of a grid those that are occupied in a slice of time, of which cubes of 2^3 cells are told.
struct SliceBits {
  const uint64_t* cells;  // [L][(side / 4)^3] at any time
  const bool* live;       // [T][L][(side / 2)^3]
  int64_t num_levels;
  int side;
  uint64_t* words;  // [T][L][(side / 4)^3]
  bool* any;        // [T][L][(side / 4)^3]

  NT_HD void operator()(int64_t i) const {
    const int n = side / 4;
    const int64_t per_level = cubed(n), level = i / per_level, place = i % per_level;
    uint64_t word = cells[level % num_levels * per_level + place];
    if (word) {
      const int x = int(place / (int64_t(n) * n)) * 2, y = int(place / n % n) * 2, z = int(place % n) * 2;
      const bool* cube = live + level * 8 * per_level;
      uint64_t alive = 0;
      for (int part = 0; part < 8; ++part) {
        const int dx = part >> 2, dy = part >> 1 & 1, dz = part & 1;
        const uint64_t cells_of_part = 0x330033ull << (32 * dx + 8 * dy + 2 * dz);
        if (cube[(int64_t(x + dx) * 2 * n + y + dy) * 2 * n + z + dz]) alive |= cells_of_part;
      }
      word &= alive;
    }
    words[i] = word;
    any[i] = word != 0;
  }
};

// Whether a cell can hold anything that the cameras show. Its bounding sphere, projected, is out of a camera's sight,
// in sight, or wholly in front of transparent pixels: one camera of the last kind is enough to rule the cell out
// (the visual hull: Laurentini, 1994).
struct VisibleCells {
  const float* poses;       // [C][3][4] camera to world, OpenGL axes
  const float* intrinsics;  // [C][4] fx fy cx cy
  const float* sizes;       // [C][2] width, height
  const int32_t* counts;    // [C][mask height + 1][mask width + 1] opaque mask pixels above and left; or none
  int mask_width, mask_height;
  float mask_scale;  // mask pixels per image pixel
  int64_t num_cameras;
  OccupancyGrid grid;
  float near;
  bool* visible;  // [L][cells]

  enum Sight { kUnseen, kSeen, kEmpty };

  NT_HD bool transparent(int64_t camera, float u, float v, float margin_u, float margin_v) const {
    const float left = (u - margin_u) * mask_scale, right = (u + margin_u) * mask_scale;
    const float top = (v - margin_v) * mask_scale, bottom = (v + margin_v) * mask_scale;
    // Of a mirrored camera, or a negative scale, the left may lie beyond the right.
    if (!(left >= 0.f && left <= right && right < float(mask_width))) return false;
    if (!(top >= 0.f && top <= bottom && bottom < float(mask_height))) return false;
    const int x0 = int(left), x1 = int(right) + 1, y0 = int(top), y1 = int(bottom) + 1, row = mask_width + 1;
    const int32_t* sum = counts + camera * row * (mask_height + 1);
    return sum[y1 * row + x1] - sum[y0 * row + x1] - sum[y1 * row + x0] + sum[y0 * row + x0] == 0;
  }

  NT_HD Sight look(int64_t camera, const float* p, float radius) const {
    const float *pose = poses + 12 * camera, *k = intrinsics + 4 * camera, *size = sizes + 2 * camera;
    const float offset[3] = {p[0] - pose[3], p[1] - pose[7], p[2] - pose[11]};
    float q[3];
    for (int a = 0; a < 3; ++a) q[a] = pose[a] * offset[0] + pose[4 + a] * offset[1] + pose[8 + a] * offset[2];
    const float depth = -q[2];
    if (depth + radius < near) return kUnseen;
    const float scale = 1.f / max_of(depth, 1e-6f);
    const float u = k[0] * q[0] * scale + k[2], v = -k[1] * q[1] * scale + k[3];
    const float margin_u = k[0] * radius * scale, margin_v = k[1] * radius * scale;
    if (!(u > -margin_u && u < size[0] + margin_u && v > -margin_v && v < size[1] + margin_v)) return kUnseen;
    // A sphere that is near for its size looks larger than radius / depth.
    if (counts == nullptr || depth < 4.f * radius) return kSeen;
    return transparent(camera, u, v, 1.1f * margin_u, 1.1f * margin_v) ? kEmpty : kSeen;
  }

  NT_HD void operator()(int64_t i) const {
    const int* n = grid.resolution;
    const int64_t per_level = int64_t(n[0]) * n[1] * n[2];
    const int64_t level = i / per_level, cell = i % per_level;
    const int c[3] = {int(cell / (int64_t(n[1]) * n[2])), int(cell / n[2] % n[1]), int(cell % n[2])};
    float p[3], radius = 0.f;
    for (int a = 0; a < 3; ++a) {
      const float half = grid.half[level][a];
      p[a] = grid.center[level][a] + ((float(c[a]) + 0.5f) * 2.f / float(n[a]) - 1.f) * half;
      const float half_cell = half / float(n[a]);
      radius += half_cell * half_cell;
    }
    radius = sqrtf(radius);
    bool seen = false;
    for (int64_t j = 0; j < num_cameras && !(seen && counts == nullptr); ++j) {
      const Sight sight = look(j, p, radius);
      seen = sight == kSeen || (seen && sight != kEmpty);
      if (sight == kEmpty) break;
    }
    visible[i] = seen;
  }
};

}  // namespace nerftrain
