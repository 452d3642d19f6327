// Plays a GPU for CUDA kernels as nvcc has compiled them: runs their PTX on the host, warp by warp, 32 lanes at a time.
// What only a GPU's compiler sees of the sources is run so, too, and what is done is counted.
//
// Lanes of a warp that stand at different instructions go on one group after the other, the one that is behind first;
// what lanes do together waits for all that are named. Memory is checked: what one thread has written another may read
// only behind a barrier that both have passed, and what one has read another may write only behind one; blocks have no
// barrier between them, and what lies beyond the tensors that an op was given is nobody's (global_memory.h). The
// instructions are those that the project's kernels are made of (PTX ISA 9.0); any other ends the process.
#pragma once
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "global_memory.h"

namespace played {

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

[[noreturn]] inline void fail(const std::string& why) {
  std::fprintf(stderr, "played PTX: %s\n", why.c_str());
  std::abort();
}

inline bool has(uint32_t mask, int lane) { return mask >> lane & 1; }

// What a kernel has done, in all warps.
struct Counts {
  int64_t warps = 0;
  int64_t instructions = 0, of_lanes = 0;           // issued to a warp; by its lanes
  int64_t global_requests = 0, global_sectors = 0;  // of 32 bytes
  int64_t shared_requests = 0, shared_passes = 0;   // as many as words of the bank that has the most
  double microseconds = 0;                          // that it would take, where that is asked for (timed_ptx.h)
};

struct Warp;

struct Instruction {
  using Run = void (*)(Warp&, const Instruction&, uint32_t mask);
  enum Kind { kPlain, kBranch, kReturn, kTogether, kBarrier };
  Kind kind = kPlain;
  Run run = nullptr;
  int guard = -1;  // the register of a predicate
  bool unless = false;
  int out[5] = {-1, -1, -1, -1, -1}, in[12] = {};
  int num_out = 0, num_in = 0;
  int64_t offset = 0;              // of an address
  int target = -1;                 // of a branch
  mutable Tensors::Extent last{};  // where in global memory it has been
  int members = -1;                // the register that names the lanes that do it together; -1: all of the warp
  std::string text;
};

struct Parameter {
  size_t offset, size;
};

struct Kernel {
  std::string name;
  std::map<std::string, Parameter> parameters;
  size_t parameter_bytes = 0;
  std::vector<Instruction> code;
  std::vector<std::pair<int, uint64_t>> constants;  // registers that hold them
  int num_registers = 0;
  Counts counts;
};

// An instruction that a warp has issued.
struct Issued {
  int at;
  int first = 0, num = 0;  // of the sectors that it has touched; of shared memory the passes
};

struct Trace {
  std::vector<Issued> issued;
  std::vector<uint64_t> sectors;
};

struct Block {
  int32_t number = 0;
  std::vector<uint8_t> shared;
  std::vector<Touched> halves;  // of the words of shared memory
  int64_t barriers = 0;
};

struct Warp {
  Kernel* kernel = nullptr;
  Block* block = nullptr;
  const uint8_t* parameters = nullptr;
  std::vector<std::array<uint64_t, kLanes>> registers;
  std::array<int, kLanes> at{};
  uint32_t alive = kAllLanes, held = 0;
  int number = 0;
  int64_t barriers = 0;  // of the warp's own
  int64_t num_issued = 0;
  Trace* trace = nullptr;  // where somebody asks

