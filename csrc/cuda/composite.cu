// Compositing by a thread for each ray (staged.h), in the order of a CPU. Float64 reads memory as it comes.
#include "../operators/composite.h"
#include "backend.h"
#include "staged.h"
#include "warp.h"

namespace nerftrain {

constexpr int kColors = 3;   // channels that go along with all else; of any other number some are staged at a time
constexpr int kColumns = 8;  // so many

template <int K>
constexpr int kForwardRows = 4 + (K ? K : kColumns);

// Brings columns k ... k + kColumns - 1 of the channels of some samples, one behind the other.
__device__ __forceinline__ void stage_columns(const float* channels, int64_t num_channels, int64_t k, int num,
                                              float* columns) {
  side_by_side(num * kColumns, [&](int i) {
    const int place = i / kColumns, j = i % kColumns;
    if (k + j < num_channels) columns[j * kStaged + place] = channels[place * num_channels + k + j];
  });
  __syncwarp();
}

// K channels; 0: as many as there are.
template <int K>
__global__ void __launch_bounds__(kStagedThreads)
    composite_forward_kernel(int64_t num_rays, int rays_of_warp, CompositeForward<float> body) {
  const PackedRays<float>& in = body.in;
  const StagedRays rays(num_rays, rays_of_warp, in.offsets);
  const int64_t r = rays.ray, num_channels = in.num_channels;
  float *starts = staged_rows<kForwardRows<K>>(), *ends = starts + kStaged, *kept = ends + kStaged;
  float *light = kept + kStaged, *channels = light + kStaged;
  Gathered<float> so_far;
  float sums[K ? K : kColumns] = {};
  for (int64_t k = 0; K == 0 && rays.there && k < num_channels; ++k) body.channels[r * num_channels + k] = 0;
  for (int64_t base = rays.begin; base < rays.end; base += kStaged) {
    const StagedPart part(rays, base);
    side_by_side(part.num, [&](int place) {
      const float start = in.t_starts[base + place], end = in.t_ends[base + place];
      starts[place] = start;
      ends[place] = end;
      kept[place] = exp_of(-in.density[base + place] * (end - start));
    });
    if (K) side_by_side(part.num * K, [&](int i) { channels[i] = in.channels[base * K + i]; });
    __syncwarp();
    for (int place = part.from; place < part.to; ++place) {
      light[place] = so_far.light;
      const float w = so_far.pass(starts[place], ends[place], kept[place]);
#pragma unroll
      for (int k = 0; k < K; ++k) sums[k] += w * channels[place * K + k];
    }
    __syncwarp();
    side_by_side(part.num, [&](int place) {
      const float alpha = 1 - kept[place];
      body.alphas[base + place] = alpha;
      body.arriving[base + place] = light[place];
      body.weights[base + place] = light[place] * alpha;
    });
    for (int64_t k = 0; K == 0 && k < num_channels; k += kColumns) {
      stage_columns(in.channels + base * num_channels, num_channels, k, part.num, channels);
#pragma unroll 1
      for (int j = 0; j < kColumns && k + j < num_channels; ++j) {
        if (part.from == part.to) continue;
        float sum = body.channels[r * num_channels + k + j];
        for (int place = part.from; place < part.to; ++place)
          sum += light[place] * (1 - kept[place]) * channels[j * kStaged + place];
        body.channels[r * num_channels + k + j] = sum;
      }
      __syncwarp();
    }
    __syncwarp();
  }
  if (!rays.there) return;
#pragma unroll
  for (int k = 0; k < K; ++k) body.channels[r * K + k] = sums[k];
  body.tell(r, so_far);
}

// What the gradients of samples need of shared memory, in rows.
template <int K, bool kMore>
struct BackwardRows {
  static constexpr int lengths = 0, kept = 1, weights = 2, light = 3, q = 4;
  static constexpr int mids = q + (K == 0 || kMore), v_alphas = mids + kMore, v_arriving = v_alphas + kMore;
  static constexpr int channels = v_arriving + kMore, num = channels + (K ? K : kColumns);
};

// From the back; the letters are those of CompositeBackward.
template <int K, bool kMore>
__global__ void __launch_bounds__(kStagedThreads)
    composite_backward_kernel(int64_t num_rays, int rays_of_warp, CompositeBackward<float> body) {
  using At = BackwardRows<K, kMore>;
  const PackedRays<float>& in = body.in;
  const StagedRays rays(num_rays, rays_of_warp, in.offsets);
  const int64_t num_channels = in.num_channels;
  float* rows = staged_rows<At::num>();
  const auto row = [rows](int number) { return rows + number * kStaged; };
  float *channels = row(At::channels), *qs = row(At::q);
  // A thread without a ray reads the first one's; its samples are none.
  const int64_t r = rays.there ? rays.ray : 0;
  const float v_sum_w = body.at(body.v_opacity, r), v_sum_wm = body.at(body.v_depth, r);
  const float v_spread = body.at(body.v_distortion, r), total_w = body.opacity[r], total_wm = body.depth[r];
  float v[K ? K : 1] = {};
#pragma unroll
  for (int k = 0; k < K; ++k) v[k] = body.at(body.v_channels, r * K + k);
  float behind = 0, behind_w = 0, behind_wm = 0;  // of all samples after these
  for (int64_t base = rays.last_base(); base >= rays.begin && rays.begin < rays.end; base -= kStaged) {
    const StagedPart part(rays, base);
    side_by_side(part.num, [&](int place) {
      const int64_t i = base + place;
      const float start = in.t_starts[i], end = in.t_ends[i], dt = end - start;
      const float kept = exp_of(-in.density[i] * dt), light = body.arriving[i];
      row(At::lengths)[place] = dt;
      row(At::kept)[place] = kept;
      row(At::weights)[place] = body.weights[i];
      row(At::light)[place] = light;
      if (kMore) {
        qs[place] = body.at(body.v_weights, i);
        row(At::mids)[place] = (start + end) * 0.5f;
        row(At::v_alphas)[place] = kept * body.at(body.v_alphas, i);
        row(At::v_arriving)[place] = light * body.at(body.v_arriving, i);
      }
    });
    if (K) side_by_side(part.num * K, [&](int i) { channels[i] = in.channels[base * K + i]; });
    __syncwarp();

    // dL/dw but for the channels.
    const auto without_channels = [&](int place) {
      float q = v_sum_w;
      if (!kMore) return q;
      const float w = row(At::weights)[place], mid = row(At::mids)[place];
      q += qs[place] + v_sum_wm * mid;
      const float spread = mid * (total_w - 2 * behind_w - w) - (total_wm - 2 * behind_wm - w * mid);
      q += v_spread * (2 * spread + 2.f / 3 * w * row(At::lengths)[place]);
      behind_w += w;
      behind_wm += w * mid;
      return q;
    };
    if (K == 0) {
      for (int place = part.to - 1; place >= part.from; --place) qs[place] = without_channels(place);
      for (int64_t k = 0; k < num_channels; k += kColumns) {
        stage_columns(in.channels + base * num_channels, num_channels, k, part.num, channels);
#pragma unroll 1
        for (int j = 0; j < kColumns && k + j < num_channels; ++j) {
          const float v_k = body.at(body.v_channels, r * num_channels + k + j);
          for (int place = part.from; place < part.to; ++place) {
            float& channel = channels[j * kStaged + place];
            qs[place] += v_k * channel;
            channel = row(At::weights)[place] * v_k;
          }
        }
        __syncwarp();
        side_by_side(part.num * kColumns, [&](int i) {
          const int place = i / kColumns, j = i % kColumns;
          if (k + j < num_channels)
            body.v_sample_channels[(base + place) * num_channels + k + j] = channels[j * kStaged + place];
        });
        __syncwarp();
      }
    }
    for (int place = part.to - 1; place >= part.from; --place) {
      float q = K ? without_channels(place) : qs[place];
      const float w = row(At::weights)[place], kept = row(At::kept)[place], light = row(At::light)[place];
#pragma unroll
      for (int k = 0; k < K; ++k) {
        float& channel = channels[place * K + k];
        q += v[k] * channel;
        channel = w * v[k];
      }
      float inner = light * kept * q - behind;
      if (kMore) inner += row(At::v_alphas)[place];
      row(At::lengths)[place] *= inner;
      behind += w * q;
      if (kMore) behind += row(At::v_arriving)[place];
    }
    __syncwarp();
    side_by_side(part.num, [&](int place) { body.v_density[base + place] = row(At::lengths)[place]; });
    if (K) side_by_side(part.num * K, [&](int i) { body.v_sample_channels[base * K + i] = channels[i]; });
    __syncwarp();
  }
}

struct CudaComposite : Cuda {
  using Cuda::for_each;

