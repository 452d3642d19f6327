// Rays' samples by tiles: each lane of a warp has four neighbouring ones, which it reads and writes at once. What goes
// along a ray is scanned within lanes and then over them, and stops where the ray does.
#pragma once
#include <cstdint>
#include <initializer_list>

#include "ray_warps.h"

namespace nerftrain {

constexpr int kOfLane = 4;  // samples
constexpr int kTileSamples = kWarp * kOfLane;
constexpr int kTileWarps = 4;  // of a block
constexpr int kTileThreads = kTileWarps * kWarp;
constexpr int kTileBlocks = 4;  // of a processor at least, so that a thread may have 128 registers

template <class T>
struct alignas(sizeof(T) * kOfLane) Four {
  T of[kOfLane];
};

// Whether fours of what is there can be read and written at once.
inline bool in_fours(std::initializer_list<const void*> all) {
  for (const void* each : all)
    if (reinterpret_cast<uintptr_t>(each) % alignof(Four<float>)) return false;
  return true;
}

// By one instruction: a compiler that sees what else is done in its place makes four of it.
__device__ __forceinline__ void write_four(float* to, const float* values) {
  __stcg(reinterpret_cast<float4*>(to), float4{values[0], values[1], values[2], values[3]});
}

struct Sum {
  static constexpr float kNone = 0;
  __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
};
struct Product {
  static constexpr float kNone = 1;
  __device__ __forceinline__ float operator()(float a, float b) const { return a * b; }
};

// Lanes that lie across the begin or the end of the warp's samples have others' beside them: these are read, and what
// is made of them is not written. Behind the end there is nothing.
struct Tile {
  int64_t i;             // this lane's first sample
  int64_t begin, end;    // of the warp's samples
  Four<int> ended;       // which of the warp's rays ends with each; less than 0: none
  int own_from, own_to;  // of this lane's samples those that are the warp's
  bool fours;            // whether all four can be read

  // `owners` are kTileSamples words of shared memory.
  __device__ __forceinline__ Tile(const RaysOfWarp& rays, int64_t base, int* owners)
      : i(base + lane_of_warp() * kOfLane), begin(rays.begin), end(rays.end) {
    auto* own = reinterpret_cast<Four<int>*>(owners) + lane_of_warp();
    *own = {-1, -1, -1, -1};
    __syncwarp();
    const int64_t place = rays.last - 1 - base;
    if (rays.first < rays.last && place >= 0 && place < kTileSamples) owners[place] = lane_of_warp();
    own_from = int(max_of(rays.begin - i, int64_t(0)));
    own_to = int(min_of(rays.end - i, int64_t(kOfLane)));
    fours = own_to > 0 && i + kOfLane <= rays.num_samples;
    __syncwarp();
    ended = *own;
  }

  // Tiles begin at fours of samples, at or in front of a warp's first.
  __device__ static int64_t first_base(const RaysOfWarp& rays) { return rays.begin / kOfLane * kOfLane; }
  __device__ static int64_t last_base(const RaysOfWarp& rays) {
    const int64_t base = first_base(rays);
    return base + (rays.end - 1 - base) / kTileSamples * kTileSamples;
  }

  __device__ __forceinline__ int64_t base() const { return i - lane_of_warp() * kOfLane; }

  // Calls each(read), which may call read(from, values) for rows of as many numbers as there is room for.
  template <class Each>
  __device__ __forceinline__ void read(Each each) const {
    if (fours)
      each([this](const float* from, auto& values) {
        constexpr int kRow = sizeof(values) / sizeof(Four<float>);
        const auto* rows = reinterpret_cast<const Four<float>*>(from + i * kRow);
#pragma unroll
        for (int k = 0; k < kRow; ++k) {
          const Four<float> some = rows[k];
#pragma unroll
          for (int j = 0; j < kOfLane; ++j) values[k * kOfLane + j] = some.of[j];
        }
      });
    else
      each([this](const float* from, auto& values) {
        constexpr int kRow = sizeof(values) / sizeof(Four<float>);
#pragma unroll
        for (int j = 0; j < kOfLane * kRow; ++j) values[j] = j / kRow < own_to ? from[i * kRow + j] : 0;
      });
  }

  // Calls each(write), which may call write(to, values).
  template <class Each>
  __device__ __forceinline__ void write(Each each) const {
    if (own_from == 0 && own_to == kOfLane)
      each([this](float* to, const float (&values)[kOfLane]) { write_four(to + i, values); });
    else
      each([this](float* to, const float (&values)[kOfLane]) {
#pragma unroll
        for (int j = 0; j < kOfLane; ++j)
          if (j >= own_from && j < own_to) to[i + j] = values[j];
      });
  }