  int thread(int lane) const { return number * kLanes + lane; }
};

template <class T>
T get(const Warp& warp, int reg, int lane) {
  T value;
  std::memcpy(&value, &warp.registers[reg][lane], sizeof(T));
  return value;
}

template <class T>
void set(Warp& warp, int reg, int lane, T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  warp.registers[reg][lane] = bits;
}

// Instructions that compute: each lane's result from its own operands.
template <class R, class... A>
struct Each {
  template <auto f>
  static void run(Warp& warp, const Instruction& i, uint32_t mask) {
    for (int lane = 0; lane < kLanes; ++lane)
      if (has(mask, lane)) call<f>(warp, i, lane, std::index_sequence_for<A...>{});
  }
  template <auto f, size_t... n>
  static void call(Warp& warp, const Instruction& i, int lane, std::index_sequence<n...>) {
    set<R>(warp, i.out[0], lane, R(f(get<A>(warp, i.in[n], lane)...)));
  }
};

// The sum (or a product and a sum) rounded down, up or to zero, by the nearest and what it lacks.
inline float directed(double product, double c, int direction) {
  const double sum = product + c, part = sum - product;
  const double lost = (product - (sum - part)) + (c - part);  // sum + lost is exact (Knuth)
  float nearest = float(sum);
  const double apart = double(nearest) - sum;  // exact
  const bool above = apart > lost, below = apart < lost;
  if (direction == 0) direction = nearest > 0 ? -1 : 1;
  if (direction < 0 && above) nearest = std::nextafterf(nearest, -INFINITY);
  if (direction > 0 && below) nearest = std::nextafterf(nearest, INFINITY);
  return nearest;
}

template <class To, class From>
To to_integer(From x) {  // towards zero and into range; NaN becomes zero
  if (std::isnan(x)) return 0;
  const double low = double(std::numeric_limits<To>::min()), high = double(std::numeric_limits<To>::max());
  if (double(x) <= low) return std::numeric_limits<To>::min();
  if (double(x) >= high) return std::numeric_limits<To>::max();
  return To(x);
}

template <class T>
void add_arithmetic(std::map<std::string, Instruction::Run>& table, const std::string& type) {
  const auto set = [&](const char* name, Instruction::Run run) { table[name + ("." + type)] = run; };
  set("min", Each<T, T, T>::template run<[](T a, T b) {
        if constexpr (std::is_floating_point_v<T>) return std::fmin(a, b);
        return a < b ? a : b;
      }>);
  set("max", Each<T, T, T>::template run<[](T a, T b) {
        if constexpr (std::is_floating_point_v<T>) return std::fmax(a, b);
        return (a > b) ? a : b;
      }>);
  set("setp.eq", Each<bool, T, T>::template run<[](T a, T b) { return a == b; }>);
  set("setp.ne", Each<bool, T, T>::template run<[](T a, T b) { return (a < b || a > b); }>);
  set("setp.lt", Each<bool, T, T>::template run<[](T a, T b) { return a < b; }>);
  set("setp.le", Each<bool, T, T>::template run<[](T a, T b) { return a <= b; }>);
  set("setp.gt", Each<bool, T, T>::template run<[](T a, T b) { return (a > b); }>);
  set("setp.ge", Each<bool, T, T>::template run<[](T a, T b) { return a >= b; }>);
  set("selp", Each<T, T, T, bool>::template run<[](T a, T b, bool first) { return first ? a : b; }>);
  set("mov", Each<T, T>::template run<[](T a) { return a; }>);
  if constexpr (std::is_floating_point_v<T>) {
    const Instruction::Run add = Each<T, T, T>::template run<[](T a, T b) { return a + b; }>;
    set("add", add);
    set("add.rn", add);
    const Instruction::Run multiply = Each<T, T, T>::template run<[](T a, T b) { return a * b; }>;
    set("mul", multiply);
    set("mul.rn", multiply);
    set("sub", Each<T, T, T>::template run<[](T a, T b) { return a - b; }>);
    set("fma.rn", Each<T, T, T, T>::template run<[](T a, T b, T c) { return std::fma(a, b, c); }>);
    set("div.rn", Each<T, T, T>::template run<[](T a, T b) { return a / b; }>);
    set("rcp.rn", Each<T, T>::template run<[](T a) { return 1 / a; }>);
    set("rcp.approx.ftz", Each<T, T>::template run<[](T a) { return 1 / a; }>);
    set("sqrt.rn", Each<T, T>::template run<[](T a) { return std::sqrt(a); }>);
    set("lg2.approx", Each<T, T>::template run<[](T a) { return std::log2(a); }>);
    set("ex2.approx", Each<T, T>::template run<[](T a) { return std::exp2(a); }>);
    set("ex2.approx.ftz", Each<T, T>::template run<[](T a) { return std::exp2(a); }>);
    set("sin.approx", Each<T, T>::template run<[](T a) { return std::sin(a); }>);
    set("abs", Each<T, T>::template run<[](T a) { return std::fabs(a); }>);
    set("neg", Each<T, T>::template run<[](T a) { return -a; }>);
    set("setp.neu", Each<bool, T, T>::template run<[](T a, T b) { return !(a == b); }>);
    set("setp.ltu", Each<bool, T, T>::template run<[](T a, T b) { return !(a >= b); }>);
    set("setp.leu", Each<bool, T, T>::template run<[](T a, T b) { return !(a > b); }>);
    set("setp.gtu", Each<bool, T, T>::template run<[](T a, T b) { return !(a <= b); }>);
    set("setp.geu", Each<bool, T, T>::template run<[](T a, T b) { return !(a < b); }>);
    set("setp.nan", Each<bool, T, T>::template run<[](T a, T b) { return std::isnan(a) || std::isnan(b); }>);
  } else {
    using W = std::make_unsigned_t<T>;  // which may wrap around
    set("add", Each<W, W, W>::template run<[](W a, W b) { return W(a + b); }>);
    set("sub", Each<W, W, W>::template run<[](W a, W b) { return W(a - b); }>);
    set("mul.lo", Each<W, W, W>::template run<[](W a, W b) { return W(uint64_t(a) * b); }>);
    set("mad.lo", Each<W, W, W, W>::template run<[](W a, W b, W c) { return W(uint64_t(a) * b + c); }>);
    set("neg", Each<W, W>::template run<[](W a) { return W(0 - a); }>);
    set("div", Each<T, T, T>::template run<[](T a, T b) {
          if (b == 0) return T(-1);
          return std::is_signed_v<T> && b == T(-1) ? T(W(0) - W(a)) : T(a / b);
        }>);
    set("rem", Each<T, T, T>::template run<[](T a, T b) {
          return b == 0 ? a : std::is_signed_v<T> && b == T(-1) ? T(0) : T(a % b);
        }>);
    set("shr", Each<T, T, uint32_t>::template run<[](T a, uint32_t by) {
          const uint32_t bits = 8 * sizeof(T);
          return by < bits ? T(a >> by) : T(std::is_signed_v<T> && a < 0 ? -1 : 0);
        }>);
    if constexpr (std::is_unsigned_v<T>)
      set("bfind.shiftamt", Each<uint32_t, T>::template run<[](T a) { return a ? std::countl_zero(a) : ~0u; }>);
    if constexpr (sizeof(T) == 4) {
      using D = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
      set("mul.wide", Each<D, T, T>::template run<[](T a, T b) { return D(a) * b; }>);
      set("mad.wide",
          Each<uint64_t, T, T, uint64_t>::template run<[](T a, T b, uint64_t c) { return uint64_t(D(a) * b) + c; }>);
      set("mul.hi", Each<T, T, T>::template run<[](T a, T b) { return T(D(a) * b >> 32); }>);
    }
  }
}

template <class T>
void add_bits(std::map<std::string, Instruction::Run>& table, const std::string& type) {
  const auto set = [&](const char* name, Instruction::Run run) { table[name + ("." + type)] = run; };
  set("and", Each<T, T, T>::template run<[](T a, T b) { return T(a & b); }>);
  set("or", Each<T, T, T>::template run<[](T a, T b) { return T(a | b); }>);
  set("xor", Each<T, T, T>::template run<[](T a, T b) { return T(a ^ b); }>);
  set("not", Each<T, T>::template run<[](T a) { return std::is_same_v<T, bool> ? T(!a) : T(~a); }>);
  using Given = std::conditional_t<std::is_same_v<T, bool>, uint8_t, T>;  // a constant, -1, say
  set("mov", Each<T, Given>::template run<[](Given a) { return T(a); }>);
  if constexpr (!std::is_same_v<T, bool>) {
    set("selp", Each<T, T, T, bool>::template run<[](T a, T b, bool first) { return first ? a : b; }>);
    set("setp.eq", Each<bool, T, T>::template run<[](T a, T b) { return a == b; }>);
    set("setp.ne", Each<bool, T, T>::template run<[](T a, T b) { return a != b; }>);
    set("shl",
        Each<T, T, uint32_t>::template run<[](T a, uint32_t by) { return by < 8 * sizeof(T) ? T(a << by) : T(0); }>);
    set("shr",
        Each<T, T, uint32_t>::template run<[](T a, uint32_t by) { return by < 8 * sizeof(T) ? T(a >> by) : T(0); }>);
    set("clz", Each<uint32_t, T>::template run<[](T a) { return std::countl_zero(a); }>);
    set("brev", Each<T, T>::template run<[](T a) {
          T reversed = 0;
          for (size_t bit = 0; bit < 8 * sizeof(T); ++bit) reversed = T(reversed << 1 | (a >> bit & 1));
          return reversed;
        }>);
    set("popc", Each<uint32_t, T>::template run<[](T a) { return std::popcount(a); }>);
    set("bfi", Each<T, T, T, uint32_t, uint32_t>::template run<[](T a, T b, uint32_t from, uint32_t num) {
          const uint32_t bits = 8 * sizeof(T);
          if (from >= bits || num == 0) return b;
          const T mask = T((num >= bits ? T(-1) : T((T(1) << num) - 1)) << from);
          return T((b & ~mask) | (T(a << from) & mask));
        }>);
  }
}

// Conversions of a type to all others: integers are cut off or widened by their own sign.
template <class From>
void add_conversions(std::map<std::string, Instruction::Run>& table, const std::string& from) {
  const auto to = [&]<class To>(const std::string& name) {
    if constexpr (std::is_integral_v<To> && std::is_integral_v<From>) {
      table["cvt." + name + "." + from] = Each<To, From>::template run<[](From a) { return To(a); }>;
    } else if constexpr (std::is_integral_v<To>) {
      table["cvt.rzi." + name + "." + from] = Each<To, From>::template run<[](From a) { return to_integer<To>(a); }>;
    } else {
      const bool exact = std::is_same_v<From, float> && std::is_same_v<To, double>;
      table[(exact ? "cvt." : "cvt.rn.") + name + "." + from] =
          Each<To, From>::template run<[](From a) { return To(a); }>;
    }
  };
  to.template operator()<int16_t>("s16");
  to.template operator()<int32_t>("s32");
  to.template operator()<int64_t>("s64");
  to.template operator()<uint16_t>("u16");
  to.template operator()<uint32_t>("u32");
  to.template operator()<uint64_t>("u64");
  to.template operator()<float>("f32");
  to.template operator()<double>("f64");
}

inline float of_half(uint16_t bits) {
  static const std::vector<float> all = [] {
    std::vector<float> numbers(1 << 16);
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = float(std::bit_cast<_Float16>(uint16_t(i)));
    return numbers;
  }();
  return all[bits];
}
inline uint16_t to_half(float x) { return std::bit_cast<uint16_t>(_Float16(x)); }

// A pair of them: what is beyond their range becomes the largest in it, NaN stays NaN.
template <bool kRectified>
uint32_t saturated(float high, float low) {
  const auto half = [](float x) -> uint32_t {
    if (std::isnan(x)) return 0x7fff;
    if (kRectified && !(x > 0)) x = 0;
    return to_half(std::fmax(-65504.f, std::fmin(x, 65504.f)));
  };
  return half(high) << 16 | half(low);
}

// ------------------------------------------------------------------------------------------------ memory

enum Space { kGlobal, kShared, kParameter };
// Of some numbers of the lanes, those that differ from each other.
struct Distinct {
  uint64_t numbers[8 * kLanes];
  int num = 0;