  template <int K>
  static void forward(const torch::stable::Tensor& like, int64_t n, const CompositeForward<float>& body) {
    for_each_staged<kForwardRows<K>>(like, n, composite_forward_kernel<K>, body);
  }

  static void for_each(const torch::stable::Tensor& like, int64_t n, const CompositeForward<float>& body) {
    body.in.num_channels == kColors ? forward<kColors>(like, n, body) : forward<0>(like, n, body);
  }

  template <int K, bool kMore>
  static void backward(const torch::stable::Tensor& like, int64_t n, const CompositeBackward<float>& body) {
    for_each_staged<BackwardRows<K, kMore>::num>(like, n, composite_backward_kernel<K, kMore>, body);
  }

  static void for_each(const torch::stable::Tensor& like, int64_t n, const CompositeBackward<float>& body) {
    const bool more = body.v_depth || body.v_distortion || body.v_weights || body.v_alphas || body.v_arriving;
    if (body.in.num_channels == kColors)
      more ? backward<kColors, true>(like, n, body) : backward<kColors, false>(like, n, body);
    else
      more ? backward<0, true>(like, n, body) : backward<0, false>(like, n, body);
  }
};

}  // namespace nerftrain

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("composite_fwd", TORCH_BOX(&nerftrain::composite_fwd<nerftrain::CudaComposite>));
  m.impl("composite_bwd", TORCH_BOX(&nerftrain::composite_bwd<nerftrain::CudaComposite>));
}
