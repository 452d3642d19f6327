// Compositing by tiles of samples (tiles.h). Float64, and what cannot be read in fours, goes ray by ray.
#include "../operators/composite.h"
#include "backend.h"
#include "rest.h"
#include "tiles.h"
#include "warp.h"

namespace nerftrain {

constexpr int kColors = 3;  // channels that go along with all else

// Rounded before it is added to anything, however many channels there are.
__device__ __forceinline__ float share_of(float w, float channel) { return __fmul_rn(w, channel); }

// What a ray comes to, in shared memory.
template <int K>
struct alignas(K ? 8 : 4) SumsOfRay {
  float channels[K ? K : 1], w, wm, distortion;
};

template <int K>
struct ForwardRoom {
  alignas(Four<int>) int owners[kTileSamples];
  SumsOfRay<K> rays[kWarp];
};

// As many channels as there are. What a ray that goes on behind the tile has so far stands where its sums will.
__device__ __forceinline__ void any_channels(const RaysOfWarp& rays, const Tile& tile, const Forward& forward,
                                             const float (&w)[kOfLane], const CompositeForward<float>& body) {
  const int64_t num_channels = body.in.num_channels, first_ray = __shfl_sync(kAll, rays.ray, 0);
  const int64_t begin = tile.base(), end = begin + kTileSamples;
  const unsigned came = __ballot_sync(kAll, rays.first < begin && rays.last > begin);
  const unsigned goes = __ballot_sync(kAll, rays.first < end && rays.last > end);
  const auto of_ray = [&](int ray) { return body.channels + (first_ray + ray) * num_channels; };
  for (int64_t k = 0; k < num_channels; ++k) {
    float so_far = came ? of_ray(__ffs(int(came)) - 1)[k] : 0, shares[kOfLane], front[kOfLane];
#pragma unroll
    for (int j = 0; j < kOfLane; ++j)
      shares[j] = tile.is_own(j) ? share_of(w[j], body.in.channels[(tile.i + j) * num_channels + k]) : 0;
    forward.in_front(Sum(), shares, so_far, front);
    __syncwarp();  // all have read what is written now
#pragma unroll
    for (int j = 0; j < kOfLane; ++j)
      if (tile.ended.of[j] >= 0) of_ray(tile.ended.of[j])[k] = front[j] + shares[j];
    if (goes && lane_of_warp() == 0) of_ray(__ffs(int(goes)) - 1)[k] = so_far;
  }
  __syncwarp();
}

// K channels; 0: any number.
template <int K>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks)
    composite_forward_kernel(int64_t num_rays, int rays_of_warp, CompositeForward<float> body, ClearRest rest) {
  rest.clear_by_grid();
  if (num_rays == 0) return;
  const PackedRays<float>& in = body.in;
  const RaysOfWarp rays(num_rays, rays_of_warp, in.offsets);
  auto& room = reinterpret_cast<ForwardRoom<K>*>(dynamic_shared)[threadIdx.x / kWarp];
  Forward forward;
  float light_so_far = 1, w_so_far = 0, wm_so_far = 0, distortion_so_far = 0, channels_so_far[K ? K : 1] = {};
  for (int64_t base = Tile::first_base(rays); base < rays.end; base += kTileSamples) {
    const Tile tile(rays, base, room.owners);
    float starts[kOfLane], ends[kOfLane], kept[kOfLane], colors[kOfLane * (K ? K : 1)];
    tile.read([&](auto read) {
      read(in.t_starts, starts);
      read(in.t_ends, ends);
      read(in.density, kept);
      if (K) read(in.channels, colors);
    });
    forward.at(tile);
    float light[kOfLane], alphas[kOfLane], w[kOfLane], wm[kOfLane], w_front[kOfLane], wm_front[kOfLane];
    float mids[kOfLane], spread[kOfLane], front[kOfLane];
    SumsOfRay<K> sums[kOfLane];
#pragma unroll
    for (int j = 0; j < kOfLane; ++j) kept[j] = exp_of(-kept[j] * (ends[j] - starts[j]));
    forward.in_front(Product(), kept, light_so_far, light);
#pragma unroll
    for (int j = 0; j < kOfLane; ++j) {
      mids[j] = (starts[j] + ends[j]) * 0.5f;
      alphas[j] = 1 - kept[j];
      w[j] = light[j] * alphas[j];
      wm[j] = w[j] * mids[j];
    }
    tile.write([&](auto write) {
      write(body.alphas, alphas);
      write(body.arriving, light);
      write(body.weights, w);
    });
    forward.in_front(Sum(), w, w_so_far, w_front);
    forward.in_front(Sum(), wm, wm_so_far, wm_front);
#pragma unroll
    for (int j = 0; j < kOfLane; ++j) {
      spread[j] = 2 * w[j] * (mids[j] * w_front[j] - wm_front[j]) + w[j] * w[j] * (ends[j] - starts[j]) * (1.f / 3);
      sums[j].w = w_front[j] + w[j];
      sums[j].wm = wm_front[j] + wm[j];
    }
    forward.in_front(Sum(), spread, distortion_so_far, front);
#pragma unroll
    for (int j = 0; j < kOfLane; ++j) sums[j].distortion = front[j] + spread[j];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      float shares[kOfLane];
#pragma unroll
      for (int j = 0; j < kOfLane; ++j) shares[j] = share_of(w[j], colors[j * K + k]);
      forward.in_front(Sum(), shares, channels_so_far[k], front);
#pragma unroll
      for (int j = 0; j < kOfLane; ++j) sums[j].channels[k] = front[j] + shares[j];
    }
#pragma unroll
    for (int j = 0; j < kOfLane; ++j)
      if (tile.ended.of[j] >= 0) room.rays[tile.ended.of[j]] = sums[j];
    if (K == 0) any_channels(rays, tile, forward, w, body);
  }
  __syncwarp();
  if (!rays.there) return;
  const bool any = rays.first < rays.last;
  const SumsOfRay<K> sums = room.rays[lane_of_warp()];
