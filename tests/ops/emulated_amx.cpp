// AMX for a CPU that has none: instructions that it refuses (SIGILL) are decoded and done here. So a library runs as it
// was compiled, not its source alone. A CPU that has AMX is asked for it and left to itself.
#include <ucontext.h>

#include <csignal>
#include <cstdint>
#include <cstring>

#include "cpu/isa.h"
#include "emulated_tiles.h"

namespace {

// An instruction with a three-byte VEX prefix, its fields named as in the manual.
struct Instruction {
  const uint8_t* next;
  int map, w, l, pp, opcode, vvvv, mod, reg, rm;
  bool has_sib = false;
  uint64_t address = 0, stride = 0;  // where mod says memory: base and displacement, and the index times its scale

  Instruction(const uint8_t* code, const greg_t* registers) : next(code + 5) {
    if (code[0] != 0xc4) emulated::refuse("an instruction that is none of AMX");
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

void play(int, siginfo_t*, void* context) {
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const Instruction in(reinterpret_cast<const uint8_t*>(registers[REG_RIP]), registers);
  constexpr int kNone = 0, k66 = 1, kF3 = 2, kF2 = 3;  // prefixes
  auto* memory = reinterpret_cast<void*>(in.address);
  const auto stride = int64_t(in.stride);
  if (in.is(0x49, kNone, true)) {  // LDTILECFG
    emulated::load_shapes(memory);
  } else if (in.is(0x49, kNone, false) && in.reg == 0 && in.rm == 0) {  // TILERELEASE
    emulated::release();
  } else if (in.is(0x49, kF2, false)) {  // TILEZERO
    emulated::zero(in.reg);
  } else if (in.has_sib && (in.is(0x4b, kF2, true) || in.is(0x4b, k66, true))) {  // TILELOADD, TILELOADDT1
    emulated::load(in.reg, memory, stride);
  } else if (in.has_sib && in.is(0x4b, kF3, true)) {  // TILESTORED
    emulated::store(in.reg, memory, stride);
  } else if (in.is(0x5c, kF3, false)) {  // TDPBF16PS
    emulated::multiply(in.reg, in.rm, in.vvvv);
  } else {
    emulated::refuse("an instruction that is not known here");
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
