// Marching rays in one pass: the samples of common/march.h, bit for bit.
//
// Compiled once per instruction set and chosen at run time. In a single box with equal steps, which is how nearly all
// rays are marched, a vector of rays is first led past what is empty, which leaves the stretches of steps of each ray
// that lie in blocks with occupied cells; then each ray's stretches are looked up a vector of steps at a time. Leaving
// a cube is a long chain of operations of which each waits for the one before: one ray at a time, most of the march
// would be spent in it. No product and sum may be contracted into one here (see library.py), so that all instruction
// sets have the same samples. Everything here has internal linkage and what it includes is always inlined, so that no
// function compiled for one instruction set can be linked in place of another's.
#pragma once
#include "march.h"

#if NT_LANES > 4
#include <immintrin.h>
#endif

namespace {

using nerftrain::kStretches;
using nerftrain::Marched;
using nerftrain::MarchRays;
using nerftrain::MarchSettings;
using nerftrain::OneBox;
using nerftrain::RayMarch;

constexpr int kLanes = NT_LANES;  // set by the including file
typedef float Floats __attribute__((vector_size(4 * NT_LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * NT_LANES)));  // -1 where true

inline Ints numbered() {
  Ints lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane;
  return lanes;
}

// Which lanes are true, a bit each.
inline uint32_t bits_of(Ints lanes) {
#if NT_LANES == 16
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(lanes));
#elif NT_LANES == 8
  return uint32_t(_mm256_movemask_ps(reinterpret_cast<__m256>(lanes)));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= uint32_t(lanes[lane] & 1) << lane;
  return bits;
#endif
}

#if NT_LANES == 8
// Of each eight bits the numbers of those that are set, one after the other.
struct SetLanes {
  uint8_t of[256][8] = {};
  constexpr SetLanes() {
    for (int bits = 0; bits < 256; ++bits)
      for (int lane = 0, num = 0; lane < 8; ++lane)
        if (bits >> lane & 1) of[bits][num++] = uint8_t(lane);
  }
};
constexpr SetLanes kSetLanes;
#endif

// Stores the lanes whose bit is set side by side; what lies behind them, up to a whole vector, may be overwritten.
inline void store_kept(uint32_t bits, Floats values, float* out) {
#if NT_LANES == 16
  const __m512 kept = _mm512_maskz_compress_ps(__mmask16(bits), reinterpret_cast<__m512>(values));
  _mm512_mask_storeu_ps(out, __mmask16((1u << __builtin_popcount(bits)) - 1), kept);
#elif NT_LANES == 8
  const __m128i lanes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kSetLanes.of[bits]));
  _mm256_storeu_ps(out, _mm256_permutevar8x32_ps(reinterpret_cast<__m256>(values), _mm256_cvtepu8_epi32(lanes)));
#else
  for (; bits != 0; bits &= bits - 1) *out++ = values[__builtin_ctz(bits)];
#endif
}

// Half a word of 64 bits for each lane.
inline Ints half_words(const uint64_t* words, Ints half) {
#if NT_LANES == 16
  return reinterpret_cast<Ints>(_mm512_mask_i32gather_epi32(_mm512_setzero_si512(), __mmask16(0xffff),
                                                            reinterpret_cast<__m512i>(half), words, 4));
#elif NT_LANES == 8
  return reinterpret_cast<Ints>(
      _mm256_i32gather_epi32(reinterpret_cast<const int*>(words), reinterpret_cast<__m256i>(half), 4));
#else
  Ints bits;
  for (int lane = 0; lane < kLanes; ++lane) bits[lane] = int32_t(words[half[lane] >> 1] >> ((half[lane] & 1) * 32));
  return bits;
#endif
}

// BitPlace for lanes: units lie in 4^3-bit words, of which a side has so many.
struct BitPlaces {
  Ints word, bit;

  BitPlaces(const Ints* unit, int words)
      : word(((unit[0] >> 2) * words + (unit[1] >> 2)) * words + (unit[2] >> 2)),
        bit(((unit[0] & 3) << 4) | ((unit[1] & 3) << 2) | (unit[2] & 3)) {}
};

