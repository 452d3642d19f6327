#include "../operators/rays.h"

#include "backend.h"

STABLE_TORCH_LIBRARY_IMPL(nerftrain, CPU, m) {
  m.impl("draw_pixels", TORCH_BOX(&nerftrain::draw_pixels<nerftrain::Cpu>));
  m.impl("pixel_rays", TORCH_BOX(&nerftrain::pixel_rays<nerftrain::Cpu>));
  m.impl("lens_rays", TORCH_BOX(&nerftrain::lens_rays<nerftrain::Cpu>));
  m.impl("pixel_colors", TORCH_BOX(&nerftrain::pixel_colors<nerftrain::Cpu>));
}
