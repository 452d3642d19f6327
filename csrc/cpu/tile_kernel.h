// Products of small matrices by AMX: tiles of 16 rows, each of 16 pairs of bfloat16 numbers, into 16 x 16 sums in
// float32. Takes the place of the blocks of registers in matrix_kernel.h, which includes it.
#pragma once

namespace {

// Tile registers: sums of up to four blocks of 16 columns beside each other; a block of A and one of B; and what is
// left of them where the depth is no multiple of 16 pairs.
enum { kSums = 0, kA = 4, kB = 5, kRestOfA = 6, kRestOfB = 7 };
constexpr int kBlock = 16;

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t num_rows[16] = {};

  explicit TileShapes(int rest) {
    for (int t = 0; t < 8; ++t) {
      num_rows[t] = kBlock;
      row_bytes[t] = 4 * kBlock;
    }
    if (rest == 0) return;
    row_bytes[kRestOfA] = uint16_t(4 * rest);
    num_rows[kRestOfB] = uint8_t(rest);
  }
};

// Has everything written to memory: gcc's intrinsics do not tell it what tile instructions read.
inline void settle(const void* read_next) { asm volatile("" : : "r"(read_next) : "memory"); }

// Holds this thread's tile registers for products. Their shapes outlive a product: loading them anew is slow.
struct TileRegisters {
  TileRegisters() = default;
  TileRegisters(const TileRegisters&) = delete;
  ~TileRegisters() {
    if (rest_in_shapes >= 0) _tile_release();
    rest_in_shapes = -1;
  }

  static void shape(int rest) {
    if (rest_in_shapes >= 0 && (rest == 0 || rest == rest_in_shapes)) return;  // without a rest its tiles are idle
    const TileShapes shapes(rest);
    settle(&shapes);
    _tile_loadconfig(&shapes);
    rest_in_shapes = rest;
  }

 private:
  static thread_local int rest_in_shapes;  // -1: there are no shapes yet
};

thread_local int TileRegisters::rest_in_shapes = -1;

typedef Element Row __attribute__((vector_size(64)));
typedef Element RowAnywhere __attribute__((vector_size(64), aligned(4), may_alias));  // as LanesAnywhere

// Swaps what lies off the diagonal in blocks of H x H of each block of 2H x 2H rows and columns.
template <int H>
inline void swap_blocks(Row* rows) {
  for (int i = 0; i < kBlock; ++i) {
    if (i & H) continue;
    const Row first = rows[i], second = rows[i + H];
#if defined(__clang__)
    for (int l = 0; l < kBlock; ++l) {
      rows[i][l] = l & H ? second[l - H] : first[l];
      rows[i + H][l] = l & H ? second[l] : first[l + H];
    }
#else
    Row upper, lower;  // places among the 16 numbers of the first row and the 16 of the second
    for (unsigned l = 0; l < kBlock; ++l) {
      upper[l] = l & H ? l - H + kBlock : l;
      lower[l] = l & H ? l + kBlock : l + H;
    }
    rows[i] = __builtin_shuffle(first, second, upper);
    rows[i + H] = __builtin_shuffle(first, second, lower);
#endif
  }
}

// 16 columns from m on of A(m, k) = a[m + k * a_step], as rows of `depth` numbers in `to`.
inline void transpose(const Element* a, long a_step, int depth, Element* to, long to_row) {
  for (int k = 0; k < depth; k += kBlock) {
    Row rows[kBlock] = {};
    for (int i = 0; i < kBlock && k + i < depth; ++i)
      rows[i] = *reinterpret_cast<const RowAnywhere*>(a + (k + i) * a_step);
    swap_blocks<8>(rows);
    swap_blocks<4>(rows);
    swap_blocks<2>(rows);
    swap_blocks<1>(rows);
    for (int i = 0; i < kBlock; ++i) *reinterpret_cast<RowAnywhere*>(to + i * to_row + k) = rows[i];
  }
}

