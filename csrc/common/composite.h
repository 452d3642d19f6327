// Emission-absorption compositing along packed rays.
//
//   alpha_i = 1 - exp(-sigma_i * dt_i),  T_i = prod_{j<i} (1 - alpha_j),  w_i = T_i * alpha_i
//   out = sum_i w_i c_i                                   (NeRF, arXiv:2003.08934, eq. 3)
//   distortion = sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 dt_i   (mip-NeRF 360, arXiv:2111.12077, eq. 15)
// with midpoints m_i; the double sum is linear in time because midpoints ascend (DVGOv2, arXiv:2206.05085, eq. 6).
#pragma once
#include "macros.h"

namespace nerftrain {

template <class T>
struct PackedRays {
  const T* density;        // [N]
  const T* channels;       // [N][K]
  const T* t_starts;       // [N]
  const T* t_ends;         // [N]
  const int64_t* offsets;  // [R + 1]
  int64_t num_channels;
  const T* kept;  // exp(-sigma dt) of samples from kept_first on, where it has been worked out before; else none
  int64_t kept_first;

  NT_HD T kept_of(int64_t i) const {
    return kept ? kept[i - kept_first] : exp_of(-density[i] * (t_ends[i] - t_starts[i]));
  }
};

// What a ray has gathered behind some of its samples.
template <class T>
struct Gathered {
  T light = 1;  // that is left
  T w = 0, wm = 0, distortion = 0;

  // Returns the weight of the next sample.
  NT_HD T pass(T start, T end, T kept) {
    const T dt = end - start, mid = (start + end) * T(0.5), own = light * (T(1) - kept);
    light *= kept;
    distortion += T(2) * own * (mid * w - wm) + own * own * dt * (T(1) / T(3));
    w += own;
    wm += own * mid;
    return own;
  }
};

template <class T>
struct CompositeForward {
  PackedRays<T> in;
  T* channels;    // [R][K]
  T* opacity;     // [R]
  T* depth;       // [R]
  T* distortion;  // [R]
  T* weights;     // [N]
  T* alphas;      // [N]
  T* arriving;    // [N] transmittance in front of each sample

  NT_HD void tell(int64_t r, const Gathered<T>& all) const {
    opacity[r] = all.w;
    depth[r] = all.wm;
    distortion[r] = all.distortion;
  }

  // K channels; 0: as many as there are.
  template <int K>
  NT_HD void along(int64_t r) const {
    const int64_t k_end = K ? K : in.num_channels;
    T own[K ? K : 1] = {};
    T* color = K ? own : channels + r * k_end;
    for (int64_t k = 0; k < k_end; ++k) color[k] = 0;
    Gathered<T> so_far;
    for (int64_t i = in.offsets[r]; i < in.offsets[r + 1]; ++i) {
      const T kept = in.kept_of(i);
      alphas[i] = T(1) - kept;
      arriving[i] = so_far.light;
      const T w = so_far.pass(in.t_starts[i], in.t_ends[i], kept);
      weights[i] = w;
      for (int64_t k = 0; k < k_end; ++k) color[k] += w * in.channels[i * k_end + k];
    }
    for (int64_t k = 0; k < K; ++k) channels[r * K + k] = own[k];
    tell(r, so_far);
  }

  NT_HD void operator()(int64_t r) const { in.num_channels == 3 ? along<3>(r) : along<0>(r); }
};

// With q_i = dL/dw_i, a_i = dL/dalpha_i and u_i = dL/dT_i:
//   dL/dsigma_i = dt_i * (T_{i+1} q_i + (1 - alpha_i) a_i - sum_{j>i} (w_j q_j + T_j u_j)),  dL/dc_i = w_i * dL/dout.
// One sweep from the back. Gradients that are not there count as zero.
template <class T>
struct CompositeBackward {
  PackedRays<T> in;
  const T* weights;       // [N]
  const T* arriving;      // [N]
  const T* opacity;       // [R]
  const T* depth;         // [R]
  const T* v_channels;    // [R][K] or none
  const T* v_opacity;     // [R] or none
  const T* v_depth;       // [R] or none
  const T* v_distortion;  // [R] or none
  const T* v_weights;     // [N] or none
  const T* v_alphas;      // [N] or none
  const T* v_arriving;    // [N] or none
  T* v_density;           // [N]
  T* v_sample_channels;   // [N][K]

  NT_HD static T at(const T* values, int64_t i) { return values ? values[i] : T(0); }

  // K channels; 0: as many as there are. Few losses look at more than channels and opacity: kMore is whether one does.
  template <int K, bool kMore>
  NT_HD void along(int64_t r) const {
    const int64_t first = in.offsets[r], last = in.offsets[r + 1], k_end = K ? K : in.num_channels;
    const T v_sum_w = at(v_opacity, r), v_sum_wm = at(v_depth, r), v_spread = at(v_distortion, r);
    T own[K ? K : 1] = {};
    for (int64_t k = 0; k < K; ++k) own[k] = at(v_channels, r * K + k);
    const T total_w = opacity[r], total_wm = depth[r];
    T behind = 0, sum_w = 0, sum_wm = 0;  // over the samples behind
    T leaving = first < last ? arriving[last - 1] * in.kept_of(last - 1) : T(0);
    for (int64_t i = last - 1; i >= first; --i) {
      const T dt = in.t_ends[i] - in.t_starts[i], mid = (in.t_starts[i] + in.t_ends[i]) * T(0.5), w = weights[i];
      T q = v_sum_w;
      if (kMore) q += at(v_weights, i) + v_sum_wm * mid;
      if (kMore && v_spread != T(0)) {
        const T spread = mid * (total_w - T(2) * sum_w - w) - (total_wm - T(2) * sum_wm - w * mid);
        q += v_spread * (T(2) * spread + T(2) / T(3) * w * dt);
      }
      for (int64_t k = 0; k < k_end; ++k) {
        const T v = K ? own[K ? k : 0] : at(v_channels, r * k_end + k);
        q += v * in.channels[i * k_end + k];
        v_sample_channels[i * k_end + k] = w * v;
      }
      T inner = leaving * q - behind;
      if (kMore && v_alphas) inner += in.kept_of(i) * v_alphas[i];
      v_density[i] = dt * inner;
      leaving = arriving[i];
      behind += w * q;
      if (kMore) {
        behind += leaving * at(v_arriving, i);
        sum_w += w;
        sum_wm += w * mid;
      }
    }
  }

  NT_HD void operator()(int64_t r) const {
    const bool more = v_depth || v_distortion || v_weights || v_alphas || v_arriving;
    if (in.num_channels == 3)
      more ? along<3, true>(r) : along<3, false>(r);
    else
      more ? along<0, true>(r) : along<0, false>(r);
  }
};

}  // namespace nerftrain