// The cell that a coordinate lies in along an axis; clears lanes outside the box.
inline Ints cell_at(const OneBox& box, int a, Floats p, Ints& inside) {
  const Floats u = (p - box.center[a]) * box.inverse[a];
  inside &= (u >= -1.f) & (u < 1.f);
  const Ints place = __builtin_convertvector((u * 0.5f + 0.5f) * box.unit[a], Ints);
  return place < box.resolution[a] - 1 ? place : box.resolution[a] - 1;
}

inline Ints ceil_clamped(Floats x, Ints low, int high) {
  const Floats lowest = __builtin_convertvector(low, Floats);
  x = x < float(high) ? x : float(high);
  x = x > lowest ? x : lowest;
  const Ints below = __builtin_convertvector(x, Ints);
  return below - (__builtin_convertvector(below, Floats) < x);
}

// A ray in each lane.
struct Bundle {
  Floats o[3], d[3], inverse[3], near, far, first, last, jitter;
  Floats enter, quit;  // what is occupied lies between; a ray that meets none of it enters at its last and has quit
  Ints alive, step;    // the step at which a ray's march is
  Ints groups;         // the first of its slice of time
  RayMarch* rays;      // [kLanes], where the stretches of its steps that may have samples are noted

  Bundle(const MarchRays& all, const OneBox& box, int64_t r, int num, RayMarch* rays) : rays(rays) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t i = r + (lane < num ? lane : 0);
      RayMarch& ray = rays[lane];
      for (int a = 0; a < 3; ++a) {
        o[a][lane] = ray.origin[a] = all.origins[3 * i + a];
        d[a][lane] = ray.direction[a] = all.directions[3 * i + a];
      }
      near[lane] = ray.near = all.near[i];
      far[lane] = ray.far = all.far[i];
      jitter[lane] = ray.jitter = all.jitter[i];
      ray.slice = all.slices ? all.slices[i] : 0;
      groups[lane] = ray.slice * box.groups_of_slice;
      ray.num_stretches = ray.stretch = 0;
      ray.pending = 0;
    }
    alive = (numbered() < num) & (near < far);
    step = Ints{};
    first = near;
    last = far;
  }

  // Line::clip.
  void clip(const OneBox& box) {
    for (int a = 0; a < 3; ++a) {
      const float low = box.center[a] - box.half[a], high = box.center[a] + box.half[a];
      const Ints still = d[a] == 0.f, within = (o[a] >= low) & (o[a] < high);
      const Floats ta = (low - o[a]) / d[a], tb = (high - o[a]) / d[a];
      const Floats enter = ta < tb ? ta : tb, leave = ta > tb ? ta : tb;
      alive &= still ? within : (ta <= tb) | (tb <= ta);
      inverse[a] = still ? Floats{} : 1.f / d[a];
      first = (~still & (enter >= first)) ? enter : first;
      last = (~still & (leave <= last)) ? leave : last;
    }
    alive &= first < last;
  }

  // Finds where rays pass what is occupied, from `first` to `last` at most.
  void clip_occupied(const OneBox& box) {
    enter = first;
    quit = last;
    Ints meets = alive;
    for (int a = 0; a < 3; ++a) {
      const Ints still = inverse[a] == 0.f, within = (o[a] >= box.low[a]) & (o[a] < box.high[a]);
      const Floats ta = (box.low[a] - o[a]) * inverse[a], tb = (box.high[a] - o[a]) * inverse[a];
      const Floats nearer = ta < tb ? ta : tb, farther = ta > tb ? ta : tb;
      enter = (~still & (nearer > enter)) ? nearer : enter;
      quit = (~still & (farther < quit)) ? farther : quit;
      meets &= ~still | within;
    }
    meets &= enter < quit;
    enter = meets ? enter : last;
    quit = meets ? quit : first;
  }

  // Line::leave: the distance at which rays leave the aligned cubes around their cells.
  Floats leave(const OneBox& box, const Ints* cell, Ints cube) const {
    Floats exit = Floats{} + 3.4e38f;
    for (int a = 0; a < 3; ++a) {
      const Ints low = cell[a] & -cube, high = low + cube;
      const Ints face = inverse[a] > 0.f ? (high < box.resolution[a] ? high : box.resolution[a]) : low;
      const Floats share = __builtin_convertvector(face, Floats) * box.share[a] - 1.f;
      const Floats at = (box.center[a] + share * box.half[a] - o[a]) * inverse[a];
      exit = ((inverse[a] != 0.f) & (at < exit)) ? at : exit;
    }
    return exit;
  }
};

