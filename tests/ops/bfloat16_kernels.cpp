// The ngp's and the MLP's kernels in bfloat16, by AVX-512 and by AMX tiles, held to those in float32: on a CPU that has
// neither, their intrinsics are played (emulated_avx512), or AMX's instructions are (emulated_amx.cpp).
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "cpu/ngp.h"

using namespace nerftrain;

namespace {

std::mt19937 engine(7);

std::vector<float> normal(size_t n, float scale) {
  std::normal_distribution<float> draw(0.f, scale);
  std::vector<float> numbers(n);
  for (float& x : numbers) x = draw(engine);
  return numbers;
}

struct Results {
  std::vector<float> density, channels, colors, seen, v_features, v_density, v_color;
};

long weights_of(const MlpShape& shape) {
  long total = 0;
  for (int l = 0; l < shape.num_layers; ++l) total += long(shape.widths[l]) * shape.widths[l + 1];
  return total;
}

// Outputs and gradients of a network alone.
struct MlpResults {
  std::vector<float> y, v_x, v_weights;
};

MlpResults run(const MlpKernels& kernels, const MlpShape& shape, int num, const std::vector<float>& x,
               const std::vector<float>& weights, const std::vector<float>& v_y) {
  MlpResults out{std::vector<float>(v_y.size()), std::vector<float>(x.size()), std::vector<float>(weights.size())};
  std::vector<float> scratch(kernels.scratch_floats(shape)), sums(kernels.gradient_floats(shape), 0.f);
  kernels.forward(shape, weights.data(), x.data(), out.y.data(), 0, num, scratch.data());
  kernels.backward(shape, weights.data(), x.data(), v_y.data(), out.v_x.data(), sums.data(), 0, num, scratch.data());
  kernels.reduce(shape, sums.data(), 1, out.v_weights.data());
  return out;
}

struct Problem {
  NgpShape shape;
  int num;
  std::vector<float> features, directions, density_weights, color_weights, v_channels, v_seen;

  Results run(const NgpKernels& kernels) const {
    Results out;
    out.density.resize(num);
    out.seen.resize(num);
    out.channels.resize(size_t(num) * shape.num_channels());
    out.v_features.resize(features.size());
    out.v_density.resize(density_weights.size());
    out.v_color.resize(color_weights.size());
    std::vector<float> scratch(kernels.scratch_floats(shape)), sums(kernels.gradient_floats(shape), 0.f);
    const NgpWeights weights{density_weights.data(), color_weights.data()};
    std::vector<float> geometry(size_t(num) * shape.num_geometry());
    kernels.density(shape, weights, features.data(), out.density.data(), geometry.data(), 0, num, scratch.data());
    out.colors.resize(out.channels.size());
    kernels.color(shape, weights, geometry.data(), directions.data(), out.colors.data(), 0, num, scratch.data());
    kernels.forward(shape, weights, features.data(), directions.data(), out.channels.data(), out.seen.data(), 0, num,
                    scratch.data());
    kernels.backward(shape, weights, features.data(), directions.data(), v_channels.data(), v_seen.data(),
                     out.v_features.data(), sums.data(), 0, num, scratch.data());
    kernels.reduce(shape, sums.data(), 1, out.v_density.data(), out.v_color.data());
    return out;
  }
};

Problem problem(std::vector<int> density, std::vector<int> color, int degree, int num) {
  Problem p{};
  p.num = num;
  p.shape.sh_degree = degree;
  MlpShape* shapes[] = {&p.shape.density, &p.shape.color};
  const std::vector<int>* widths[] = {&density, &color};
  for (int i = 0; i < 2; ++i) {
    shapes[i]->num_layers = int(widths[i]->size()) - 1;
    for (size_t l = 0; l < widths[i]->size(); ++l) shapes[i]->widths[l] = (*widths[i])[l];
  }
  p.features = normal(size_t(num) * density[0], 0.5f);
  p.directions = normal(size_t(num) * 3, 1.f);
  for (int s = 0; s < num; ++s) {
    float* d = &p.directions[3 * s];
    const float length = std::sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]);
    for (int a = 0; a < 3; ++a) d[a] /= length;
  }
  p.density_weights = normal(weights_of(p.shape.density), 0.2f);
  p.color_weights = normal(weights_of(p.shape.color), 0.2f);
  p.v_channels = normal(size_t(num) * color.back(), 1.f);
  p.v_seen = normal(num, 1.f);
  return p;
}

// The mean difference over the mean size.
float apart(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, size = 1e-30;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::fabs(double(a[i]) - b[i]);
    size += std::fabs(double(b[i]));
  }
  return float(difference / size);
}

void hold(const char* name, std::initializer_list<std::pair<float, float>> found) {
  for (const auto& [difference, most] : found)
    if (!(difference <= most)) {
      std::printf("%s: %g is more than %g\n", name, double(difference), double(most));
      std::exit(1);
    }
}

void compare(const char* name, const MlpResults& a, const MlpResults& b, float outputs, float gradients) {
  hold(name,
       {{apart(a.y, b.y), outputs}, {apart(a.v_x, b.v_x), gradients}, {apart(a.v_weights, b.v_weights), gradients}});
}

void compare(const char* name, const Results& a, const Results& b, float outputs, float gradients) {
  hold(name, {{apart(a.density, b.density), outputs},
              {apart(a.channels, b.channels), outputs},
              {apart(a.colors, a.channels), 0.f},
              {apart(a.seen, b.seen), outputs},
              {apart(a.v_features, b.v_features), gradients},
              {apart(a.v_density, b.v_density), gradients},
              {apart(a.v_color, b.v_color), gradients}});
}

template <class R>
void compare_all(const R& single, const R& vectors, const R& tiles, float outputs) {
  compare("avx512bf16 and float32", vectors, single, outputs, 0.1f);
  compare("amx and float32", tiles, single, outputs, 0.1f);
  compare("amx and avx512bf16", tiles, vectors, 1e-3f, 5e-3f);
}

}  // namespace

int main() {
  if (!ngp_amx.name) {
    std::printf("absent\n");
    return 0;
  }
  if (!amx_computes()) {
    std::printf("amx_computes finds a wrong product\n");
    return 1;
  }
  const Problem problems[] = {
      problem({32, 64, 16}, {31, 64, 64, 3}, 4, 200),  // tiles of all sizes, a last one of 8 samples
      problem({24, 32, 8}, {23, 32, 3}, 4, 97),        // depths that leave rests, an odd number of samples
      problem({48, 64, 16}, {24, 64, 5}, 3, 96), problem({2, 3, 2}, {2, 5, 1}, 1, 1)};
  for (const Problem& p : problems) {
    const std::vector<float> x = normal(size_t(p.num) * p.shape.color.widths[0], 0.5f);
    compare_all(p.run(ngp_portable), p.run(ngp_avx512bf16), p.run(ngp_amx), 0.03f);
    const auto alone = [&](const MlpKernels& kernels) {
      return run(kernels, p.shape.color, p.num, x, p.color_weights, p.v_channels);
    };
    compare_all(alone(mlp_portable), alone(mlp_avx512bf16), alone(mlp_amx), 0.1f);
  }
  std::printf("ok\n");
  return 0;
}
