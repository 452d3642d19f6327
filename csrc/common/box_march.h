// Marching by equal steps through a single box (march.h), counted in steps and in cells, as GPUs do it.
//
// The middle of step k lies at from + k per_step, in cells along each axis, and the wall w of an axis is passed at step
// (w - from) / per_step. Walls, cells and steps are kept as the bits of floats 2^23 + n, whose low bits are n:
// additions that round down or up make them, so that no number is converted, and all that there is for integers serves
// on them. Which steps are samples is decided as in march.h, but for midpoints within rounding of a wall.
#pragma once
#include "march.h"

namespace nerftrain {

constexpr int kNumber = 0x4b000000;    // the bits of 2^23
constexpr int kMaxNumbered = 1 << 22;  // steps, and more than any grid has cells
constexpr float kBesideWall = 0.02f;   // of a step: what is so near may lie on either side and is looked at

union NumberBits {
  float number;
  int bits;
};

// The bits of the greatest or the least integer of 0 ... kMaxNumbered on this side of x; beyond these, less or more.
NT_HD int floor_bits(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_int(__fadd_rd(x, 8388608.f));
#else
  const NumberBits sum{x + 8388608.f};
  return sum.bits - (sum.number - 8388608.f > x);
#endif
}

NT_HD int ceil_bits(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_int(__fadd_ru(x, 8388608.f));
#else
  const NumberBits sum{x + 8388608.f};
  return sum.bits + (sum.number - 8388608.f < x);
#endif
}

// One over x, which is not tiny, to the last bit or two.
NT_HD float inverse_of(float x) {
#if defined(__CUDA_ARCH__)
  return __fdividef(1.f, x);
#else
  return 1.f / x;
#endif
}

NT_HD int lowest_bit(uint64_t bits) {
#if defined(__CUDA_ARCH__)
  return __ffsll(int64_t(bits)) - 1;
#else
  return __builtin_ctzll(bits);
#endif
}

NT_HD int highest_bit(uint64_t bits) {
#if defined(__CUDA_ARCH__)
  return 63 - __clzll(int64_t(bits));
#else
  return 63 - __builtin_clzll(bits);
#endif
}

NT_HD float number_of(int bits) {
  NumberBits number;
  number.bits = bits;
  return number.number - 8388608.f;
}

// Whether equal steps through these boxes can be numbered so.
inline bool marches_as_box(const OccupancyGrid& g, const MarchSettings& m) {
  return g.num_levels == 1 && m.step > 0.f && !(m.cone_angle > 0.f) && m.max_steps < kMaxNumbered;
}

// The blocks of 4^3 cells that are occupied lie between these, inclusive.
struct OccupiedBlocks {
  int low[3], high[3];

  NT_HD static OccupiedBlocks none() { return {{kMaxNumbered, kMaxNumbered, kMaxNumbered}, {-1, -1, -1}}; }
  NT_HD static OccupiedBlocks all(const OccupancyGrid& g) {
    const int last = (g.side >> 2) - 1;
    return {{0, 0, 0}, {last, last, last}};
  }

  // Of a group of 4^3 blocks, a bit each.
  NT_HD void add(uint64_t bits, int x, int y, int z) {
    if (bits == 0) return;
    const uint32_t of_y = fold(uint32_t(bits | bits >> 32), 16), of_z = fold(fold(of_y, 8), 4);
    add(0, 4 * x, lowest_bit(bits) >> 4, highest_bit(bits) >> 4);
    add(1, 4 * y, lowest_bit(of_y) >> 2, highest_bit(of_y) >> 2);
    add(2, 4 * z, lowest_bit(of_z), highest_bit(of_z));
  }

 private:
  NT_HD static uint32_t fold(uint32_t bits, int by) { return (bits | bits >> by) & ((1u << by) - 1); }
  NT_HD void add(int a, int base, int first, int last) {
    low[a] = min_of(low[a], base + first);
    high[a] = max_of(high[a], base + last);
  }
};

// A ray on its way through the box. Steps are told by their bits.
struct BoxRay {
  float from[3], per_step[3];  // cells
  float per_cell[3];           // steps; very many along an axis by which the ray never leaves its cell
  float exits[3];              // the step at which a ray leaves cell 0 along an axis
  int next, last;              // the step to look at, and that behind all that may be samples
  int behind;                  // that behind all in the box

