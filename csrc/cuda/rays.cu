#include "../operators/rays.h"
#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CUDA, m) {
  m.impl("draw_pixels", TORCH_BOX(&nerftrain::draw_pixels<nerftrain::Cuda>));
  m.impl("pixel_rays", TORCH_BOX(&nerftrain::pixel_rays<nerftrain::Cuda>));
  m.impl("lens_rays", TORCH_BOX(&nerftrain::lens_rays<nerftrain::Cuda>));
  m.impl("pixel_colors", TORCH_BOX(&nerftrain::pixel_colors<nerftrain::Cuda>));
}
