// Compositing with a warp for each ray: lanes take neighbouring samples, 32 at a time, and scan over them. Float64 goes
// ray by ray.
#include "../operators/composite.h"
#include "backend.h"
#include "warp.h"

namespace nerftrain {

// K channels; 0: as many as there are, in a pass of their own that adds them up in the same order.
template <int K>
__global__ void composite_forward_kernel(int64_t num_rays, CompositeForward<float> body) {
  const int64_t r = piece_of_warp();
  if (r >= num_rays) return;
  const int lane = lane_of_warp();
  const PackedRays<float>& in = body.in;
  const int64_t first = in.offsets[r], last = in.offsets[r + 1];
  float color[K ? K : 1] = {}, sum_w = 0, sum_wm = 0, spread = 0;  // of this lane's samples
  float arriving = 1, before_w = 0, before_wm = 0;                 // of all samples before these 32
  for (int64_t base = first; base < last; base += kWarp) {
    const int64_t i = base + lane;
    const bool there = i < last;
    const float start = there ? in.t_starts[i] : 0, end = there ? in.t_ends[i] : 0;
    const float dt = end - start, mid = (start + end) * 0.5f;
    const float kept = there ? in.kept_of(i) : 1;
    const float kept_so_far = warp_product_so_far(kept, lane);
    const float light = arriving * of_lane_before(kept_so_far, lane, 1);
    const float w = light * (1 - kept), wm = w * mid;
    const float w_so_far = warp_sum_so_far(w, lane), wm_so_far = warp_sum_so_far(wm, lane);
    const float w_before = before_w + of_lane_before(w_so_far, lane, 0);
    const float wm_before = before_wm + of_lane_before(wm_so_far, lane, 0);
    if (there) {
      body.alphas[i] = 1 - kept;
      body.arriving[i] = light;
      body.weights[i] = w;
#pragma unroll
      for (int k = 0; k < K; ++k) color[k] += w * in.channels[i * K + k];
      spread += 2 * w * (mid * w_before - wm_before) + w * w * dt * (1.f / 3);
      sum_w += w;
      sum_wm += wm;
    }
    arriving *= __shfl_sync(kAll, kept_so_far, kWarp - 1);
    before_w += __shfl_sync(kAll, w_so_far, kWarp - 1);
    before_wm += __shfl_sync(kAll, wm_so_far, kWarp - 1);
  }
  for (int64_t k = 0; K == 0 && k < in.num_channels; ++k) {
    float sum = 0;
    for (int64_t i = first + lane; i < last; i += kWarp) sum += body.weights[i] * in.channels[i * in.num_channels + k];
    sum = warp_sum(sum);
    if (lane == 0) body.channels[r * in.num_channels + k] = sum;
  }
#pragma unroll
  for (int k = 0; k < K; ++k) color[k] = warp_sum(color[k]);
  sum_w = warp_sum(sum_w);
  sum_wm = warp_sum(sum_wm);
  spread = warp_sum(spread);
  if (lane) return;
#pragma unroll
  for (int k = 0; k < K; ++k) body.channels[r * K + k] = color[k];
  body.opacity[r] = sum_w;
  body.depth[r] = sum_wm;
  body.distortion[r] = spread;
}

// From the back, 32 samples at a time; the letters are those of CompositeBackward.
template <int K, bool kMore>
__global__ void composite_backward_kernel(int64_t num_rays, CompositeBackward<float> body) {
  const int64_t r = piece_of_warp();
  if (r >= num_rays) return;
  const int lane = lane_of_warp();
  const PackedRays<float>& in = body.in;
  const int64_t first = in.offsets[r], last = in.offsets[r + 1];
  const float v_sum_w = body.at(body.v_opacity, r), v_sum_wm = body.at(body.v_depth, r);
  const float v_spread = body.at(body.v_distortion, r), total_w = body.opacity[r], total_wm = body.depth[r];
  const int64_t num_channels = K ? K : in.num_channels;
  float v[K ? K : 1];
#pragma unroll
  for (int k = 0; k < K; ++k) v[k] = body.at(body.v_channels, r * K + k);
  float behind = 0, behind_w = 0, behind_wm = 0;  // of all samples after these 32
  for (int64_t base = first + (last - first - 1) / kWarp * kWarp; last > first && base >= first; base -= kWarp) {
    const int64_t i = base + lane;
    const bool there = i < last;
    const float start = there ? in.t_starts[i] : 0, end = there ? in.t_ends[i] : 0;
    const float dt = end - start, mid = (start + end) * 0.5f;
    const float w = there ? body.weights[i] : 0, light = there ? body.arriving[i] : 0;
    float q = v_sum_w;
    if (kMore) {
      const float wm = w * mid, w_from = warp_sum_from_here(w, lane), wm_from = warp_sum_from_here(wm, lane);
      const float sum_w = behind_w + of_lane_after(w_from, lane, 0);  // behind this sample
      const float sum_wm = behind_wm + of_lane_after(wm_from, lane, 0);
      if (there) q += body.at(body.v_weights, i) + v_sum_wm * mid;
      const float spread = mid * (total_w - 2 * sum_w - w) - (total_wm - 2 * sum_wm - wm);
      q += v_spread * (2 * spread + 2.f / 3 * w * dt);
      behind_w += __shfl_sync(kAll, w_from, 0);
      behind_wm += __shfl_sync(kAll, wm_from, 0);
    }
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (!there) continue;
      q += v[k] * in.channels[i * K + k];
      body.v_sample_channels[i * K + k] = w * v[k];
    }
    for (int64_t k = 0; K == 0 && there && k < num_channels; ++k) {
      const float v_k = body.at(body.v_channels, r * num_channels + k);
      q += v_k * in.channels[i * num_channels + k];
      body.v_sample_channels[i * num_channels + k] = w * v_k;
    }
    float own = w * q;
    if (kMore && there) own += light * body.at(body.v_arriving, i);
    const float own_from = warp_sum_from_here(own, lane), own_after = of_lane_after(own_from, lane, 0);
    if (there) {
      const float leaving = i + 1 < last ? body.arriving[i + 1] : light * in.kept_of(i);
      float inner = leaving * q - (behind + own_after);
      if (kMore && body.v_alphas) inner += in.kept_of(i) * body.v_alphas[i];
      body.v_density[i] = dt * inner;
    }
    behind += __shfl_sync(kAll, own_from, 0);
  }
}

struct CudaComposite : Cuda {
  using Cuda::for_each;

  static void for_each(const torch::stable::Tensor& like, int64_t n, const CompositeForward<float>& body) {
    for_each_warp(like, n, body.in.num_channels == 3 ? composite_forward_kernel<3> : composite_forward_kernel<0>, body);
  }
  static void for_each(const torch::stable::Tensor& like, int64_t n, const CompositeBackward<float>& body) {
    const bool more = body.v_depth || body.v_distortion || body.v_weights || body.v_alphas || body.v_arriving;
    const auto of_colors = more ? composite_backward_kernel<3, true> : composite_backward_kernel<3, false>;
    const auto of_any = more ? composite_backward_kernel<0, true> : composite_backward_kernel<0, false>;
    for_each_warp(like, n, body.in.num_channels == 3 ? of_colors : of_any, body);
  }
};

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("composite_fwd", TORCH_BOX(&nerftrain::composite_fwd<nerftrain::CudaComposite>));
  m.impl("composite_bwd", TORCH_BOX(&nerftrain::composite_bwd<nerftrain::CudaComposite>));
}