#pragma unroll
  for (int k = 0; k < K; ++k) body.channels[rays.ray * K + k] = any ? sums.channels[k] : 0;
  for (int64_t k = 0; K == 0 && !any && k < in.num_channels; ++k) body.channels[rays.ray * in.num_channels + k] = 0;
  body.opacity[rays.ray] = any ? sums.w : 0;
  body.depth[rays.ray] = any ? sums.wm : 0;
  body.distortion[rays.ray] = any ? sums.distortion : 0;
}

struct BackwardRoom {
  alignas(Four<int>) int owners[kTileSamples];  // then the ray of each sample
  Four<float> of_rays[kWarp];                   // gradients of their channels and their opacity
  Four<float> more[kWarp];                      // those of depth and distortion; opacity and depth themselves
  float colors[kTileSamples * kColors];
};

// From the back; the letters are those of CompositeBackward.
template <int K, bool kMore>
__global__ void __launch_bounds__(kTileThreads, kMore ? kTileBlocks - 1 : kTileBlocks)
    composite_backward_kernel(int64_t num_rays, int rays_of_warp, CompositeBackward<float> body, ClearRest rest) {
  rest.clear_by_grid();
  if (num_rays == 0) return;
  const PackedRays<float>& in = body.in;
  const RaysOfWarp rays(num_rays, rays_of_warp, in.offsets);
  auto& room = reinterpret_cast<BackwardRoom*>(dynamic_shared)[threadIdx.x / kWarp];
  const int lane = lane_of_warp();
  const int64_t num_channels = K ? K : in.num_channels, first_ray = __shfl_sync(kAll, rays.ray, 0);
  // A lane without a ray reads the first one's; its samples are none.
  const int64_t r = rays.there ? rays.ray : 0;
  Four<float>& of_ray = room.of_rays[lane];
  for (int k = 0; k < K; ++k) of_ray.of[k] = body.at(body.v_channels, r * K + k);
  of_ray.of[kColors] = body.at(body.v_opacity, r);
  if (kMore)
    room.more[lane] = {body.at(body.v_depth, r), body.at(body.v_distortion, r), body.opacity[r], body.depth[r]};
  Backward backward;
  float so_far = 0, w_so_far = 0, wm_so_far = 0;
  for (int64_t base = Tile::last_base(rays); base >= Tile::first_base(rays) && rays.begin < rays.end;
       base -= kTileSamples) {
    const Tile tile(rays, base, room.owners);
    float starts[kOfLane], dt[kOfLane], kept[kOfLane], w[kOfLane], light[kOfLane], colors[kOfLane * (K ? K : 1)];
    float v_weights[kOfLane] = {}, v_alphas[kOfLane] = {}, v_arriving[kOfLane] = {};
    tile.read([&](auto read) {
      read(in.t_starts, starts);
      read(in.t_ends, dt);
      read(in.density, kept);
      read(body.weights, w);
      read(body.arriving, light);
      if (K) read(in.channels, colors);
      if (kMore && body.v_weights) read(body.v_weights, v_weights);
      if (kMore && body.v_alphas) read(body.v_alphas, v_alphas);
      if (kMore && body.v_arriving) read(body.v_arriving, v_arriving);
    });
    backward.at(tile);
    float q[kOfLane], own[kOfLane], v_density[kOfLane], behind[kOfLane], mids[kOfLane];
#pragma unroll
    for (int j = 0; j < kOfLane; ++j) {
      mids[j] = (starts[j] + dt[j]) * 0.5f;
      dt[j] -= starts[j];
      kept[j] = exp_of(-kept[j] * dt[j]);
      const Four<float> v = room.of_rays[backward.ray[j]];
      q[j] = v.of[kColors];
#pragma unroll
      for (int k = 0; k < K; ++k) {
        q[j] += v.of[k] * colors[j * K + k];
        colors[j * K + k] = w[j] * v.of[k];
      }
    }
    if constexpr (kMore) {
      float wm[kOfLane], w_behind[kOfLane], wm_behind[kOfLane];
#pragma unroll
      for (int j = 0; j < kOfLane; ++j) wm[j] = w[j] * mids[j];
      backward.behind(Sum(), w, w_so_far, w_behind);
      backward.behind(Sum(), wm, wm_so_far, wm_behind);
#pragma unroll
      for (int j = 0; j < kOfLane; ++j) {
        const auto [v_depth, v_distortion, total_w, total_wm] = room.more[backward.ray[j]].of;
        const float spread = mids[j] * (total_w - 2 * w_behind[j] - w[j]) - (total_wm - 2 * wm_behind[j] - wm[j]);
        q[j] += v_weights[j] + v_depth * mids[j] + v_distortion * (2 * spread + 2.f / 3 * w[j] * dt[j]);
      }
    }
    if constexpr (K == 0) {
      const float* v_channels = body.v_channels ? body.v_channels + first_ray * num_channels : nullptr;
      for (int64_t k = 0; v_channels && k < num_channels; ++k)
#pragma unroll
        for (int j = 0; j < kOfLane; ++j)
          if (tile.is_own(j))
            q[j] += v_channels[backward.ray[j] * num_channels + k] * in.channels[(tile.i + j) * num_channels + k];
#pragma unroll
      for (int j = 0; j < kOfLane; ++j) room.owners[lane * kOfLane + j] = backward.ray[j];
      __syncwarp();
      const int64_t begin = max_of(base, rays.begin), num = min_of(base + kTileSamples, rays.end) - begin;
      for (int64_t k = lane; k < num * num_channels; k += kWarp) {
        const int64_t i = begin + k / num_channels, ray = first_ray + room.owners[i - base];
        const float v = body.at(body.v_channels, ray * num_channels + k % num_channels);
        body.v_sample_channels[begin * num_channels + k] = body.weights[i] * v;
      }
      __syncwarp();
    }
#pragma unroll
    for (int j = 0; j < kOfLane; ++j) own[j] = w[j] * q[j] + (kMore ? light[j] * v_arriving[j] : 0);
    backward.behind(Sum(), own, so_far, behind);
#pragma unroll
    for (int j = 0; j < kOfLane; ++j) {
      const float inner = light[j] * kept[j] * q[j] - behind[j];
      v_density[j] = dt[j] * (kMore ? inner + kept[j] * v_alphas[j] : inner);
    }
    tile.write([&](auto write) { write(body.v_density, v_density); });
    if constexpr (K > 0) tile.write_rows<K>(body.v_sample_channels, colors, room.colors);
  }
}

