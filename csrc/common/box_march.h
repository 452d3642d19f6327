// Marching through a box, or through boxes each within the next (march.h), counted in steps and in cells, as GPUs do
// it.
//
// A number x tells where on a ray the middle of a step is: for equal steps the step's own number, else the distance. A
// middle lies at from + x per_x, in cells along each axis, and the wall w of an axis is passed at x = (w - from) /
// per_x. Walls, cells and steps are kept as the bits of floats 2^23 + n, whose low bits are n: additions that round
// down or up make them, so that no number is converted, and all that there is for integers serves on them. Which steps
// are samples is decided as in march.h, but for midpoints within rounding of a wall.
#pragma once
#include "march.h"
#include "number_bits.h"

namespace nerftrain {

constexpr float kBesideWall = 0.02f;  // of a step: what is so near may lie on either side and is looked at
// Steps that grow by less could not be told apart by fast exponentials, and of those that grow by more the middle is
// too far from half a step.
constexpr float kLeastCone = 1e-4f, kMostCone = 0.05f;

// One over x, which is not tiny, to the last bit or two.
NT_HD float inverse_of(float x) {
#if defined(__CUDA_ARCH__)
  return __fdividef(1.f, x);
#else
  return 1.f / x;
#endif
}

NT_HD float log2_of(float x) {
#if defined(__CUDA_ARCH__)
  return __log2f(x);
#else
  return log2f(x);
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

// Whether a march can be counted so: boxes must lie within each other, from the first to the last.
inline bool marches_by_boxes(const OccupancyGrid& g, const MarchSettings& m) {
  bool nested = g.num_levels > 0;
  for (int level = 1; level < g.num_levels; ++level)
    for (int a = 0; a < 3; ++a) {
      const float apart = fabsf(g.center[level][a] - g.center[level - 1][a]);
      nested = nested && apart + g.half[level - 1][a] <= g.half[level][a];
    }
  const bool grows_well = !(m.cone_angle > 0.f) || (m.cone_angle >= kLeastCone && m.cone_angle <= kMostCone);
  return nested && m.step > 0.f && grows_well && m.max_steps < kMaxNumbered;
}

// Steps of one length, told by their numbers.
struct EvenSteps {
  static constexpr float kBeforeWall = kBesideWall;  // of an exit's x
  float step, inverse_step;

  struct OfRay {
    EvenLattice lattice;
    float first_middle;
  };

  explicit EvenSteps(const MarchSettings& m) : step(m.step), inverse_step(1.f / m.step) {}
  NT_HD OfRay of(float near, float jitter, const MarchSettings& m) const {
    return {{near, jitter, m}, near + (0.5f + jitter) * step};
  }
  NT_HD static float distance_at_zero(const OfRay& ray) { return ray.first_middle; }
  NT_HD float distance_per_x() const { return step; }
  NT_HD float x_of(const OfRay& ray, float t) const { return (t - ray.first_middle) * inverse_step; }
  NT_HD static float middle(const OfRay&, int step) { return number_of(step); }
  NT_HD static float distance(const OfRay& ray, int step) { return ray.lattice.middle(step - kNumber); }
  NT_HD static float start(const OfRay& ray, float k) { return ray.lattice.start(k); }
  NT_HD static float step_of(const OfRay&, float x) { return x; }
  NT_HD static int until(const OfRay&, float exit) { return ceil_bits(exit); }
};

// Steps that grow with the distance, told by that of their middles.
struct GrowingSteps {
  static constexpr float kBeforeWall = 0;
  float step, inverse_step, first_knee, shrink, doublings, per_doubling;  // of a step

  struct OfRay {
    float first;            // the start of step 0, if all were as long as the first
    float knee, knee_step;  // where they begin to grow
    float even, growing;    // what steps are told by there: step 0, and that at distance 1
  };

  explicit GrowingSteps(const MarchSettings& m)
      : step(m.step),
        inverse_step(1.f / m.step),
        first_knee(m.step / m.cone_angle),
        shrink(1.f / (1.f + m.cone_angle)),
        doublings(log1pf(m.cone_angle) / logf(2.f)),
        per_doubling(1.f / doublings) {}
  NT_HD OfRay of(float near, float jitter, const MarchSettings&) const {
    const float knee = fmaxf(near, first_knee), knee_step = (knee - near) * inverse_step - jitter;
    const float half = 0.5f + jitter;
    return {near + jitter * step, knee, knee_step, -near * inverse_step - half,
            knee_step - log2_of(knee) * per_doubling - 0.5f};
  }
  NT_HD static float distance_at_zero(const OfRay&) { return 0; }
  NT_HD static float distance_per_x() { return 1; }
  NT_HD static float x_of(const OfRay&, float t) { return t; }
  NT_HD float start(const OfRay& ray, float k) const {
    return k <= ray.knee_step ? ray.first + k * step : grown(ray, k);
  }
  NT_HD float middle(const OfRay& ray, int of) const {
    const float k = number_of(of), next = k + 1.f, even = fused(k, step, ray.first), end = grown(ray, next);
    return 0.5f * ((k <= ray.knee_step ? even : product(end, shrink)) + (next <= ray.knee_step ? even + step : end));
  }
  NT_HD float distance(const OfRay& ray, int step) const { return middle(ray, step); }
  // The middle of a step that grows is not quite half a step from its start: kMostCone^2 / 8 of the distance.
  NT_HD float step_of(const OfRay& ray, float t) const {
    return t <= ray.knee ? t * inverse_step + ray.even : log2_of(t) * per_doubling + ray.growing;
  }
  NT_HD int until(const OfRay& ray, float exit) const { return ceil_bits(step_of(ray, exit) - kBesideWall); }

 private:
  NT_HD float grown(const OfRay& ray, float k) const {
    return product(ray.knee, exp2f((k - ray.knee_step) * doublings));
  }
};

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

// A ray on its way through a box. Steps are told by their bits.
struct BoxRay {
  float from[3], per_x[3];  // cells
  float per_cell[3];        // x; very much along an axis by which the ray never leaves its cell
  float exits[3];           // the x at which a ray leaves cell 0 along an axis
  int next, last;           // the step to look at, and that behind all that may be samples
  int behind;               // that behind all in any box

  // Comes to the outermost box, to step `begin` or a later one. False where it does not; then there are no steps.
  template <class Steps>
  NT_HD bool enter(const OccupancyGrid& g, const MarchSettings& m, const Steps& steps, const typename Steps::OfRay& on,
                   const float* o, const float* d, float near, float far, int begin) {
    next = last = behind = kNumber;
    if (!(near < far)) return false;
    lie_in(g, g.num_levels - 1, steps, on, o, d);
    measure<Steps>();
    const Stretch box = clipped_to(g, {-3.4e38f, steps.x_of(on, far)});
    if (!(box.enters < box.leaves && box.leaves > steps.x_of(on, near))) return false;
    const float most = float(m.max_steps);
    int end = ceil_bits(between(0.f, steps.step_of(on, box.leaves) + kBesideWall, most));
    next = ceil_bits(between(float(max_of(begin, 0)), steps.step_of(on, box.enters) - kBesideWall, most));
    while (next < end && !holds(g, steps.middle(on, next))) ++next;
    while (end > next && !(steps.distance(on, end - 1) < far && holds(g, steps.middle(on, end - 1)))) --end;
    last = behind = max_of(next, end);
    return true;
  }

  // Leaves out what lies before and behind all blocks that are occupied.
  template <class Steps>
  NT_HD void keep_to(const OccupiedBlocks& occupied, const Steps& steps, const typename Steps::OfRay& on) {
    Stretch blocks{-3.4e38f, 3.4e38f};
    for (int a = 0; a < 3; ++a) blocks.clip(*this, a, 4.f * float(occupied.low[a]), 4.f * float(occupied.high[a] + 1));
    const float low = number_of(next), high = number_of(behind);
    next = ceil_bits(between(low, steps.step_of(on, blocks.enters) - kBesideWall, high));
    last = ceil_bits(between(low, steps.step_of(on, blocks.leaves) + kBesideWall, high));
    if (!(blocks.enters < blocks.leaves)) last = next;
  }

  // Goes on from step `next` in the first box that holds it, as far as it is the first. Takes the number of the box
  // before, of the last one at first, and leaves that of this one. False where nothing is left.
  template <class Steps>
  NT_HD bool go_on(const OccupancyGrid& g, const MarchSettings& m, const Steps& steps, const typename Steps::OfRay& on,
                   const float* o, const float* d, int& level) {
    for (; next < behind; ++next) {
      const float x = steps.middle(on, next);
      for (; level < g.num_levels; ++level) {
        lie_in(g, level, steps, on, o, d);
        if (holds(g, x)) break;
      }
      if (level == g.num_levels) {  // by rounding
        --level;
        continue;
      }
      BoxRay inner;
      for (; level > 0; --level) {
        inner.lie_in(g, level - 1, steps, on, o, d);
        if (!inner.holds(g, x)) break;
        for (int a = 0; a < 3; ++a) {
          from[a] = inner.from[a];
          per_x[a] = inner.per_x[a];
        }
      }
      measure<Steps>();
      float until = clipped_to(g, {-3.4e38f, 3.4e38f}).leaves;
      if (level > 0) {
        inner.measure<Steps>();
        const Stretch ahead = inner.clipped_to(g, {-3.4e38f, 3.4e38f});
        if (ahead.enters < ahead.leaves && ahead.leaves > x) until = fminf(until, fmaxf(ahead.enters, x));
      }
      last = ceil_bits(between(0.f, steps.step_of(on, until) - kBesideWall, float(m.max_steps)));
      last = min_of(max_of(last, next + 1), behind);
      while (last > next + 1 && !holds(g, steps.middle(on, last - 1))) --last;
      return true;
    }
    return false;
  }

  // The cell along an axis in which it is at x. That it lies in the box is known of steps by the same rounding.
  NT_HD int cell_bits(int a, float x) const { return floor_bits(fused(x, per_x[a], from[a])); }

  // From where it lies and how it moves: how far one cell is, and the walls of cell 0.
  template <class Steps>
  NT_HD void measure() {
    for (int a = 0; a < 3; ++a) {
      per_cell[a] = fabsf(per_x[a]) > 1e-30f ? inverse_of(per_x[a]) : 1e30f;
      exits[a] = max_of(per_cell[a], 0.f) - from[a] * per_cell[a] - Steps::kBeforeWall;
    }
  }

 private:
  // Where a ray is between walls.
  struct Stretch {
    float enters, leaves;

    NT_HD void clip(const BoxRay& ray, int a, float low, float high) {
      const float at_low = (low - ray.from[a]) * ray.per_cell[a], at_high = (high - ray.from[a]) * ray.per_cell[a];
      enters = max_of(enters, min_of(at_low, at_high));
      leaves = min_of(leaves, max_of(at_low, at_high));
    }
  };

  template <class Steps>
  NT_HD void lie_in(const OccupancyGrid& g, int level, const Steps& steps, const typename Steps::OfRay& on,
                    const float* o, const float* d) {
    for (int a = 0; a < 3; ++a) {
      const float cells_per_unit = 0.5f * float(g.resolution[a]) * g.inverse[level][a];
      const float low = g.center[level][a] - g.half[level][a];
      from[a] = (o[a] + steps.distance_at_zero(on) * d[a] - low) * cells_per_unit;
      per_x[a] = steps.distance_per_x() * d[a] * cells_per_unit;
    }
  }

  NT_HD Stretch clipped_to(const OccupancyGrid& g, Stretch stretch) const {
    for (int a = 0; a < 3; ++a) stretch.clip(*this, a, 0.f, float(g.resolution[a]));
    return stretch;
  }

  NT_HD bool holds(const OccupancyGrid& g, float x) const {
    bool in = true;
    for (int a = 0; a < 3; ++a) {
      const int cell = cell_bits(a, x) - kNumber;
      in = in && uint32_t(cell) < uint32_t(g.resolution[a]);
    }
    return in;
  }

  NT_HD static float between(float low, float x, float high) { return fminf(fmaxf(x, low), high); }
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

// The cells of a block in its lower or upper half along x, a bit each.
NT_HD uint32_t half_of_block(const uint64_t* cells, uint32_t block, uint32_t upper) {
#if defined(__CUDA_ARCH__)
  return read_only(reinterpret_cast<const uint32_t*>(cells) + (2 * block + upper));
#else
  return uint32_t(cells[block] >> 32 * upper);
#endif
}

// What looks along a ray.
struct BoxMarch : BoxRay {
  OccupancyBits bits;
  int ahead[3];  // all bits where it goes up an axis, else none

  // Before looks: of all bits those of the box that it is in.
  NT_HD void look_from_here(const OccupancyBits& all, int level, const BoxBlocks& blocks) {
    const int64_t words = level * cubed(blocks.along);
    bits = {all.cells + words, nullptr, all.empty + words};
    for (int a = 0; a < 3; ++a) ahead[a] = per_cell[a] > 0.f ? -1 : 0;
  }

  // Steps from `next` to `until`, of which there is at least one, lie in one cell, or in a cube whose cells are all
  // occupied or all empty.
  struct Look {
    uint32_t occupied;
    int until;
  };

  // empty(place) tells what `bits.empty` does; it may have been brought nearer.
  template <class Steps, class Empty>
  NT_HD Look look(const BoxBlocks& blocks, const Steps& steps, const typename Steps::OfRay& on, Empty empty) const {
    const float x = steps.middle(on, next);
    int at[3];
    for (int a = 0; a < 3; ++a) at[a] = cell_bits(a, x);
    const uint32_t block = blocks.place(at) - blocks.first;
    int within = empty(block);  // one less than the side of the cube
    uint32_t occupied = 0;
    if (within == 0) {
      const uint32_t half = half_of_block(bits.cells, block, uint32_t(at[0]) >> 1 & 1);
      // Of the cell its place there; of the aligned cube of 2^3 cells around it the bits.
      const int place = (at[0] & 1) << 4 | (at[1] & 3) << 2 | (at[2] & 3);
      constexpr uint32_t kFull = 0x330033;
      const uint32_t cube = half >> (place & 10) & kFull;
      within = cube == 0 || cube == kFull ? 1 : 0;
      occupied = half >> place & 1;
    }
    float exit[3];
    for (int a = 0; a < 3; ++a) exit[a] = number_of((at[a] & ~within) | (ahead[a] & within)) * per_cell[a] + exits[a];
    const int until = steps.until(on, fminf(fminf(exit[0], exit[1]), exit[2]));
    return {occupied, min_of(max_of(until, next + 1), last)};
  }
};

}  // namespace nerftrain