// Adds the products of a block of A with up to four blocks of B; the numbers of tile registers are part of
// instructions, so that no function can take them.
#define NT_ADD_PRODUCTS(A, B, a, at)            \
  _tile_loadd(A, a, 4 * a_row);                 \
  _tile_loadd(B, at, 4 * b_row);                \
  _tile_dpbf16ps(0, A, B);                      \
  if (VECTORS > 1) {                            \
    _tile_loadd(B, at + kBlock, 4 * b_row);     \
    _tile_dpbf16ps(1, A, B);                    \
  }                                             \
  if (VECTORS > 2) {                            \
    _tile_loadd(B, at + 2 * kBlock, 4 * b_row); \
    _tile_dpbf16ps(2, A, B);                    \
  }                                             \
  if (VECTORS > 3) {                            \
    _tile_loadd(B, at + 3 * kBlock, 4 * b_row); \
    _tile_dpbf16ps(3, A, B);                    \
  }

// 16 rows and 16 VECTORS columns; a row of A is a_row from the next.
template <int VECTORS, class Put>
inline void tiles(int m, int m_end, int n, int depth, const Element* a, long a_row, const Element* b, long b_row,
                  const Put& put) {
  _tile_zero(0);
  if (VECTORS > 1) _tile_zero(1);
  if (VECTORS > 2) _tile_zero(2);
  if (VECTORS > 3) _tile_zero(3);
  const Element* at = b + n;
  int k = 0;
  for (; k + kBlock <= depth; k += kBlock, at += kBlock * b_row) {
    NT_ADD_PRODUCTS(4, 5, a + k, at)
  }
  if (k < depth) {
    NT_ADD_PRODUCTS(6, 7, a + k, at)
  }
  constexpr int kRow = kBlock * VECTORS;
  alignas(64) float out[kBlock * kRow];
  _tile_stored(0, out, 4 * kRow);
  if (VECTORS > 1) _tile_stored(1, out + kBlock, 4 * kRow);
  if (VECTORS > 2) _tile_stored(2, out + 2 * kBlock, 4 * kRow);
  if (VECTORS > 3) _tile_stored(3, out + 3 * kBlock, 4 * kRow);
  const auto hand = [&]<int ROWS>(int i, Lanes(&sum)[ROWS][VECTORS]) {
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < VECTORS; ++v) sum[r][v] = load(out + (i + r) * kRow + v * kLanes);
    put.template operator()<ROWS, VECTORS>(m + i, n, sum);
  };
  const int left = m_end - m < kBlock ? m_end - m : kBlock;
  for (int i = 0; i + 2 <= left; i += 2) {
    Lanes sum[2][VECTORS];
    hand(i, sum);
  }
  if (left % 2) {
    Lanes sum[1][VECTORS];
    hand(left - 1, sum);
  }
}

// As in matrix_kernel.h, while there are TileRegisters. Rows of A are read up to a multiple of 16: tiles of samples are
// filled up to it, and columns of activations (a_row of 1) are padded to it.
template <class Put>
inline void multiply(int m_end, int n_end, int depth, const Element* a, long a_row, long a_step, const Element* b,
                     long b_row, const Put& put) {
  TileRegisters::shape(depth % kBlock);
  alignas(64) Element turned[kBlock * (kTile / kPair)];
  for (int m = 0; m < m_end; m += kBlock) {
    const Element* rows = a + m * a_row;
    long row = a_row;
    if (a_step != 1) {
      row = kTile / kPair;
      transpose(rows, a_step, depth, turned, row);
      rows = turned;
    }
    settle(rows);
    int n = 0;
    for (; n + 4 * kBlock <= n_end; n += 4 * kBlock) tiles<4>(m, m_end, n, depth, rows, row, b, b_row, put);
    for (; n + 2 * kBlock <= n_end; n += 2 * kBlock) tiles<2>(m, m_end, n, depth, rows, row, b, b_row, put);
    for (; n < n_end; n += kBlock) tiles<1>(m, m_end, n, depth, rows, row, b, b_row, put);
  }
}

#undef NT_ADD_PRODUCTS

}  // namespace