inline void keep_stretch(RayMarch& ray, int from, int to) {
  int& num = ray.num_stretches;
  if (num > kStretches) return;
  if (num > 0 && ray.stretches[num - 1].to == from)
    ray.stretches[num - 1].to = to;
  else if (num++ < kStretches)
    ray.stretches[num - 1] = {from, to};
}

// march_steps of a bundle, past all blocks: those that have occupied cells are noted. What lies before and behind all
// of these is passed in one step.
inline void pass_blocks(const OneBox& box, const MarchSettings& m, Bundle& rays) {
  const float inverse_step = 1.f / m.step;
  const auto first_after = [&](Floats t, Ints low) {
    return ceil_clamped((t - rays.near) * inverse_step - rays.jitter - 0.55f, low, m.max_steps);
  };
  rays.step = first_after(rays.enter, Ints{});
  Ints going = rays.alive & (rays.step < m.max_steps);
  while (bits_of(going) != 0) {
    const Ints k = rays.step;
    const Floats start = rays.near + (__builtin_convertvector(k, Floats) + rays.jitter) * m.step;
    const Floats end = rays.near + (__builtin_convertvector(k + 1, Floats) + rays.jitter) * m.step;
    const Floats mid = 0.5f * (start + end);
    Ints inside = going, unit[3], cell[3];
    for (int a = 0; a < 3; ++a) cell[a] = cell_at(box, a, rays.o[a] + mid * rays.d[a], inside);
    for (int a = 0; a < 3; ++a) unit[a] = (cell[a] & inside) >> 2;
    going &= (mid < rays.far) & (inside | ~(mid > rays.last));
    const BitPlaces place(unit, box.groups);
    const Ints word = rays.groups + place.word;
    const Ints lower = half_words(box.bits.blocks, word * 2), upper = half_words(box.bits.blocks, word * 2 + 1);
    const Ints half = place.bit > 31 ? upper : lower;
    const Ints cube = (lower | upper) == 0 ? Ints{} + 16 : Ints{} + 4;
    const Floats exit = mid > rays.quit ? rays.last : rays.leave(box, cell, cube);
    const Ints next = inside ? first_after(exit < rays.last ? exit : rays.last, k + 1) : k + 1;
    for (uint32_t kept = bits_of(going & inside & -(half >> (place.bit & 31) & 1)); kept != 0; kept &= kept - 1) {
      const int lane = __builtin_ctz(kept);
      keep_stretch(rays.rays[lane], k[lane], next[lane]);
    }
    rays.step = going ? next : k;
    going &= rays.step < m.max_steps;
  }
}

// Where steps from k on begin and end.
inline void step_ends(const MarchSettings& m, const RayMarch& ray, int k, Floats& start, Floats& end) {
  const Ints steps = numbered() + k;
  start = ray.near + (__builtin_convertvector(steps, Floats) + ray.jitter) * m.step;
  end = ray.near + (__builtin_convertvector(steps + 1, Floats) + ray.jitter) * m.step;
}

// Which of the steps from k on have their middle in an occupied cell, a bit each.
inline uint32_t occupied_steps(const OneBox& box, const MarchSettings& m, const RayMarch& ray, int k) {
  Floats start, end;
  step_ends(m, ray, k, start, end);
  const Floats mid = 0.5f * (start + end);
  Ints inside = mid < ray.far, cell[3];
  for (int a = 0; a < 3; ++a) cell[a] = cell_at(box, a, ray.origin[a] + mid * ray.direction[a], inside);
  for (int a = 0; a < 3; ++a) cell[a] &= inside;
  const BitPlaces place(cell, box.words);
  const Ints word = place.word + ray.slice * box.words_of_slice;
  const Ints half = half_words(box.bits.cells, word * 2 + (place.bit >> 5));
  return bits_of(inside & -(half >> (place.bit & 31) & 1));
}

