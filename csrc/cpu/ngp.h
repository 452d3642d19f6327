// The interface between the operators of Instant-NGP's two MLPs and their kernels for each instruction set.
#pragma once
#include "mlp.h"

namespace nerftrain {

// Density MLP: features to 1 + G numbers; colour MLP: G of them and the direction's harmonics to K channels.
struct NgpShape {
  MlpShape density, color;
  int sh_degree;

  int num_features() const { return density.widths[0]; }
  int num_geometry() const { return density.widths[density.num_layers] - 1; }
  int num_channels() const { return color.widths[color.num_layers]; }
};

// Either of both may be none: then the scratch of a call holds them since an earlier one.
struct NgpWeights {
  const float* density;
  const float* color;
};

// features [N][F], geometry [N][G], directions [N][3], channels [N][K], density [N]; begin and end of a range of
// samples.
struct NgpKernels {
  const char* name;
  long (*scratch_floats)(const NgpShape&);   // of one thread
  long (*gradient_floats)(const NgpShape&);  // of one range's padded weight gradients
  // What colour needs is written too, unless geometry is none.
  void (*density)(const NgpShape&, const NgpWeights&, const float* features, float* density, float* geometry,
                  long begin, long end, float* scratch);
  void (*color)(const NgpShape&, const NgpWeights&, const float* geometry, const float* directions, float* channels,
                long begin, long end, float* scratch);
  void (*forward)(const NgpShape&, const NgpWeights&, const float* features, const float* directions, float* channels,
                  float* density, long begin, long end, float* scratch);
  void (*backward)(const NgpShape&, const NgpWeights&, const float* features, const float* directions,
                   const float* v_channels, const float* v_density, float* v_features, float* v_weights, long begin,
                   long end, float* scratch);
  void (*reduce)(const NgpShape&, const float* padded_parts, int parts, float* v_density_weights,
                 float* v_color_weights);
};

extern const NgpKernels ngp_portable;
NT_X86_KERNELS(NgpKernels, ngp, avx2);
NT_X86_KERNELS(NgpKernels, ngp, avx512);
NT_X86_KERNELS(NgpKernels, ngp, avx512bf16);
NT_X86_KERNELS(NgpKernels, ngp, amx);

// Whether AMX, where the CPU says that it has it, multiplies as it should.
bool amx_computes();

}  // namespace nerftrain
