// Checks csrc/common/launch.h on the host; prints the first failure and returns 1.
#include <cstdio>
#include <vector>

#include "hash_encoding.h"
#include "launch.h"

using namespace nerftrain;

static_assert(kMaxLevels <= kMaxBlocksY, "levels are the grid's second dimension");

#define CHECK(condition, ...)                           \
  if (!(condition)) {                                   \
    std::printf("line %d: %s: ", __LINE__, #condition); \
    std::printf(__VA_ARGS__);                           \
    return 1;                                           \
  }

// Runs a grid as each_kernel does and counts how often each piece is visited.
static std::vector<int> visits(int64_t n, uint32_t threads) {
  std::vector<int> counts(n, 0);
  for (uint32_t block = 0; block < blocks_for(n, threads); ++block)
    for (uint32_t thread = 0; thread < threads; ++thread)
      if (const int64_t i = piece_of(block, threads, thread); i < n) ++counts.at(i);
  return counts;
}

int main() {
  for (int64_t n = 0; n < 200; ++n)
    for (uint32_t threads = 1; threads < 40; ++threads)
      for (const int count : visits(n, threads))
        CHECK(count == 1, "n=%ld threads=%u visits=%d\n", long(n), threads, count);

  const int64_t two31 = int64_t(1) << 31, largest = kMaxBlocksX * 256;
  const int64_t sizes[][2] = {{0, 0},
                              {1, 1},
                              {256, 1},
                              {257, 2},
                              {two31 - 1, 1 << 23},
                              {two31, 1 << 23},
                              {two31 + 1, (1 << 23) + 1},
                              {int64_t(1) << 32, 1 << 24},
                              {largest, kMaxBlocksX}};
  for (const auto& [n, blocks] : sizes) {
    CHECK(blocks_for(n, 256) == blocks, "n=%ld blocks=%ld\n", long(n), long(blocks_for(n, 256)));
    CHECK(fits_grid(n, 256), "n=%ld\n", long(n));
  }
  CHECK(!fits_grid(largest + 1, 256) && !fits_grid(INT64_MAX, 1024), "\n");

  // On either side of 2^31 pieces and of 2^32, and the last of the largest grid.
  CHECK(piece_of((1 << 23) - 1, 256, 255) == two31 - 1, "\n");
  CHECK(piece_of(1 << 23, 256, 0) == two31, "\n");
  CHECK(piece_of(1 << 24, 256, 0) == 2 * two31, "\n");
  CHECK(piece_of(uint32_t(kMaxBlocksX - 1), 256, 255) == largest - 1, "\n");
  std::printf("ok\n");
  return 0;
}