struct CudaComposite : Cuda {
  template <int K>
  static void forward(const Tensor& like, int64_t n, const CompositeForward<float>& body, const ClearRest& rest) {
    for_each_ray_warp(like, n, kTileSamples, kTileWarps, sizeof(ForwardRoom<K>), composite_forward_kernel<K>, body,
                      rest);
  }

  static void for_each_ray(const Tensor& like, const Tensor& offsets, const std::vector<Tensor>& packed,
                           const CompositeForward<float>& body) {
    const PackedRays<float>& in = body.in;
    if (!in_fours({in.density, in.channels, in.t_starts, in.t_ends, body.weights, body.alphas, body.arriving}))
      return nerftrain::for_each_ray<Cuda>(like, offsets, packed, body);
    const auto run = in.num_channels == kColors ? forward<kColors> : forward<0>;
    run(like, offsets.size(0) - 1, body, ClearRest(offsets, packed));
  }

  template <int K, bool kMore>
  static void backward(const Tensor& like, int64_t n, const CompositeBackward<float>& body, const ClearRest& rest) {
    for_each_ray_warp(like, n, kTileSamples, kTileWarps, sizeof(BackwardRoom), composite_backward_kernel<K, kMore>,
                      body, rest);
  }

  static void for_each_ray(const Tensor& like, const Tensor& offsets, const std::vector<Tensor>& packed,
                           const CompositeBackward<float>& body) {
    const PackedRays<float>& in = body.in;
    if (!in_fours({in.density, in.channels, in.t_starts, in.t_ends, body.weights, body.arriving, body.v_weights,
                   body.v_alphas, body.v_arriving, body.v_density, body.v_sample_channels}))
      return nerftrain::for_each_ray<Cuda>(like, offsets, packed, body);
    const bool more = body.v_depth || body.v_distortion || body.v_weights || body.v_alphas || body.v_arriving;
    const auto run = in.num_channels == kColors ? (more ? backward<kColors, true> : backward<kColors, false>)
                                                : (more ? backward<0, true> : backward<0, false>);
    run(like, offsets.size(0) - 1, body, ClearRest(offsets, packed));
  }
};

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("composite_fwd", TORCH_BOX(&nerftrain::composite_fwd<nerftrain::CudaComposite>));
  m.impl("composite_bwd", TORCH_BOX(&nerftrain::composite_bwd<nerftrain::CudaComposite>));
}