  void add(uint64_t number) { numbers[num++] = number; }
  int count() {
    std::sort(numbers, numbers + num);
    return num = int(std::unique(numbers, numbers + num) - numbers);
  }
};

inline void count_global(Warp& warp, const Instruction& i, uint32_t mask, size_t bytes) {
  Distinct sectors;
  for (int lane = 0; lane < kLanes; ++lane)
    if (has(mask, lane)) {
      const uint64_t first = get<uint64_t>(warp, i.in[0], lane) + i.offset;
      for (uint64_t sector = first / 32; sector <= (first + bytes - 1) / 32; ++sector) sectors.add(sector);
    }
  warp.kernel->counts.global_requests += 1;
  warp.kernel->counts.global_sectors += sectors.count();
  if (warp.trace) {
    warp.trace->issued.back().first = int(warp.trace->sectors.size());
    warp.trace->issued.back().num = sectors.num;
    warp.trace->sectors.insert(warp.trace->sectors.end(), sectors.numbers, sectors.numbers + sectors.num);
  }
}

inline Toucher toucher(const Warp& warp, int lane) {
  const Block& block = *warp.block;
  return {block.number, uint16_t(warp.thread(lane)), uint16_t(block.barriers), uint32_t(warp.barriers)};
}

[[noreturn]] inline void fail_at(const Warp& warp, const Instruction& i, const std::string& why) {
  fail(warp.kernel->name + ": " + why + ": " + i.text);
}

inline void check_race(const Warp& warp, const Instruction& i, const char* other) {
  if (other)
    fail(warp.kernel->name + ": a race: " + i.text + " after another thread's " + other + " without a barrier");
}

inline void check_shared(Warp& warp, int lane, uint32_t address, size_t bytes, Touch how, const Instruction& i) {
  Block& block = *warp.block;
  if (address + bytes > block.shared.size()) fail_at(warp, i, "beyond shared memory");
  if (address % bytes) fail_at(warp, i, "not aligned");
  // Halves of words are told apart, smaller parts are not.
  for (size_t half = 0; half < std::max<size_t>(bytes / 2, 1); ++half)
    check_race(warp, i, block.halves[address / 2 + half].touch(how, toucher(warp, lane)));
}

// As many as there are words of the bank that has the most.
inline int passes_of(Distinct& words) {
  int of_bank[32] = {};
  for (int n = words.count() - 1; n >= 0; --n) ++of_bank[words.numbers[n] % 32];
  return *std::max_element(of_bank, of_bank + 32);
}

inline void count_passes(Warp& warp, int passes) {
  warp.kernel->counts.shared_requests += 1;
  warp.kernel->counts.shared_passes += passes;
  if (warp.trace) warp.trace->issued.back().num = passes;
}

inline void count_shared(Warp& warp, const Instruction& i, uint32_t mask, size_t bytes) {
  int passes = 0;
  for (size_t part = 0; part < std::max<size_t>(bytes / 4, 1); ++part) {
    Distinct words;
    for (int lane = 0; lane < kLanes; ++lane)
      if (has(mask, lane)) words.add(uint32_t(get<uint64_t>(warp, i.in[0], lane) + i.offset) / 4 + part);
    passes += passes_of(words);
  }
  count_passes(warp, passes);
}

inline void check_global(Warp& warp, int lane, uint64_t address, size_t bytes, Touch how, const Instruction& i) {
  if (address % bytes) fail_at(warp, i, "not aligned");
  if (!tensors().hold(address, bytes, how != kReads, i.last))
    fail_at(warp, i, "beyond the tensors that it may touch so");
  check_race(warp, i, touches().touch(address, bytes, how, toucher(warp, lane)));
}

template <Space kSpace>
uint8_t* address_of(Warp& warp, const Instruction& i, int lane, size_t bytes, Touch how) {
  const uint64_t address = (i.num_in ? get<uint64_t>(warp, i.in[0], lane) : 0) + uint64_t(i.offset);
  if constexpr (kSpace == kParameter) {
    if (address + bytes > warp.kernel->parameter_bytes) fail(warp.kernel->name + ": beyond the parameters: " + i.text);
    return const_cast<uint8_t*>(warp.parameters) + address;
  }
  if constexpr (kSpace == kShared) {
    check_shared(warp, lane, uint32_t(address), bytes, how, i);
    return warp.block->shared.data() + uint32_t(address);
  }
  check_global(warp, lane, address, bytes, how, i);
  return reinterpret_cast<uint8_t*>(address);
}

// Numbers are widened to R, as a register holds them.
template <class T, class R, Space kSpace, int kNum>
void load(Warp& warp, const Instruction& i, uint32_t mask) {
  if (kSpace == kGlobal) count_global(warp, i, mask, kNum * sizeof(T));
  if (kSpace == kShared) count_shared(warp, i, mask, kNum * sizeof(T));
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    T values[kNum];
    std::memcpy(values, address_of<kSpace>(warp, i, lane, sizeof(values), kReads), sizeof(values));
    for (int n = 0; n < kNum; ++n) set<R>(warp, i.out[n], lane, R(values[n]));
  }
}

