// A warp field on the CPU (T-NeRF: D-NeRF, arXiv:2011.13961, eq. 4): where places at times are in the canonical field.
#pragma once
#include <cmath>
#include <initializer_list>

#include "mlp.h"

namespace nerftrain {

typedef float Four __attribute__((vector_size(16)));

// Sines and cosines of numbers of at most 1.6, to 1e-7 (Taylor's polynomials).
inline void small_sines(Four x, Four& sine, Four& cosine) {
  const Four square = x * x;
  const auto series = [&](std::initializer_list<float> coefficients) {
    Four sum = {};
    for (const float c : coefficients) sum = sum * square + c;
    return sum;
  };
  sine = x * series({-2.5052108e-8f, 2.7557319e-6f, -1.9841270e-4f, 8.3333333e-3f, -1.6666667e-1f, 1.f});
  cosine = series({2.0876757e-9f, -2.7557319e-7f, 2.4801587e-5f, -1.3888889e-3f, 4.1666667e-2f, -0.5f, 1.f});
}

struct CpuWarp {
  MlpShape shape;
  const float* weights;  // of its layers, one after the other
  int position_frequencies, time_frequencies;
  float reach;
  const MlpKernels& mlp;

  int num_inputs() const { return 3 * (1 + 2 * position_frequencies) + 1 + 2 * time_frequencies; }

  // What the MLP takes of a place and its time in 0..1, ordered as models/encodings.py does. Sines of twice an angle
  // follow from its own.
  void encode(const float* place, float* to) const {
    const Four x = {place[0] * 2 - 1, place[1] * 2 - 1, place[2] * 2 - 1, place[3]};  // the box is -1..1 here
    float *sines = to + 3, *cosines = sines + 3 * position_frequencies;
    float *time = cosines + 3 * position_frequencies, *time_sines = time + 1;
    float* time_cosines = time_sines + time_frequencies;
    for (int a = 0; a < 3; ++a) to[a] = x[a];
    *time = x[3];
    bool small = true;
    for (int a = 0; a < 4; ++a) small = small && std::abs(x[a]) <= 1.6f;
    Four sine, cosine;
    small_sines(x, sine, cosine);
    for (int k = 0; k < position_frequencies || k < time_frequencies; ++k) {
      if (!small)
        for (int a = 0; a < 4; ++a) {
          sine[a] = std::sin(std::ldexp(x[a], k));
          cosine[a] = std::cos(std::ldexp(x[a], k));
        }
      for (int a = 0; a < 3 && k < position_frequencies; ++a) {
        *sines++ = sine[a];
        *cosines++ = cosine[a];
      }
      if (k < time_frequencies) {
        *time_sines++ = sine[3];
        *time_cosines++ = cosine[3];
      }
      const Four twice = 2.f * sine;
      const Four next = twice * cosine;
      cosine = 1.f - twice * sine;
      sine = next;
    }
  }

  // Moves n places [n][4] to moved [n][3] by weights that the scratch does not hold yet; none where it does, since an
  // earlier call.
  void move(const float* places, int64_t n, const float* new_weights, float* inputs, float* moved,
            float* scratch) const {
    for (int64_t i = 0; i < n; ++i) encode(places + 4 * i, inputs + i * num_inputs());
    mlp.forward(shape, new_weights, inputs, moved, 0, n, scratch);
    for (int64_t i = 0; i < n; ++i)
      for (int a = 0; a < 3; ++a) moved[3 * i + a] = places[4 * i + a] + reach * moved[3 * i + a];
  }
};

}  // namespace nerftrain
