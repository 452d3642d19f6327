// AMX for a CPU that has none: instructions that it refuses (SIGILL) are decoded and done here, as Intel's manual says
// (Software Developer's Manual, volume 2), and what AMX would refuse ends the process. So a library runs as it was
// compiled, not its source alone. A CPU that has AMX is asked for it and left to itself.
#include <ucontext.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "cpu/isa.h"

namespace {

struct Tiles {
  bool configured;
  int rows[8], row_bytes[8];
  uint8_t data[8][16][64];
};

// Of this thread. initial-exec: the handler must not allocate.
thread_local Tiles tiles __attribute__((tls_model("initial-exec")));

[[noreturn]] void refuse(const char* why, const uint8_t* code) {
  char line[160];
  const int length = std::snprintf(line, sizeof(line), "AMX refuses %02x %02x %02x %02x %02x %02x: %s\n", code[0],
                                   code[1], code[2], code[3], code[4], code[5], why);
  if (write(STDERR_FILENO, line, size_t(length)) < 0) _exit(98);
  _exit(99);
}

// An instruction with a three-byte VEX prefix, its fields named as in the manual.
struct Instruction {
  const uint8_t *start, *next;
  int map, w, l, pp, opcode, vvvv, mod, reg, rm;
  bool has_sib = false;
  uint64_t address = 0, stride = 0;  // where mod says memory: base and displacement, and the index times its scale

  Instruction(const uint8_t* code, const greg_t* registers) : start(code), next(code + 5) {
    if (code[0] != 0xc4) refuse("no instruction of AMX", code);
    const bool x = !(code[1] & 0x40), b = !(code[1] & 0x20);
    map = code[1] & 31;
    w = code[2] >> 7, vvvv = ~code[2] >> 3 & 15, l = code[2] >> 2 & 1, pp = code[2] & 3;
    opcode = code[3];
    mod = code[4] >> 6, reg = code[4] >> 3 & 7, rm = code[4] & 7;
    if (mod == 3) {
      if (!(code[1] & 0x80) || b) reg = rm = 8;  // no tile has that number
      return;
    }
    const auto number = [&](int of) { return uint64_t(registers[of]); };
    has_sib = rm == 4;
    const int base = has_sib ? *next & 7 : rm;
    if (has_sib) {
      const int index = (*next >> 3 & 7) | x << 3;
      if (index != 4) stride = number(kRegisters[index]) << (*next >> 6);
      ++next;
    }
    const bool no_base = base == 5 && mod == 0;
    if (!no_base) address = number(kRegisters[base | b << 3]);
    if (mod == 1) {
      address += uint64_t(int64_t(int8_t(*next++)));
    } else if (mod == 2 || no_base) {
      int32_t displacement;
      std::memcpy(&displacement, next, 4);
      next += 4;
      address += uint64_t(int64_t(displacement)) + (no_base && !has_sib ? uint64_t(next) : 0);
    }
  }

  bool is(int op, int prefix, bool of_memory) const {
    return map == 2 && !w && !l && opcode == op && pp == prefix && (mod != 3) == of_memory;
  }