template <class T, Space kSpace, int kNum>
void store(Warp& warp, const Instruction& i, uint32_t mask) {
  if (kSpace == kGlobal) count_global(warp, i, mask, kNum * sizeof(T));
  if (kSpace == kShared) count_shared(warp, i, mask, kNum * sizeof(T));
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    T values[kNum];
    for (int n = 0; n < kNum; ++n) values[n] = get<T>(warp, i.in[1 + n], lane);
    std::memcpy(address_of<kSpace>(warp, i, lane, sizeof(values), kWrites), values, sizeof(values));
  }
}

inline void add_to_shared(Warp& warp, const Instruction& i, uint32_t mask) {
  count_shared(warp, i, mask, sizeof(uint32_t));
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const uint32_t address = uint32_t(get<uint64_t>(warp, i.in[0], lane) + i.offset);
    check_shared(warp, lane, address, sizeof(uint32_t), kAdds, i);
    uint32_t sum;
    std::memcpy(&sum, warp.block->shared.data() + address, sizeof(sum));
    if (i.out[0] >= 0) set<uint32_t>(warp, i.out[0], lane, sum);
    sum += get<uint32_t>(warp, i.in[1], lane);
    std::memcpy(warp.block->shared.data() + address, &sum, sizeof(sum));
  }
}

// With or without what stood there before.
template <class T, int kNum>
void add_atomically(Warp& warp, const Instruction& i, uint32_t mask) {
  count_global(warp, i, mask, kNum * sizeof(T));
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    T values[kNum];
    uint8_t* address = address_of<kGlobal>(warp, i, lane, sizeof(values), kAdds);
    std::memcpy(values, address, sizeof(values));
    for (int n = 0; n < kNum; ++n) {
      if (i.out[n] >= 0) set<T>(warp, i.out[n], lane, values[n]);
      values[n] += get<T>(warp, i.in[1 + n], lane);
    }
    std::memcpy(address, values, sizeof(values));
  }
}

template <class T, class R>
void add_memory(std::map<std::string, Instruction::Run>& table, const std::string& type) {
  const auto of = [&]<int kNum>(const std::string& vector) {
    const std::string end = vector + "." + type;
    table["ld.global" + end] = table["ld.global.nc" + end] = table["ld" + end] = load<T, R, kGlobal, kNum>;
    table["ld.shared" + end] = load<T, R, kShared, kNum>;
    table["ld.param" + end] = load<T, R, kParameter, kNum>;
    table["st.global" + end] = table["st.global.cg" + end] = table["st" + end] = store<T, kGlobal, kNum>;
    table["st.shared" + end] = store<T, kShared, kNum>;
  };
  of.template operator()<1>("");
  of.template operator()<2>(".v2");
  of.template operator()<4>(".v4");
}

// ------------------------------------------------------------------------------------------------ lanes together

template <auto from>
void shuffle(Warp& warp, const Instruction& i, uint32_t mask) {
  std::array<uint64_t, kLanes> shown = warp.registers[i.in[0]];
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    const int by = int(get<uint32_t>(warp, i.in[1], lane)), other = from(lane, by);
    const bool inside = other >= 0 && other < kLanes;
    if (inside && !has(mask, other)) fail(warp.kernel->name + ": a lane that does not take part: " + i.text);
    warp.registers[i.out[0]][lane] = uint32_t(shown[inside ? other : lane]);
    if (i.num_out > 1) set<bool>(warp, i.out[1], lane, inside);
  }
}

inline void ballot(Warp& warp, const Instruction& i, uint32_t mask) {
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane)
    if (has(mask, lane) && get<bool>(warp, i.in[0], lane)) bits |= 1u << lane;
  for (int lane = 0; lane < kLanes; ++lane)
    if (has(mask, lane)) set<uint32_t>(warp, i.out[0], lane, bits);
}

// Of all lanes that take part.
template <class T, auto kOf>
void reduce(Warp& warp, const Instruction& i, uint32_t mask) {
  const int first = std::countr_zero(mask);
  T all = get<T>(warp, i.in[0], first);
  for (int lane = first + 1; lane < kLanes; ++lane)
    if (has(mask, lane)) all = kOf(all, get<T>(warp, i.in[0], lane));
  for (int lane = 0; lane < kLanes; ++lane)
    if (has(mask, lane)) set<T>(warp, i.out[0], lane, all);
}

inline void barrier_of_warp(Warp& warp, const Instruction&, uint32_t) { ++warp.barriers; }

// D = A B + C of 16 x 8 numbers over 8 kParts (PTX ISA, "Matrix fragments for mma.m16n8k8" and ".m16n8k16 with floating
// point type").
template <int kParts>
void multiply_matrices(Warp& warp, const Instruction& i, uint32_t mask) {
  if (mask != kAllLanes) fail(warp.kernel->name + ": a warp multiplies matrices without some of its lanes");
  float a[16][8 * kParts], b[8 * kParts][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane / 4, place = lane % 4;
    for (int n = 0; n < 3 * kParts; ++n) {
      const uint32_t pair = get<uint32_t>(warp, i.in[n], lane);
      for (int k = 0; k < 2; ++k) {
        const float number = of_half(uint16_t(pair >> 16 * k));
        if (n < 2 * kParts)
          a[group + n % 2 * 8][2 * place + k + n / 2 * 8] = number;
        else
          b[2 * place + k + (n - 2 * kParts) * 8][group] = number;
      }
    }
  }
  float c[16][8];
  const auto each_result = [&](auto what) {
    for (int lane = 0; lane < kLanes; ++lane)
      for (int n = 0; n < 4; ++n) what(lane, n, c[lane / 4 + n / 2 * 8][2 * (lane % 4) + n % 2]);
  };
  each_result([&](int lane, int n, float& number) { number = get<float>(warp, i.in[3 * kParts + n], lane); });
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 8 * kParts; ++k)
      for (int column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
  each_result([&](int lane, int n, float number) { set<float>(warp, i.out[n], lane, number); });
}

