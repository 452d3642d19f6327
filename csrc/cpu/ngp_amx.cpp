// AMX: products of bfloat16 tiles; what lies between them is AVX-512's.
#include "ngp.h"

#if defined(__AMX_BF16__)
#define NT_LANES 16
#define NT_VECTORS 4
#define NT_ROWS 16
#define NT_BF16
#define NT_AMX
#include "ngp_kernel.h"

const nerftrain::NgpKernels nerftrain::ngp_amx = {"amx", scratch_floats, gradient_floats, density,
                                                  color, forward,        backward,        reduce};

// Multiplies matrices whose product is known exactly: a depth that leaves a rest, rows along either side.
bool nerftrain::amx_computes() {
  constexpr int kDepth = 19, kColumns = 32;
  static Element a[16 * 24], turned[24 * 16], b[24 * kColumns];
  static float c[16 * kColumns], other[16 * kColumns];
  const auto number = [](int i) { return float(i * 7 % 13 - 6); };
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < kDepth; ++k) {
      a[m * 24 + k] = element_of(number(m + 2 * k), number(3 * m + k));
      turned[k * 16 + m] = a[m * 24 + k];
    }
  for (int k = 0; k < kDepth; ++k)
    for (int n = 0; n < kColumns; ++n) b[k * kColumns + n] = element_of(number(k + n), number(5 * k + n));
  const TileRegisters registers;
  multiply(16, kColumns, kDepth, a, 24, 1, b, kColumns, WriteTo{c, kColumns});
  multiply(16, kColumns, kDepth, turned, 1, 16, b, kColumns, WriteTo{other, kColumns});
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < kColumns; ++n) {
      float sum = 0.f;
      for (int k = 0; k < kDepth; ++k) sum += number(m + 2 * k) * number(k + n) + number(3 * m + k) * number(5 * k + n);
      if (c[m * kColumns + n] != sum || other[m * kColumns + n] != sum) return false;
    }
  return true;
}
#else  // a compiler or a machine that knows no AMX
const nerftrain::NgpKernels nerftrain::ngp_amx = {};
bool nerftrain::amx_computes() { return false; }
#endif