  static constexpr int kRegisters[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                         REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
};

void load_shapes(const Instruction& in) {
  const auto* from = reinterpret_cast<const uint8_t*>(in.address);
  tiles = {};
  if (from[0] == 0) return;
  if (from[0] != 1 || from[1] != 0) refuse("a palette other than 1, or a row to go on with", in.start);
  tiles.configured = true;
  for (int i = 2; i < 64; ++i) {
    const bool of_bytes = i >= 16 && i < 32, of_rows = i >= 48 && i < 56;
    if (!of_bytes && !of_rows && from[i]) refuse("a reserved byte is not 0", in.start);
  }
  for (int t = 0; t < 8; ++t) {
    tiles.row_bytes[t] = from[16 + 2 * t] | from[17 + 2 * t] << 8;
    tiles.rows[t] = from[48 + t];
    const bool fits = tiles.rows[t] <= 16 && tiles.row_bytes[t] <= 64;
    if (!fits || !tiles.rows[t] != !tiles.row_bytes[t]) refuse("the shape of a tile", in.start);
  }
}

void check(int tile, const Instruction& in) {
  if (!tiles.configured || tile > 7 || !tiles.rows[tile] || tiles.row_bytes[tile] % 4)
    refuse("a tile without a shape", in.start);
}

void move(const Instruction& in, bool store) {
  check(in.reg, in);
  if (!in.has_sib) refuse("tiles move by base and index", in.start);
  if (!store) std::memset(tiles.data[in.reg], 0, sizeof(tiles.data[in.reg]));
  for (int row = 0; row < tiles.rows[in.reg]; ++row) {
    auto* memory = reinterpret_cast<uint8_t*>(in.address + uint64_t(row) * in.stride);
    uint8_t* tile = tiles.data[in.reg][row];
    std::memcpy(store ? memory : tile, store ? tile : memory, size_t(tiles.row_bytes[in.reg]));
  }
}

// Numbers too small for float32's full precision count as zero.
float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x; }

float float_of(uint16_t bfloat16) {
  const uint32_t bits = uint32_t(bfloat16) << 16;
  float number;
  std::memcpy(&number, &bits, 4);
  return flushed(number);
}

// TDPBF16PS: what is first of each pair and what is second are summed apart.
void multiply(const Instruction& in) {
  const int to = in.reg, a = in.rm, b = in.vvvv;
  if (to == a || to == b || a == b) refuse("tiles that are one", in.start);
  for (int tile : {to, a, b}) check(tile, in);
  const int rows = tiles.rows[to], columns = tiles.row_bytes[to] / 4, depth = tiles.row_bytes[a] / 4;
  if (tiles.rows[a] != rows || tiles.row_bytes[b] != 4 * columns || tiles.rows[b] != depth)
    refuse("shapes that do not fit", in.start);
  for (int m = 0; m < rows; ++m) {
    float first[16] = {}, second[16] = {}, sums[16];
    uint16_t of_a[32], of_b[32];
    std::memcpy(of_a, tiles.data[a][m], 64);
    for (int k = 0; k < depth; ++k) {
      std::memcpy(of_b, tiles.data[b][k], 64);
      for (int n = 0; n < columns; ++n) {
        first[n] = flushed(std::fma(float_of(of_a[2 * k]), float_of(of_b[2 * n]), first[n]));
        second[n] = flushed(std::fma(float_of(of_a[2 * k + 1]), float_of(of_b[2 * n + 1]), second[n]));
      }
    }
    std::memcpy(sums, tiles.data[to][m], 64);
    for (int n = 0; n < columns; ++n) sums[n] = flushed(flushed(sums[n]) + flushed(first[n] + second[n]));
    std::memcpy(tiles.data[to][m], sums, 64);
  }
}

void play(int, siginfo_t*, void* context) {
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const Instruction in(reinterpret_cast<const uint8_t*>(registers[REG_RIP]), registers);
  constexpr int kNone = 0, k66 = 1, kF3 = 2, kF2 = 3;  // prefixes
  if (in.is(0x49, kNone, true)) {
    load_shapes(in);
  } else if (in.is(0x49, kNone, false) && in.reg == 0 && in.rm == 0) {
    tiles = {};  // TILERELEASE
  } else if (in.is(0x49, kF2, false)) {
    check(in.reg, in);  // TILEZERO
    std::memset(tiles.data[in.reg], 0, sizeof(tiles.data[in.reg]));
  } else if (in.is(0x4b, kF2, true) || in.is(0x4b, k66, true)) {
    move(in, false);
  } else if (in.is(0x4b, kF3, true)) {
    move(in, true);
  } else if (in.is(0x5c, kF3, false)) {
    multiply(in);
  } else {
    refuse("unknown", in.start);
  }
  registers[REG_RIP] = greg_t(in.next);
}

__attribute__((constructor)) void begin() {
  if (nerftrain::has_amx()) return;
  struct sigaction action = {};
  action.sa_sigaction = play;
  action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART;
  sigaction(SIGILL, &action, nullptr);
}

}  // namespace