// Matrices of 8 x 8 numbers of 16 bits (PTX ISA, "ldmatrix"): lane 8 m + i tells where row i of matrix m begins.
template <int kNum, bool kTransposed>
void load_matrices(Warp& warp, const Instruction& i, uint32_t mask) {
  if (mask != kAllLanes) fail(warp.kernel->name + ": a warp loads matrices without some of its lanes");
  int passes = 0;
  for (int m = 0; m < kNum; ++m) {
    Distinct words;
    const auto word = [&](int lane, int row, int place) {
      const uint32_t address = uint32_t(get<uint64_t>(warp, i.in[0], 8 * m + row) + i.offset);
      if (address % 16) fail(warp.kernel->name + ": not aligned: " + i.text);
      check_shared(warp, lane, address + 4 * place, sizeof(uint32_t), kReads, i);
      words.add(address / 4 + place);
      uint32_t pair;
      std::memcpy(&pair, warp.block->shared.data() + address + 4 * place, sizeof(pair));
      return pair;
    };
    for (int lane = 0; lane < kLanes; ++lane) {
      const int group = lane / 4, place = lane % 4;
      uint32_t pair = 0;
      if (kTransposed)
        for (int k = 0; k < 2; ++k)
          pair |= (word(lane, 2 * place + k, group / 2) >> 16 * (group % 2) & 0xffffu) << 16 * k;
      else
        pair = word(lane, group, place);
      set<uint32_t>(warp, i.out[m], lane, pair);
    }
    passes += passes_of(words);
  }
  count_passes(warp, passes);
}

// Moves between one register and the parts of a vector.
template <class Whole, class Part, int kNum>
void pack(Warp& warp, const Instruction& i, uint32_t mask) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!has(mask, lane)) continue;
    Part parts[kNum];
    if (i.num_out == 1) {
      for (int n = 0; n < kNum; ++n) parts[n] = get<Part>(warp, i.in[n], lane);
      Whole whole;
      std::memcpy(&whole, parts, sizeof(whole));
      set<Whole>(warp, i.out[0], lane, whole);
    } else {
      const Whole whole = get<Whole>(warp, i.in[0], lane);
      std::memcpy(parts, &whole, sizeof(whole));
      for (int n = 0; n < kNum; ++n)
        if (i.out[n] >= 0) set<Part>(warp, i.out[n], lane, parts[n]);
    }
  }
}

// ------------------------------------------------------------------------------------------------ all of them

inline std::map<std::string, Instruction::Run> instructions() {
  std::map<std::string, Instruction::Run> table;
  add_arithmetic<int16_t>(table, "s16");
  add_conversions<int16_t>(table, "s16");
  add_arithmetic<int32_t>(table, "s32");
  add_conversions<int32_t>(table, "s32");
  add_arithmetic<int64_t>(table, "s64");
  add_conversions<int64_t>(table, "s64");
  add_arithmetic<uint16_t>(table, "u16");
  add_conversions<uint16_t>(table, "u16");
  add_arithmetic<uint32_t>(table, "u32");
  add_conversions<uint32_t>(table, "u32");
  add_arithmetic<uint64_t>(table, "u64");
  add_conversions<uint64_t>(table, "u64");
  add_arithmetic<float>(table, "f32");
  add_conversions<float>(table, "f32");
  add_arithmetic<double>(table, "f64");
  add_conversions<double>(table, "f64");
  add_bits<bool>(table, "pred");
  add_bits<uint16_t>(table, "b16");
  add_bits<uint32_t>(table, "b32");
  add_bits<uint64_t>(table, "b64");
  table["add.rm.f32"] = Each<float, float, float>::run<[](float a, float b) { return directed(a, b, -1); }>;
  table["add.rp.f32"] = Each<float, float, float>::run<[](float a, float b) { return directed(a, b, 1); }>;
  table["add.rz.f32"] = Each<float, float, float>::run<[](float a, float b) { return directed(a, b, 0); }>;
  table["fma.rm.f32"] = Each<float, float, float, float>::run<[](float a, float b, float c) {
    return directed(double(a) * b, c, -1);  // the product is exact
  }>;
  table["bfe.u32"] = Each<uint32_t, uint32_t, uint32_t, uint32_t>::run<[](uint32_t a, uint32_t from, uint32_t num) {
    const uint64_t bits = (from & 255) < 32 ? (a >> (from & 255)) : 0;
    return uint32_t((num & 255) < 32 ? bits & ((1ull << (num & 255)) - 1) : bits);
  }>;
  table["div.approx.f32"] = Each<float, float, float>::run<[](float a, float b) { return a / b; }>;
  table["cvt.sat.f32.f32"] = Each<float, float>::run<[](float a) { return (a > 0) ? std::fmin(a, 1.f) : 0.f; }>;
  table["cvt.rni.f32.f32"] = Each<float, float>::run<[](float a) { return std::nearbyintf(a); }>;
  table["cvt.rzi.f32.f32"] = Each<float, float>::run<[](float a) { return std::truncf(a); }>;
  table["cvt.f32.f16"] = Each<float, uint16_t>::run<of_half>;
  table["cvt.rn.f16.f32"] = Each<uint16_t, float>::run<to_half>;
  table["cvt.rn.f16x2.f32"] = Each<uint32_t, float, float>::run<[](float high, float low) {
    return uint32_t(to_half(high)) << 16 | to_half(low);
  }>;
  for (const bool rectified : {false, true}) {
    const std::string name = std::string("cvt.rn.") + (rectified ? "relu." : "") + "satfinite.f16x2.f32";
    table[name] = rectified ? Each<uint32_t, float, float>::run<saturated<true>>
                            : Each<uint32_t, float, float>::run<saturated<false>>;
  }
  table["set.neu.u32.f16x2"] = Each<uint32_t, uint32_t, uint32_t>::run<[](uint32_t a, uint32_t b) {
    uint32_t mask = 0;
    for (int k = 0; k < 2; ++k)
      if (!(of_half(uint16_t(a >> 16 * k)) == of_half(uint16_t(b >> 16 * k)))) mask |= 0xffffu << 16 * k;
    return mask;
  }>;
  table["cvta.to.shared.u64"] = table["cvta.shared.u64"] = table["mov.u64"];
  table["cvta.to.global.u64"] = table["cvta.global.u64"] = table["mov.u64"];
  add_memory<uint8_t, uint8_t>(table, "b8");
  add_memory<uint8_t, uint16_t>(table, "u8");
  add_memory<int8_t, int16_t>(table, "s8");
  add_memory<uint16_t, uint16_t>(table, "u16");
  add_memory<uint16_t, uint16_t>(table, "b16");
  add_memory<uint32_t, uint32_t>(table, "u32");
  add_memory<uint32_t, uint32_t>(table, "b32");
  add_memory<int32_t, int32_t>(table, "s32");
  add_memory<uint64_t, uint64_t>(table, "u64");
  add_memory<uint64_t, uint64_t>(table, "b64");
  add_memory<float, float>(table, "f32");
  add_memory<double, double>(table, "f64");
  table["atom.global.add.f32"] = add_atomically<float, 1>;
  table["atom.global.add.v2.f32"] = add_atomically<float, 2>;
  table["atom.global.add.v4.f32"] = add_atomically<float, 4>;
  table["atom.global.add.f64"] = add_atomically<double, 1>;
  table["red.global.add.f32"] = add_atomically<float, 1>;
  table["red.global.add.f64"] = add_atomically<double, 1>;
  table["atom.shared.add.u32"] = add_to_shared;
  table["shfl.sync.idx.b32"] = shuffle<[](int, int other) { return other & 31; }>;
  table["shfl.sync.bfly.b32"] = shuffle<[](int lane, int mask) { return lane ^ mask; }>;
  table["shfl.sync.up.b32"] = shuffle<[](int lane, int by) { return lane - by; }>;
  table["shfl.sync.down.b32"] = shuffle<[](int lane, int by) { return lane + by; }>;
  table["vote.sync.ballot.b32"] = ballot;
  table["redux.sync.or.b32"] = reduce<uint32_t, [](uint32_t a, uint32_t b) { return a | b; }>;
  table["redux.sync.min.s32"] = reduce<int32_t, [](int32_t a, int32_t b) { return std::min(a, b); }>;
  table["redux.sync.max.s32"] = reduce<int32_t, [](int32_t a, int32_t b) { return std::max(a, b); }>;
  table["ldmatrix.sync.aligned.m8n8.x2.shared.b16"] = load_matrices<2, false>;
  table["ldmatrix.sync.aligned.m8n8.x4.shared.b16"] = load_matrices<4, false>;
  table["ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16"] = load_matrices<2, true>;
  table["ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"] = load_matrices<4, true>;
  table["bar.warp.sync"] = barrier_of_warp;
  table["mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32"] = multiply_matrices<1>;
  table["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"] = multiply_matrices<2>;
  return table;
}