  // Rows of kRow numbers, by way of kTileSamples rows of shared memory, so that neighbouring lanes write neighbouring
  // ones.
  template <int kRow>
  __device__ __forceinline__ void write_rows(float* to, const float (&values)[kOfLane * kRow], float* shared) const {
    const int lane = lane_of_warp();
#pragma unroll
    for (int k = 0; k < kRow; ++k)
      reinterpret_cast<Four<float>*>(shared)[lane * kRow + k] = {values[k * kOfLane], values[k * kOfLane + 1],
                                                                 values[k * kOfLane + 2], values[k * kOfLane + 3]};
    __syncwarp();
    const int from = int(max_of(begin - base(), int64_t(0))) * kRow;
    const int end_of_own = int(min_of(end - base(), int64_t(kTileSamples))) * kRow;
#pragma unroll
    for (int k = 0; k < kRow; ++k) {
      const int place = (k * kWarp + lane) * kOfLane;
      const Four<float> some = reinterpret_cast<Four<float>*>(shared)[k * kWarp + lane];
      if (place >= from && place + kOfLane <= end_of_own) {
        write_four(to + base() * kRow + place, some.of);
      } else {
#pragma unroll
        for (int j = 0; j < kOfLane; ++j)
          if (place + j >= from && place + j < end_of_own) to[base() * kRow + place + j] = some.of[j];
      }
    }
    __syncwarp();
  }

  __device__ __forceinline__ bool is_own(int j) const { return j >= own_from && j < own_to; }
};

// From the front of rays to their ends, tile after tile.
class Forward {
 public:
  // Goes on to a tile.
  __device__ __forceinline__ void at(const Tile& tile) {
    const int lane = lane_of_warp();
    const bool before = __shfl_sync(kAll, tile.ended.of[kOfLane - 1], lane - 1) >= 0;
    begins_[0] = lane == 0 ? ended_ : before;
    ended_ = before;  // on the first lane: whether a ray ends with the tile
#pragma unroll
    for (int j = 1; j < kOfLane; ++j) begins_[j] = tile.ended.of[j - 1] >= 0 || j == tile.own_from;
    const bool any = begins_[0] || begins_[1] || begins_[2] || begins_[3];
    const unsigned of_lanes = __ballot_sync(kAll, any) & (kAll >> (kWarp - 1 - lane));
    from_ = kWarp - 1 - __clz(int(of_lanes | 1));
  }

  // What all samples in front of each on its ray come to; so_far: those in front of the tile.
  template <class Of>
  __device__ __forceinline__ void in_front(Of of, const float (&values)[kOfLane], float& so_far,
                                           float (&front)[kOfLane]) const {
    const int lane = lane_of_warp();
    float own = lane == 0 ? so_far : Of::kNone;
#pragma unroll
    for (int j = 0; j < kOfLane; ++j) own = of(begins_[j] ? Of::kNone : own, values[j]);
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const float other = __shfl_up_sync(kAll, own, step);
      if (lane - step >= from_) own = of(other, own);
    }
    const float of_lanes = __shfl_up_sync(kAll, own, 1);
    float now = lane == 0 ? so_far : of_lanes;
#pragma unroll
    for (int j = 0; j < kOfLane; ++j) {
      front[j] = begins_[j] ? Of::kNone : now;
      now = of(front[j], values[j]);
    }
    so_far = __shfl_sync(kAll, own, kWarp - 1);
  }

 private:
  bool begins_[kOfLane];  // a ray, with each sample
  bool ended_ = true;
  int from_ = 0;  // the lane from which on no ray has begun
};

// From the ends of rays to their fronts, tile before tile.
class Backward {
 public:
  int ray[kOfLane];  // of each sample, among the warp's; any of them where a sample is not the warp's

  // Goes on to a tile.
  __device__ __forceinline__ void at(const Tile& tile) {
    const int lane = lane_of_warp();
    int first = -1;
#pragma unroll
    for (int j = kOfLane - 1; j >= 0; --j) {
      ends_[j] = tile.ended.of[j] >= 0;
      first = ends_[j] ? tile.ended.of[j] : first;
    }
    const unsigned of_lanes = __ballot_sync(kAll, first >= 0);
    to_ = lane + __ffs(int((of_lanes | 1u << (kWarp - 1)) >> lane)) - 1;
    const unsigned behind = of_lanes & ~(kAll >> (kWarp - 1 - lane));
    const int next = __shfl_sync(kAll, first, __ffs(int(behind)) - 1);
    int now = behind ? next : ray_;
#pragma unroll
    for (int j = kOfLane - 1; j >= 0; --j) ray[j] = now = ends_[j] ? tile.ended.of[j] : now;
    ray_ = __shfl_sync(kAll, now, 0);
  }

  // What all samples behind each on its ray come to; so_far: those behind the tile.
  template <class Of>
  __device__ __forceinline__ void behind(Of of, const float (&values)[kOfLane], float& so_far,
                                         float (&behind)[kOfLane]) const {
    const int lane = lane_of_warp();
    float own = lane == kWarp - 1 ? so_far : Of::kNone;
#pragma unroll
    for (int j = kOfLane - 1; j >= 0; --j) own = of(ends_[j] ? Of::kNone : own, values[j]);
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const float other = __shfl_down_sync(kAll, own, step);
      if (lane + step <= to_) own = of(other, own);
    }
    const float of_lanes = __shfl_down_sync(kAll, own, 1);
    float now = lane == kWarp - 1 ? so_far : of_lanes;
#pragma unroll
    for (int j = kOfLane - 1; j >= 0; --j) {
      behind[j] = ends_[j] ? Of::kNone : now;
      now = of(behind[j], values[j]);
    }
    so_far = __shfl_sync(kAll, own, 0);
  }

 private:
  bool ends_[kOfLane];  // a ray, with each sample
  int to_ = 0;          // the lane up to which no ray has ended
  int ray_ = 0;         // of the first sample behind the tile
};

}  // namespace nerftrain
