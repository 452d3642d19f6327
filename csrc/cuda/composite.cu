// Compositing with a team of lanes for each ray, which take neighbouring samples and scan over them. Float64 goes ray
// by ray.
#include "../operators/composite.h"
#include "backend.h"
#include "warp.h"

namespace nerftrain {

// The ray and the lane of a team; teams behind the last ray have none, but take part in what warps do together.
template <int kTeam>
struct Team {
  int64_t ray;
  int lane;
  bool there;
  int64_t first = 0, last = 0;  // samples

  __device__ __forceinline__ Team(int64_t num_rays, const int64_t* offsets)
      : ray(piece_of(blockIdx.x, blockDim.x, threadIdx.x) / kTeam),
        lane(lane_of_warp() % kTeam),
        there(ray < num_rays) {
    if (there) first = offsets[ray], last = offsets[ray + 1];
  }

  // Whether any team of the warp has a sample from here on.
  __device__ __forceinline__ bool any(bool here) const {
    return kTeam == kWarp ? here : __ballot_sync(kAll, here) != 0;
  }
};

constexpr int kSums = 8;  // of a ray, no more than a team has lanes

// K channels; 0: as many as there are, in a pass of their own that adds them up in the same order. The distortion's
// double sum goes by the gaps between neighbouring midpoints, each of which lies between all that is in front of it and
// all that is behind: sum_ij w_i w_j |m_i - m_j| = 2 sum_i (m_i - m_{i-1}) (1 - T_i) (T_i - T_end).
template <int K, int kTeam>
__global__ void composite_forward_kernel(int64_t num_rays, CompositeForward<float> body) {
  const PackedRays<float>& in = body.in;
  const Team<kTeam> team(num_rays, in.offsets);
  const int64_t r = team.ray, first = team.first, last = team.last;
  const int lane = team.lane;
  float sums[kSums] = {}, behind = 0;  // of this lane's samples: channels, weight, depth, spread
  float arriving = 1, middle = 0;      // behind all samples before these, and of the last of them
  for (int64_t base = first; team.any(base < last); base += kTeam) {
    const int64_t i = base + lane;
    const bool there = i < last;
    const float start = there ? in.t_starts[i] : 0, end = there ? in.t_ends[i] : 0;
    const float dt = end - start, mid = (start + end) * 0.5f;
    const float kept = there ? in.kept_of(i) : 1;
    const float kept_so_far = product_so_far<kTeam>(kept, lane);
    const float light = arriving * of_lane_before(kept_so_far, lane, 1);
    const float w = light * (1 - kept), gap = mid - of_lane_before(mid, lane, middle);
    if (there) {
      body.alphas[i] = 1 - kept;
      body.arriving[i] = light;
      body.weights[i] = w;
#pragma unroll
      for (int k = 0; k < K; ++k) sums[k] += w * in.channels[i * K + k];
      sums[K] += w;
      sums[K + 1] += w * mid;
      sums[K + 2] += 2 * gap * (1 - light) * light + w * w * dt * (1.f / 3);
      behind += 2 * gap * (1 - light);
    }
    arriving *= of_last<kTeam>(kept_so_far);
    middle = of_last<kTeam>(mid);
  }
  sums[K + 2] -= behind * arriving;
  for (int64_t k = 0; K == 0 && k < in.num_channels; k += kSums) {
    float some[kSums] = {};
    for (int64_t i = first + lane; i < last; i += kTeam)
#pragma unroll
      for (int j = 0; j < kSums; ++j)
        if (k + j < in.num_channels) some[j] += body.weights[i] * in.channels[i * in.num_channels + k + j];
    const float own = team_sums<kTeam>(some, lane);
    if (team.there && lane < kSums && k + lane < in.num_channels) body.channels[r * in.num_channels + k + lane] = own;
  }
  const float own = team_sums<kTeam>(sums, lane);
  if (!team.there) return;
  if (lane < K) body.channels[r * K + lane] = own;
  if (lane == K) body.opacity[r] = own;
  if (lane == K + 1) body.depth[r] = own;
  if (lane == K + 2) body.distortion[r] = own;
}

// From the back, as many samples at a time as a team has lanes; the letters are those of CompositeBackward.
template <int K, bool kMore, int kTeam>
__global__ void composite_backward_kernel(int64_t num_rays, CompositeBackward<float> body) {
  const PackedRays<float>& in = body.in;
  const Team<kTeam> team(num_rays, in.offsets);
  const int64_t first = team.first, last = team.last;
  const int lane = team.lane;
  // A team without a ray reads the first one's; its samples are none.
  const int64_t r = team.there ? team.ray : 0;
  const float v_sum_w = body.at(body.v_opacity, r), v_sum_wm = body.at(body.v_depth, r);
  const float v_spread = body.at(body.v_distortion, r), total_w = body.opacity[r], total_wm = body.depth[r];
  const int64_t num_channels = K ? K : in.num_channels;
  float v[K ? K : 1];
#pragma unroll
  for (int k = 0; k < K; ++k) v[k] = body.at(body.v_channels, r * K + k);
  float behind = 0, behind_w = 0, behind_wm = 0;  // of all samples after these
  const int64_t last_base = first + (last - first - 1) / kTeam * kTeam;
  for (int64_t base = last > first ? last_base : first - 1; team.any(base >= first); base -= kTeam) {
    const int64_t i = base + lane;
    const bool there = base >= first && i < last;
    const float start = there ? in.t_starts[i] : 0, end = there ? in.t_ends[i] : 0;
    const float dt = end - start, mid = (start + end) * 0.5f;
    const float w = there ? body.weights[i] : 0, light = there ? body.arriving[i] : 0;
    float q = v_sum_w;
    if (kMore) {
      const float wm = w * mid, w_from = sum_from_here<kTeam>(w, lane), wm_from = sum_from_here<kTeam>(wm, lane);
      const float sum_w = behind_w + of_lane_after<kTeam>(w_from, lane, 0);  // behind this sample
      const float sum_wm = behind_wm + of_lane_after<kTeam>(wm_from, lane, 0);
      if (there) q += body.at(body.v_weights, i) + v_sum_wm * mid;
      const float spread = mid * (total_w - 2 * sum_w - w) - (total_wm - 2 * sum_wm - wm);
      q += v_spread * (2 * spread + 2.f / 3 * w * dt);
      behind_w += of_first<kTeam>(w_from);
      behind_wm += of_first<kTeam>(wm_from);
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
    const float own_from = sum_from_here<kTeam>(own, lane), own_after = of_lane_after<kTeam>(own_from, lane, 0);
    if (there) {
      const float leaving = i + 1 < last ? body.arriving[i + 1] : light * in.kept_of(i);
      float inner = leaving * q - (behind + own_after);
      if (kMore && body.v_alphas) inner += in.kept_of(i) * body.v_alphas[i];
      body.v_density[i] = dt * inner;
    }
    behind += of_first<kTeam>(own_from);
  }
}

struct CudaComposite : Cuda {
  using Cuda::for_each;

  // A team for each ray, of as many lanes as rays have samples in the mean: what a warp does costs the same however few
  // of its lanes have one.
  template <class Body>
  static void launch_teams(const torch::stable::Tensor& samples, int64_t num_rays, void (*of_8)(int64_t, Body),
                           void (*of_16)(int64_t, Body), void (*of_32)(int64_t, Body), const Body& body) {
    if (num_rays == 0) return;
    const int64_t mean = samples.size(0) / num_rays;
    const auto of = [&](int lanes, void (*kernel)(int64_t, Body)) {
      launch(samples, kernel, grid_of(num_rays * lanes, 1), kThreads, 0, num_rays, body);
    };
    mean <= 8 ? of(8, of_8) : mean <= 16 ? of(16, of_16) : of(kWarp, of_32);
  }

  template <int K>
  static void forward(const torch::stable::Tensor& like, int64_t n, const CompositeForward<float>& body) {
    launch_teams(like, n, composite_forward_kernel<K, 8>, composite_forward_kernel<K, 16>,
                 composite_forward_kernel<K, kWarp>, body);
  }

  static void for_each(const torch::stable::Tensor& like, int64_t n, const CompositeForward<float>& body) {
    body.in.num_channels == 3 ? forward<3>(like, n, body) : forward<0>(like, n, body);
  }

  template <int K, bool kMore>
  static void backward(const torch::stable::Tensor& like, int64_t n, const CompositeBackward<float>& body) {
    launch_teams(like, n, composite_backward_kernel<K, kMore, 8>, composite_backward_kernel<K, kMore, 16>,
                 composite_backward_kernel<K, kMore, kWarp>, body);
  }

  static void for_each(const torch::stable::Tensor& like, int64_t n, const CompositeBackward<float>& body) {
    const bool more = body.v_depth || body.v_distortion || body.v_weights || body.v_alphas || body.v_arriving;
    if (body.in.num_channels == 3)
      more ? backward<3, true>(like, n, body) : backward<3, false>(like, n, body);
    else
      more ? backward<0, true>(like, n, body) : backward<0, false>(like, n, body);
  }
};

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("composite_fwd", TORCH_BOX(&nerftrain::composite_fwd<nerftrain::CudaComposite>));
  m.impl("composite_bwd", TORCH_BOX(&nerftrain::composite_bwd<nerftrain::CudaComposite>));
}