// ------------------------------------------------------------------------------------------------ reading

class Reader {
 public:
  explicit Reader(const std::string& path) {
    std::ifstream file(path);
    if (!file) fail("cannot read " + path);
    std::stringstream all;
    all << file.rdbuf();
    text_ = all.str();
  }

  int target() const {
    const std::string mark = ".target sm_";
    const size_t at = text_.find(mark);
    if (at == std::string::npos) fail("PTX without a target");
    return std::atoi(text_.c_str() + at + mark.size());
  }

  std::map<std::string, Kernel> kernels() {
    std::map<std::string, Kernel> found;
    const std::string mark = ".entry ";
    for (size_t at = text_.find(mark); at != std::string::npos; at = text_.find(mark, at)) {
      at += mark.size();
      Kernel kernel;
      const size_t open = text_.find('(', at), close = text_.find(')', open), begin = text_.find('{', close);
      kernel.name = trimmed(text_.substr(at, open - at));
      read_parameters(kernel, text_.substr(open + 1, close - open - 1));
      size_t end = begin + 1;
      for (int depth = 1; depth; ++end) depth += (text_[end] == '{') - (text_[end] == '}');
      read_body(kernel, text_.substr(begin + 1, end - begin - 2));
      at = end;
      found.emplace(kernel.name, std::move(kernel));
    }
    return found;
  }

 private:
  static std::string trimmed(const std::string& text) {
    const size_t first = text.find_first_not_of(" \t\n\r"), last = text.find_last_not_of(" \t\n\r");
    return first == std::string::npos ? "" : text.substr(first, last - first + 1);
  }

  static std::vector<std::string> split(const std::string& text) {  // at commas that no bracket holds
    std::vector<std::string> parts(1);
    int depth = 0;
    for (const char c : text) {
      depth += (c == '{' || c == '[') - (c == '}' || c == ']');
      if (c == ',' && depth == 0)
        parts.emplace_back();
      else
        parts.back() += c;
    }
    for (std::string& part : parts) part = trimmed(part);
    if (parts.size() == 1 && parts[0].empty()) parts.clear();
    return parts;
  }

  static void read_parameters(Kernel& kernel, const std::string& text) {
    for (const std::string& part : split(text)) {
      std::istringstream words(part);
      std::string word, name;
      size_t align = 0, size = 0;
      while (words >> word) {
        if (word == ".align") words >> align;
        if (word.size() > 2 && word[0] == '.' && std::isdigit(word.back())) size = std::stoul(word.substr(2)) / 8;
        name = word;
      }
      if (align == 0) align = size;
      const size_t bracket = name.find('[');
      if (bracket != std::string::npos) {
        size = std::stoul(name.substr(bracket + 1));
        name = name.substr(0, bracket);
      }
      const size_t offset = (kernel.parameter_bytes + align - 1) / align * align;
      kernel.parameters[name] = {offset, size};
      kernel.parameter_bytes = offset + size;
    }
  }

  // Registers by name; those of inner scopes too, which nobody uses outside.
  int register_of(Kernel& kernel, const std::string& name) {
    if (name == "_") return -1;
    const auto [place, is_new] = registers_.try_emplace(name, kernel.num_registers);
    if (!is_new) return place->second;
    const int number = kernel.num_registers++;
    const bool named = name[0] == '%' || name[0] == '_' || std::isalpha(name[0]);
    if (!named) kernel.constants.emplace_back(number, constant(name));
    if (const auto parameter = kernel.parameters.find(name); parameter != kernel.parameters.end())
      kernel.constants.emplace_back(number, parameter->second.offset);
    else if (name[0] == '_' && name.find("dynamic_shared") == std::string::npos)
      fail(kernel.name + ": a name that is not known: " + name);
    return number;
  }