  // From step `begin` on. False where the ray does not meet the box; then it has no steps.
  NT_HD bool enter(const OccupancyGrid& g, const OccupiedBlocks& occupied, const MarchSettings& m, const float* o,
                   const float* d, float near, float far, float jitter, int begin) {
    next = last = behind = kNumber;
    if (!(near < far)) return false;
    const float first_middle = near + (0.5f + jitter) * m.step;
    Stretch box{-3.4e38f, (far - first_middle) * inverse_of(m.step)}, blocks = box;
    for (int a = 0; a < 3; ++a) {
      const float size = float(g.resolution[a]), cells_per_unit = 0.5f * size * g.inverse[0][a];
      from[a] = (o[a] + first_middle * d[a] - (g.center[0][a] - g.half[0][a])) * cells_per_unit;
      per_step[a] = m.step * d[a] * cells_per_unit;
      per_cell[a] = fabsf(per_step[a]) > 1e-30f ? inverse_of(per_step[a]) : 1e30f;
      exits[a] = max_of(per_cell[a], 0.f) - from[a] * per_cell[a] - kBesideWall;
      box.clip(*this, a, 0.f, size);
      blocks.clip(*this, a, 4.f * float(occupied.low[a]), 4.f * float(occupied.high[a] + 1));
    }
    if (!(box.enters < box.leaves && box.leaves > -0.5f - jitter)) return false;
    const float most = float(m.max_steps);
    int first = ceil_bits(between(float(max_of(begin, 0)), box.enters - kBesideWall, most));
    int end = ceil_bits(between(0.f, box.leaves + kBesideWall, most));
    const EvenLattice lattice(near, jitter, m);
    while (first < end && !inside(g, first)) ++first;
    while (end > first && !(lattice.middle(end - 1 - kNumber) < far && inside(g, end - 1))) --end;
    behind = max_of(first, end);
    next = ceil_bits(between(number_of(first), blocks.enters - kBesideWall, number_of(behind)));
    last = ceil_bits(between(number_of(first), blocks.leaves + kBesideWall, number_of(behind)));
    return true;
  }

 private:
  NT_HD static float between(float low, float x, float high) { return fminf(fmaxf(x, low), high); }

  NT_HD bool inside(const OccupancyGrid& g, int step) const {
    bool in = true;
    for (int a = 0; a < 3; ++a) {
      const int cell = floor_bits(from[a] + number_of(step) * per_step[a]) - kNumber;
      in = in && uint32_t(cell) < uint32_t(g.resolution[a]);
    }
    return in;
  }

  // Where a ray is between walls, in steps.
  struct Stretch {
    float enters, leaves;

    NT_HD void clip(const BoxRay& ray, int a, float low, float high) {
      const float at_low = (low - ray.from[a]) * ray.per_cell[a], at_high = (high - ray.from[a]) * ray.per_cell[a];
      enters = max_of(enters, min_of(at_low, at_high));
      leaves = min_of(leaves, max_of(at_low, at_high));
    }
  };
};

// Where blocks of 4^3 cells are among those that cells of any number would have: so a cell's bits need not be taken for
// what they number.
struct BoxBlocks {
  uint32_t along;  // an axis
  uint32_t first;  // the place of the first

  NT_HD explicit BoxBlocks(int side) : along(uint32_t(side) >> 2), first(0) {
    const int origin[3] = {kNumber, kNumber, kNumber};
    first = place(origin);
  }
  NT_HD uint32_t place(const int* at) const {
    return ((uint32_t(at[0]) >> 2) * along + (uint32_t(at[1]) >> 2)) * along + (uint32_t(at[2]) >> 2);
  }
};

template <class T>
NT_HD T read_only(const T* from) {
#if defined(__CUDA_ARCH__)
  return __ldg(from);
#else
  return *from;
#endif
}

// What looks along a ray.
struct BoxMarch : BoxRay {
  OccupancyBits bits;
  int ahead[3];  // all bits where it goes up an axis, else none
  uint32_t block;
  uint64_t cells_of_block;

  NT_HD void begin(const BoxRay& ray, const OccupancyBits& cells, const BoxBlocks& blocks) {
    static_cast<BoxRay&>(*this) = ray;
    bits = cells;
    for (int a = 0; a < 3; ++a) ahead[a] = per_cell[a] > 0.f ? -1 : 0;
    block = blocks.first - 1;
  }

  // Steps from `next` to `until`, of which there is at least one, lie in one cell, or in a cube whose cells are all
  // occupied or all empty.
  struct Look {
    uint32_t occupied;
    int until;
  };

  NT_HD Look look(const BoxBlocks& blocks) {
    const float k = number_of(next);
    int at[3];
    for (int a = 0; a < 3; ++a) at[a] = floor_bits(from[a] + k * per_step[a]);
    const uint32_t its_block = blocks.place(at);
    int within = read_only(bits.empty + (its_block - blocks.first));  // one less than the side of the cube
    uint32_t occupied = 0;
    if (within == 0) {
      if (its_block != block) {
        block = its_block;
        cells_of_block = read_only(bits.cells + (block - blocks.first));
      }
      // The half of them that the cell is in, and its place there; of the aligned cube of 2^3 cells around it.
      const uint32_t half = at[0] & 2 ? uint32_t(cells_of_block >> 32) : uint32_t(cells_of_block);
      const int place = (at[0] & 1) << 4 | (at[1] & 3) << 2 | (at[2] & 3);
      constexpr uint32_t kFull = 0x330033;
      const uint32_t cube = half >> (place & 10) & kFull;
      within = cube == 0 || cube == kFull ? 1 : 0;
      occupied = half >> place & 1;
    }
    float exit[3];
    for (int a = 0; a < 3; ++a) exit[a] = number_of((at[a] & ~within) | (ahead[a] & within)) * per_cell[a] + exits[a];
    const int until = ceil_bits(fminf(fminf(exit[0], exit[1]), exit[2]));
    return {occupied, min_of(max_of(until, next + 1), last)};
  }
};

}  // namespace nerftrain