int next_samples(const MarchSettings& m, const OneBox& box, RayMarch& ray, int most, float* t_starts, float* t_ends) {
  int count = 0;
  while (count < most) {
    if (ray.pending == 0) {
      if (ray.stretch == ray.num_stretches) break;
      auto& [from, to] = ray.stretches[ray.stretch];
      ray.looked_at = from;
      ray.pending = occupied_steps(box, m, ray, from);
      if (to - from < kLanes) ray.pending &= (1u << (to - from)) - 1;
      from += kLanes;
      if (from >= to) ++ray.stretch;
      continue;
    }
    uint32_t taken = ray.pending;
    while (__builtin_popcount(taken) > most - count) taken ^= 1u << (31 - __builtin_clz(taken));
    Floats start, end;
    step_ends(m, ray, ray.looked_at, start, end);
    store_kept(taken, start, t_starts + count);
    store_kept(taken, end, t_ends + count);
    count += __builtin_popcount(taken);
    ray.pending &= ~taken;
  }
  return count;
}

// Prepares at most kLanes rays; returns a bit for each that is alive.
inline uint32_t begin_bundle(const MarchRays& all, const OneBox& box, int64_t r, int num, RayMarch* rays) {
  Bundle bundle(all, box, r, num, rays);
  bundle.clip(box);
  bundle.clip_occupied(box);
  pass_blocks(box, all.settings, bundle);
  for (int lane = 0; lane < kLanes; ++lane) rays[lane].end_step = bundle.step[lane];
  return bits_of(bundle.alive);
}

void begin_rays(const MarchRays& all, const OneBox& box, int64_t r, int num, RayMarch* rays) {
  for (int first = 0; first < num; first += kLanes)
    begin_bundle(all, box, r + first, num - first < kLanes ? num - first : kLanes, rays + first);
}

// The most that a ray may have, as far as its stretches tell.
int64_t most_samples(const MarchSettings& settings, const RayMarch& ray) {
  int64_t num = 0;
  for (int i = 0; i < ray.num_stretches; ++i) num += ray.stretches[i].to - ray.stretches[i].from;
  return num < settings.max_samples ? num : settings.max_samples;
}

int64_t march(const MarchRays& all, const OneBox* box, int64_t begin, int64_t end, int64_t room, float* t_starts,
              float* t_ends, int64_t* counts, float* ends) {
  const MarchSettings m = all.settings;
  RayMarch rays[kLanes];
  int64_t used = 0;
  for (int64_t r = begin; r < end; r += kLanes) {
    const int num = int(end - r < kLanes ? end - r : kLanes);
    const uint32_t alive = box ? begin_bundle(all, *box, r, num, rays) : 0;
    for (int lane = 0; lane < num; ++lane) {
      const int64_t left = room - used;
      float *starts = t_starts + used, *stops = t_ends + used;
      const auto emit = [=](int i, float start, float stop) {
        if (i >= left) return;
        starts[i] = start;
        stops[i] = stop;
      };
      Marched marched = {0, all.near[r + lane]};
      RayMarch& ray = rays[lane];
      const bool alone = !box || ray.num_stretches > kStretches, prepared = !alone && (alive >> lane & 1);
      if (alone) marched = all.march(r + lane, m.max_samples, emit);
      const int64_t needed = prepared ? most_samples(m, ray) : marched.count;
      if (needed > left) {
        counts[r + lane - begin] = needed;
        return r + lane;
      }
      if (prepared) {
        marched.count = next_samples(m, *box, ray, m.max_samples, starts, stops);
        // A ray that may have no more ends behind its last sample.
        marched.end = marched.count == m.max_samples ? stops[marched.count - 1]
                                                     : ray.near + (float(ray.end_step) + ray.jitter) * m.step;
      }
      counts[r + lane - begin] = marched.count;
      ends[r + lane - begin] = marched.end;
      used += marched.count;
    }
  }
  return end;
}

}  // namespace