  static uint64_t constant(const std::string& name) {
    if (name.starts_with("0f") || name.starts_with("0F")) return std::stoull(name.substr(2), nullptr, 16);
    if (name.starts_with("0d") || name.starts_with("0D")) return std::stoull(name.substr(2), nullptr, 16);
    return uint64_t(name[0] == '-' ? std::stoll(name, nullptr, 0) : int64_t(std::stoull(name, nullptr, 0)));
  }

  static std::string inner(const std::string& text) { return text.substr(1, text.size() - 2); }

  void add_operand(Kernel& kernel, Instruction& i, const std::string& text, bool out) {
    if (text[0] == '{') {
      for (const std::string& part : split(inner(text))) add_operand(kernel, i, part, out);
    } else if (text[0] == '[') {
      std::string base = inner(text);
      const size_t plus = base.find('+');
      if (plus != std::string::npos) {
        i.offset = std::stoll(base.substr(plus + 1), nullptr, 0);
        base = base.substr(0, plus);
      }
      if (const auto parameter = kernel.parameters.find(base); parameter != kernel.parameters.end())
        i.offset += int64_t(parameter->second.offset);
      else
        i.in[i.num_in++] = register_of(kernel, base);
    } else if (const size_t bar = text.find('|'); out && bar != std::string::npos) {
      add_operand(kernel, i, text.substr(0, bar), true);
      add_operand(kernel, i, text.substr(bar + 1), true);
    } else if (out) {
      i.out[i.num_out++] = register_of(kernel, text);
    } else {
      i.in[i.num_in++] = register_of(kernel, text[0] == '!' ? text.substr(1) : text);
    }
  }

  void read_statement(Kernel& kernel, std::string text) {
    static const std::map<std::string, Instruction::Run> table = instructions();
    Instruction i;
    i.text = text;
    if (text[0] == '@') {
      const size_t space = text.find_first_of(" \t");
      i.unless = text[1] == '!';
      i.guard = register_of(kernel, text.substr(i.unless ? 2 : 1, space - (i.unless ? 2 : 1)));
      text = trimmed(text.substr(space));
    }
    const size_t space = text.find_first_of(" \t\n");
    const std::string name = text.substr(0, space);
    const std::vector<std::string> operands = split(space == std::string::npos ? "" : text.substr(space));
    if (name == "bra" || name == "bra.uni") {
      i.kind = Instruction::kBranch;
      branches_.emplace_back(kernel.code.size(), operands[0]);
    } else if (name == "ret" || name == "exit") {
      i.kind = Instruction::kReturn;
    } else if (name == "bar.sync") {
      i.kind = Instruction::kBarrier;
    } else {
      const bool no_result = name.starts_with("st") || name.starts_with("red.") || name == "bar.warp.sync";
      for (size_t n = 0; n < operands.size(); ++n) add_operand(kernel, i, operands[n], !no_result && n == 0);
      if (name.starts_with("mov.b") && (i.num_out > 1 || i.num_in > 1)) {
        const bool four = std::max(i.num_out, i.num_in) == 4;
        i.run = name == "mov.b32" ? pack<uint32_t, uint16_t, 2>
                : four            ? pack<uint64_t, uint16_t, 4>
                                  : pack<uint64_t, uint32_t, 2>;
      } else {
        const auto place = table.find(name);
        if (place == table.end()) fail(kernel.name + ": an instruction that is not played: " + i.text);
        i.run = place->second;
      }
      if (name.find(".sync") != std::string::npos) {
        i.kind = Instruction::kTogether;
        if (name.find(".aligned") == std::string::npos) i.members = i.in[i.num_in - 1];
      }
    }
    kernel.code.push_back(std::move(i));
  }

  void read_body(Kernel& kernel, const std::string& body) {
    registers_.clear();
    branches_.clear();
    std::map<std::string, int> labels;
    std::string statement;
    int vectors = 0;  // braces within a statement hold vectors, others scopes
    const auto blank = [&] { return trimmed(statement).empty(); };
    for (size_t at = 0; at < body.size(); ++at) {
      const char c = body[at];
      if (c == '/' && body[at + 1] == '/') {
        at = body.find('\n', at);
        continue;
      }
      if (vectors == 0 && blank() && (c == '{' || c == '}')) continue;
      vectors += (c == '{') - (c == '}');
      if (c == ':' && trimmed(statement).starts_with("$")) {
        labels[trimmed(statement)] = int(kernel.code.size());
        statement.clear();
      } else if (c == ';') {
        const std::string whole = trimmed(statement);
        if (!whole.empty() && whole[0] != '.') read_statement(kernel, whole);
        statement.clear();
      } else {
        statement += c;
      }
    }
    for (const auto& [at, label] : branches_) kernel.code[at].target = labels.at(label);
    if (kernel.code.empty() || kernel.code.back().kind != Instruction::kReturn) read_statement(kernel, "ret");
    for (const auto& [name, number] : registers_) {
      if (name[0] != '%' || name.find('.') == std::string::npos) continue;
      const auto known = std::find(std::begin(kSpecials), std::end(kSpecials), name);
      if (known == std::end(kSpecials)) fail(kernel.name + ": a register that is not played: " + name);
      kernel.constants.emplace_back(number, kSpecial + uint64_t(known - std::begin(kSpecials)));
    }
  }

 public:
  static constexpr const char* kSpecials[] = {"%tid.x", "%ntid.x", "%ctaid.x", "%ctaid.y", "%nctaid.x"};
  static constexpr uint64_t kSpecial = 0xf00dfeed00000000ull;  // plus which of them a constant is

 private:
  std::string text_;
  std::map<std::string, int> registers_;
  std::vector<std::pair<size_t, std::string>> branches_;
};

// ------------------------------------------------------------------------------------------------ running

enum Stop { kEnded, kAtBarrier, kInterrupted };

constexpr int64_t kTurn = 100;  // instructions

// Until all lanes have ended, wait at a barrier of the block, or others shall have their turn.
inline Stop play(Warp& warp) {
  const std::vector<Instruction>& code = warp.kernel->code;
  Counts& counts = warp.kernel->counts;
  const int64_t enough = warp.num_issued + kTurn;
  while (warp.alive) {
    if (warp.num_issued >= enough) return kInterrupted;
    int now = -1;
    for (int lane = 0; lane < kLanes; ++lane)
      if (has(warp.alive & ~warp.held, lane) && (now < 0 || warp.at[lane] < now)) now = warp.at[lane];
    if (now < 0) fail(warp.kernel->name + ": lanes wait for others that never come");
    uint32_t group = 0;
    int next_group = int(code.size());
    for (int lane = 0; lane < kLanes; ++lane) {
      if (!has(warp.alive, lane)) continue;
      if (warp.at[lane] == now)
        group |= 1u << lane;
      else if (warp.at[lane] > now)
        next_group = std::min(next_group, warp.at[lane]);
    }
    // As one group, until it comes to where others stand or is split.
    for (int at = now;; ++at) {
      const Instruction& i = code[at];
      uint32_t mask = group;
      if (i.guard >= 0)
        for (int lane = 0; lane < kLanes; ++lane)
          if (has(group, lane) && get<bool>(warp, i.guard, lane) == i.unless) mask &= ~(1u << lane);
      const auto stand = [&](uint32_t lanes, int where) {
        for (int lane = 0; lane < kLanes; ++lane)
          if (has(lanes, lane)) warp.at[lane] = where;
      };
      if (i.kind == Instruction::kTogether || i.kind == Instruction::kBarrier) {
        if (i.guard >= 0) fail(warp.kernel->name + ": guarded: " + i.text);
        uint32_t members = i.kind == Instruction::kBarrier ? warp.alive : kAllLanes;
        if (i.members >= 0) members = get<uint32_t>(warp, i.members, std::countr_zero(group));
        if (members & ~warp.alive) fail(warp.kernel->name + ": a lane that has ended is waited for: " + i.text);
        if (group & ~members) fail(warp.kernel->name + ": a lane that is not named: " + i.text);
        warp.held |= group;
        if (members & ~group) {  // those that are not here have to come
          stand(group, at);
          break;
        }
        warp.held &= ~group;
      }
      ++counts.instructions;
      ++warp.num_issued;
      if (warp.trace) warp.trace->issued.push_back({at});
      counts.of_lanes += std::popcount(mask);
      if (i.kind == Instruction::kBarrier) {
        stand(group, at + 1);
        return kAtBarrier;
      }
      if (i.kind == Instruction::kReturn) {
        warp.alive &= ~mask;
        stand(group & ~mask, at + 1);
        break;
      }
      if (i.kind == Instruction::kBranch) {
        stand(mask, i.target);
        stand(group & ~mask, at + 1);
        break;
      }
      if (mask) i.run(warp, i, mask);
      if (at + 1 >= next_group) {
        stand(group, at + 1);
        break;
      }
    }
  }
  return kEnded;
}

// All warps of a block, of which the one goes on that has gone least: so what they share out among them goes to all.
inline void play(Block& block, std::vector<Warp>& warps) {
  std::vector<Warp*> going;
  for (Warp& warp : warps) going.push_back(&warp);
  std::vector<Warp*> waiting;
  while (!going.empty() || !waiting.empty()) {
    if (going.empty()) {
      ++block.barriers;
      for (Warp& warp : warps) ++warp.barriers;
      std::swap(going, waiting);
    }
    const auto least = std::min_element(going.begin(), going.end(),
                                        [](const Warp* a, const Warp* b) { return a->num_issued < b->num_issued; });
    const Stop stop = play(**least);
    if (stop == kInterrupted) continue;
    if (stop == kAtBarrier) waiting.push_back(*least);
    going.erase(least);
  }
}

struct Launch {
  unsigned blocks_x, blocks_y, threads;
  size_t shared_bytes;
};

// Fills traces, where they are asked for, with those of each block's warps.
inline void run(Kernel& kernel, const Launch& launch, const uint8_t* parameters,
                std::vector<std::vector<Trace>>* traces = nullptr) {
  if (launch.threads % kLanes) fail("blocks are of whole warps");
  Block block;
  touches().launch();
  tensors().launch();
  std::vector<Warp> warps(launch.threads / kLanes);
  for (unsigned y = 0; y < launch.blocks_y; ++y)
    for (unsigned x = 0; x < launch.blocks_x; ++x) {
      block.shared.assign(launch.shared_bytes, 0x7f);  // nobody may count on zeros
      block.halves.assign(launch.shared_bytes / 2 + 1, {});
      block.barriers = 0;
      block.number = int32_t(y * launch.blocks_x + x);
      if (traces) traces->emplace_back(warps.size());
      for (size_t w = 0; w < warps.size(); ++w) {
        Warp& warp = warps[w];
        warp = Warp{&kernel, &block, parameters, std::move(warp.registers), {}, kAllLanes, 0, int(w)};
        if (traces) warp.trace = &traces->back()[w];
        warp.registers.assign(kernel.num_registers, {});
        for (const auto& [number, value] : kernel.constants)
          for (int lane = 0; lane < kLanes; ++lane) {
            const uint64_t special[] = {uint64_t(warp.thread(lane)), launch.threads, x, y, launch.blocks_x};
            const bool depends = value - Reader::kSpecial < std::size(special);
            warp.registers[number][lane] = depends ? special[value - Reader::kSpecial] : value;
          }
      }
      kernel.counts.warps += int64_t(warps.size());
      play(block, warps);
    }
}

struct File {
  int target = 0;  // 90 for sm_90
  std::map<std::string, Kernel> kernels;
};

// That which the environment names now.
inline File& file() {
  static std::map<std::string, File> all;
  const char* path = std::getenv("PLAYED_PTX");
  if (!path) fail("PLAYED_PTX names no file");
  File& found = all[path];
  if (found.target == 0) {
    Reader reader(path);
    found = {reader.target(), reader.kernels()};
  }
  return found;
}

inline std::map<std::string, Kernel>& kernels() { return file().kernels; }
inline int target() { return file().target; }

}  // namespace played

// What each kernel has done since this was last asked: a line of its name and of Counts.
extern "C" __attribute__((used)) inline const char* played_counts() {
  static std::string text;
  text.clear();
  for (auto& [name, kernel] : played::kernels()) {
    const played::Counts c = std::exchange(kernel.counts, {});
    if (c.warps == 0) continue;
    text += name;
    for (const int64_t count :
         {c.warps, c.instructions, c.of_lanes, c.global_requests, c.global_sectors, c.shared_requests, c.shared_passes})
      text += " " + std::to_string(count);
    text += " " + std::to_string(c.microseconds) + "\n";
  }
  return text.c_str();
}
