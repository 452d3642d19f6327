// How long a GPU would take for what is played (played_ptx.h): a model of one of its processors, to tell which of two
// kernels is the faster one where there is no GPU. Instructions go in the order that ptxas would give them, from four
// schedulers, as operands, units and memory let them.
//
// Rates are those of the CUDA C++ Programming Guide ("Throughput of Native Arithmetic Instructions", 9.0), latencies
// round numbers of the size that microbenchmarks of Hopper find (Luo et al., arXiv:2402.13499), in clocks, and fitted
// to nothing; memory gives what copies got of an H200. How many registers a thread has it does not know. What it says
// of kernels that an H200 has run, and what these took, stands in docs/benchmarks/gpu.md.
#pragma once
#include <deque>
#include <set>
#include <unordered_map>

#include "played_ptx.h"

namespace played {

constexpr int kSchedulers = 4;
constexpr double kClocksPerMicrosecond = 1755;
constexpr int kToL1 = 36, kToL2 = 270, kToShared = 28;  // clocks until what is read is there
constexpr int kToMemory = 650;
constexpr double kOfGpu = 132, kL2Bytes = 50e6;      // processors; what is more comes from memory each time
constexpr double kMemoryBytesAClock = 18.4;          // of a processor's share
constexpr double kBytesAClock = 32;                  // to or from the L2 cache
constexpr size_t kL1Bytes = 256 << 10, kLine = 128;  // less what is shared memory
constexpr size_t kWays = 8;
constexpr int kStored = 3000;                             // clocks that stores may be behind
constexpr int kWaiting = 8;                               // clocks that requests may wait for those before them
constexpr int kBranched = 8, kLaunched = 100, kMet = 20;  // until the next instruction: behind a branch, at first, ...
constexpr int kThreadsAtOnce = 2048, kBlocksAtOnce = 16;
constexpr size_t kSharedAtOnce = 228 << 10, kSharedOfSystem = 1 << 10;  // of a block

enum Unit {
  kNone,
  kFloats,
  kIntegers,
  kProducts,
  kSpecial,
  kTensors,
  kControl,
  kSharedMemory,
  kLoads,
  kStores,
  kUnits
};

struct Cost {
  int slots;  // of a scheduler; none: others have it in them
  Unit unit;
  int interval;  // clocks until the scheduler's unit takes the next one
  int latency;
};

inline std::string name_of(const Instruction& i) {
  size_t at = 0;
  if (i.text[0] == '@') at = i.text.find_first_not_of(" \t", i.text.find_first_of(" \t"));
  return i.text.substr(at, i.text.find_first_of(" \t\n", at) - at);
}

inline Cost cost_of(const Instruction& i) {
  if (i.kind == Instruction::kBranch || i.kind == Instruction::kReturn || i.kind == Instruction::kBarrier)
    return {1, kControl, 1, 0};
  // The first that the name begins with.
  static const std::vector<std::pair<const char*, Cost>> costs = {
      {"bar.warp", {1, kIntegers, 1, 10}},
      {"ld.param", {0, kNone, 0, 0}},
      {"ld.shared", {1, kSharedMemory, 1, kToShared}},
      {"st.shared", {1, kSharedMemory, 1, 0}},
      {"atom.shared", {1, kSharedMemory, 1, 60}},
      {"ldmatrix", {1, kSharedMemory, 1, 33}},
      {"shfl", {1, kSharedMemory, 1, 23}},
      {"ld", {1, kLoads, 1, 0}},
      {"st", {1, kStores, 1, 0}},
      {"atom", {1, kStores, 1, kToL2}},
      {"vote", {1, kIntegers, 2, 12}},
      {"redux", {1, kSpecial, 8, 18}},
      {"mma", {1, kTensors, 6, 33}},
      {"clz.b64", {4, kSpecial, 8, 14}},
      {"popc", {1, kSpecial, 8, 14}},
      {"bfind", {1, kSpecial, 8, 14}},
      {"clz", {1, kSpecial, 8, 14}},
      {"brev", {1, kSpecial, 8, 14}},
      {"rcp.approx", {1, kSpecial, 8, 18}},
      {"ex2", {2, kSpecial, 8, 18}},
      {"lg2", {2, kSpecial, 8, 18}},
      {"sin", {2, kSpecial, 8, 18}},
      {"div.approx", {3, kSpecial, 8, 24}},
      {"div.rn", {9, kSpecial, 8, 40}},
      {"rcp.rn", {9, kSpecial, 8, 40}},
      {"sqrt.rn", {9, kSpecial, 8, 40}},
      {"div", {18, kIntegers, 2, 60}},
      {"rem", {18, kIntegers, 2, 60}},
      {"cvt.sat.f32.f32", {1, kFloats, 1, 4}},
      {"cvt.s64.s32", {1, kIntegers, 2, 4}},
      {"cvt.rn.satfinite", {1, kIntegers, 2, 5}},
      {"cvt.rn.relu", {1, kIntegers, 2, 5}},
      {"cvt.r", {1, kSpecial, 2, 10}},  // rounds
      {"cvt.f", {1, kSpecial, 2, 10}},
      {"cvt", {0, kNone, 0, 0}},
      {"mov", {0, kNone, 0, 0}},
      {"neg.f", {0, kNone, 0, 0}},
      {"abs.f", {0, kNone, 0, 0}},
      {"not", {0, kNone, 0, 0}},
      {"and.pred", {0, kNone, 0, 0}},
      {"or.pred", {0, kNone, 0, 0}},
      {"xor.pred", {0, kNone, 0, 0}},
      {"mul.lo.s64", {3, kProducts, 2, 8}},
      {"mul.lo.u64", {3, kProducts, 2, 8}},
      {"mad.lo.s64", {3, kProducts, 2, 8}},
      {"mul.wide", {1, kProducts, 2, 4}},
      {"mad.wide", {1, kProducts, 2, 4}},
      {"mul.lo", {1, kProducts, 2, 4}},
      {"mad.lo", {1, kProducts, 2, 4}},
      {"mul.hi", {1, kProducts, 2, 4}},
      {"shl.b32", {1, kProducts, 2, 4}},
      {"fma", {1, kFloats, 1, 4}},
      {"add.f", {1, kFloats, 1, 4}},
      {"add.r", {1, kFloats, 1, 4}},
      {"sub.f", {1, kFloats, 1, 4}},
      {"mul.f", {1, kFloats, 1, 4}},
      {"mul.r", {1, kFloats, 1, 4}},
      {"bfi", {2, kIntegers, 2, 8}},
  };
  const std::string name = name_of(i);
  for (const auto& [begin, cost] : costs)
    if (name.starts_with(begin)) return cost;
  const bool is_long = name.find("64", name.rfind('.')) != std::string::npos;
  return is_long ? Cost{2, kIntegers, 2, 6} : Cost{1, kIntegers, 2, 4};
}

// What ptxas makes of a kernel: which instructions become one, and their order within stretches without branches.
class Compiled {
 public:
  explicit Compiled(const Kernel& kernel) : code_(kernel.code), begins_(code_.size()), places_(code_.size()) {
    for (const Instruction& i : code_) costs_.push_back(cost_of(i));
    for (size_t at = 0; at < code_.size(); ++at)
      if (is_short(int(at))) costs_[at] = {0, kNone, 0, 0};
    join();
    for (size_t begin = 0; begin < code_.size();) {
      size_t end = begin + 1;
      while (end < code_.size() && !leads(end)) ++end;
      order(int(begin), int(end));
      begin = end;
    }
  }

  const Instruction& instruction(int at) const { return code_[at]; }
  const Cost& cost(int at) const { return costs_[at]; }

  // Puts what a warp has issued into that order.
  void put_in_order(std::vector<Issued>& issued) const {
    for (size_t begin = 0; begin < issued.size();) {
      size_t end = begin + 1;
      while (end < issued.size() && issued[end].at == issued[end - 1].at + 1 &&
             begins_[issued[end].at] == begins_[issued[begin].at])
        ++end;
      std::sort(issued.begin() + begin, issued.begin() + end,
                [&](const Issued& a, const Issued& b) { return places_[a.at] < places_[b.at]; });
      begin = end;
    }
  }

 private:
  static constexpr int kShort = 6;  // instructions that lanes go through rather than branch around them

  bool is_short(int at) const {
    const Instruction& i = code_[at];
    if (i.kind != Instruction::kBranch || i.guard < 0 || i.target <= at || i.target > at + 1 + kShort) return false;
    return std::all_of(code_.begin() + at + 1, code_.begin() + i.target,
                       [](const Instruction& over) { return over.kind == Instruction::kPlain; });
  }

  bool leads(size_t at) const {
    if (costs_[at - 1].unit == kControl) return true;
    for (size_t from = 0; from < code_.size(); ++from)
      if (code_[from].target == int(at) && costs_[from].unit == kControl) return true;
    return false;
  }

  // Logical operations of three inputs are one, and a product with the sum that makes it an address.
  void join() {
    std::map<int, std::vector<int>> makers;
    std::map<int, int> uses;
    for (size_t at = 0; at < code_.size(); ++at) {
      for (int n = 0; n < code_[at].num_out; ++n) makers[code_[at].out[n]].push_back(int(at));
      for (int n = 0; n < code_[at].num_in; ++n) ++uses[code_[at].in[n]];
      if (code_[at].guard >= 0) ++uses[code_[at].guard];
    }
    const auto maker = [&](int reg) {
      const auto found = makers.find(reg);
      return found != makers.end() && found->second.size() == 1 ? found->second[0] : -1;
    };
    const auto is_logical = [](const std::string& name) {
      return name == "and.b32" || name == "or.b32" || name == "xor.b32";
    };
    const auto plain = [&](int reg) {  // without a not
      const int at = maker(reg);
      return at >= 0 && name_of(code_[at]) == "not.b32" ? code_[at].in[0] : reg;
    };
    std::set<int> joined;
    for (size_t at = 0; at < code_.size(); ++at) {
      const std::string name = name_of(code_[at]);
      const int* in = code_[at].in;
      if (is_logical(name))
        for (int n = 0; n < 2; ++n) {
          const int from = maker(in[n]);
          if (from < 0 || uses[in[n]] != 1 || joined.count(from) || !is_logical(name_of(code_[from]))) continue;
          std::set<int> inputs{plain(code_[from].in[0]), plain(code_[from].in[1])};
          const int other = maker(in[1 - n]);
          if (other >= 0 && joined.count(other))
            inputs.insert({plain(code_[other].in[0]), plain(code_[other].in[1])});
          else
            inputs.insert(in[1 - n]);
          if (inputs.size() > 3) continue;
          joined.insert(from);
          costs_[from] = {0, kNone, 0, 0};
        }
      if (name == "add.s64")
        for (int n = 0; n < 2; ++n) {
          const int from = maker(in[n]);
          if (from < 0) continue;
          const std::string made = name_of(code_[from]);
          if (made.starts_with("mul.wide")) costs_[at] = {0, kNone, 0, 0};
          if (made == "shl.b64" && maker(code_[from].in[0]) >= 0 &&
              name_of(code_[maker(code_[from].in[0])]).starts_with("cvt")) {
            costs_[from] = {0, kNone, 0, 0};
            costs_[at] = {1, kProducts, 2, 4};
          }
        }
      if (name == "add.s32" && at % 2) costs_[at].unit = kProducts;  // which unit adds is ptxas' choice
    }
  }

  // How long others are expected to wait for what it gives.
  int expected(int at) const {
    const Cost& cost = costs_[at];
    return cost.unit == kLoads ? 200 : std::max(cost.latency, cost.slots);
  }

  // Whether one of them, both of the same memory, must stay before the other.
  bool in_turn(int first, int second) const {
    const auto is_shared = [&](int at) { return costs_[at].unit == kSharedMemory; };
    const auto touches = [&](int at) { return costs_[at].unit >= kSharedMemory && name_of(code_[at])[1] != 'h'; };
    const auto reads = [&](int at) { return name_of(code_[at])[0] == 'l'; };
    if (!touches(first) || !touches(second) || is_shared(first) != is_shared(second)) return false;
    if (reads(first) && reads(second)) return false;
    if (name_of(code_[first]).find(".nc.") != std::string::npos) return false;
    if (name_of(code_[second]).find(".nc.") != std::string::npos) return false;
    const bool apart = code_[first].in[0] == code_[second].in[0] && code_[first].offset != code_[second].offset;
    return !apart;
  }

  // Of all that may go next that on which the longest way depends goes first.
  void order(int begin, int end) {
    const int num = end - begin;
    std::vector<std::vector<std::pair<int, int>>> after(num);  // which, and how long after
    std::vector<int> waits_for(num), memory;
    const auto keep = [&](int first, int second, int apart) {
      after[first].emplace_back(second, apart);
      ++waits_for[second];
    };
    std::map<int, int> made;
    std::map<int, std::vector<int>> readers;
    int fence = -1, together = -1;
    for (int n = 0; n < num; ++n) {
      const Instruction& i = code_[begin + n];
      const auto read = [&](int reg) {
        if (reg < 0) return;
        if (const auto from = made.find(reg); from != made.end()) keep(from->second, n, expected(begin + from->second));
        readers[reg].push_back(n);
      };
      for (int k = 0; k < i.num_in; ++k) read(i.in[k]);
      read(i.guard);
      for (int k = 0; k < i.num_out; ++k) {
        if (i.out[k] < 0) continue;
        for (const int reader : readers[i.out[k]])
          if (reader != n) keep(reader, n, 1);
        if (const auto from = made.find(i.out[k]); from != made.end()) keep(from->second, n, 1);
        made[i.out[k]] = n;
        readers[i.out[k]].clear();
      }
      for (const int before : memory)
        if (in_turn(begin + before, begin + n)) keep(before, n, 1);
      if (costs_[begin + n].unit >= kSharedMemory) {
        if (fence >= 0) keep(fence, n, 1);
        memory.push_back(n);
      }
      if (name_of(i) == "bar.warp.sync") {
        for (const int before : memory) keep(before, n, 1);
        memory.clear();
        fence = n;
      }
      if (i.kind == Instruction::kTogether) {
        if (together >= 0) keep(together, n, 1);
        together = n;
      }
      if (costs_[begin + n].unit == kControl)
        for (int before = 0; before < n; ++before) keep(before, n, 1);
    }
    std::vector<int> way(num);
    for (int n = num - 1; n >= 0; --n)
      for (const auto& [next, apart] : after[n]) way[n] = std::max(way[n], way[next] + apart);
    std::vector<int> ready(num);
    std::set<int> open;
    for (int n = 0; n < num; ++n)
      if (waits_for[n] == 0) open.insert(n);
    for (int now = 0, place = 0; !open.empty();) {
      int best = -1;
      for (const int n : open)
        if (ready[n] <= now && (best < 0 || way[n] > way[best])) best = n;
      if (best < 0) {
        ++now;
        continue;
      }
      open.erase(best);
      begins_[begin + best] = begin;
      places_[begin + best] = place++;
      for (const auto& [next, apart] : after[best]) {
        ready[next] = std::max(ready[next], now + apart);
        if (--waits_for[next] == 0) open.insert(next);
      }
      now += costs_[begin + best].slots;
    }
  }

  const std::vector<Instruction>& code_;
  std::vector<Cost> costs_;
  std::vector<int> begins_, places_;  // of an instruction's stretch, and within it
};

// Which sectors of 32 bytes a processor has at hand.
class L1Cache {
 public:
  explicit L1Cache(size_t bytes) : sets_(bytes / (kWays * kLine)) {}

  // Whether it is there; brings it.
  bool touch(uint64_t sector) {
    const uint64_t line = sector / 4;
    const int bit = 1 << sector % 4;
    std::deque<Line>& set = sets_[(line ^ line / sets_.size()) % sets_.size()];  // the last was touched last
    const auto place = std::find_if(set.begin(), set.end(), [&](const Line& l) { return l.number == line; });
    Line found = place == set.end() ? Line{line, 0} : *place;
    const bool there = found.sectors & bit;
    if (place != set.end())
      set.erase(place);
    else if (set.size() == kWays)
      set.pop_front();
    found.sectors |= bit;
    set.push_back(found);
    return there;
  }

 private:
  struct Line {
    uint64_t number;
    int sectors;
  };
  std::vector<std::deque<Line>> sets_;
};

// Who touches which sectors.
class Sectors {
 public:
  Sectors(const std::vector<std::vector<Trace>>& blocks, int num_processors) {
    for (size_t b = 0; b < blocks.size(); ++b)
      for (const Trace& trace : blocks[b])
        for (const uint64_t sector : trace.sectors) {
          const auto [place, is_new] = owner_.try_emplace(sector, int(b % num_processors));
          if (!is_new && place->second != int(b % num_processors)) place->second = kMany;
        }
    are_many_ = double(owner_.size()) * 32 * kOfGpu / num_processors > kL2Bytes;
  }

  // Whether it is not in the L2 cache: there is too much, and no other processor has brought it.
  bool from_memory(uint64_t sector) const { return are_many_ && owner_.at(sector) != kMany; }

 private:
  static constexpr int kMany = -1;
  std::unordered_map<uint64_t, int> owner_;
  bool are_many_;
};

class Processor {
 public:
  Processor(const Compiled& code, const Sectors& sectors, int num_registers, const Launch& launch)
      : code_(code), sectors_(sectors), num_registers_(num_registers) {
    at_once_ = std::min(kThreadsAtOnce / int(launch.threads), kBlocksAtOnce);
    const size_t shared = launch.shared_bytes ? launch.shared_bytes + kSharedOfSystem : 0;
    if (shared) at_once_ = std::min(at_once_, int(kSharedAtOnce / shared));
    at_once_ = std::max(at_once_, 1);
    l1_ = L1Cache(kL1Bytes - std::min(at_once_ * shared, kSharedAtOnce));
  }

  // The clocks for some blocks, each of the traces of its warps.
  int64_t run(const std::vector<std::vector<Trace>*>& blocks) {
    blocks_ = blocks;
    begin_blocks();
    while (std::any_of(std::begin(of_), std::end(of_), [](const auto& warps) { return !warps.empty(); })) {
      int64_t soonest = std::numeric_limits<int64_t>::max();
      for (int s = 0; s < kSchedulers; ++s) soonest = std::min(soonest, issue(s));
      now_ = std::max(now_ + 1, soonest == std::numeric_limits<int64_t>::max() ? 0 : soonest);
    }
    return std::max(last_, int64_t(std::max(from_l2_, from_memory_)));
  }

 private:
  struct Running {
    Trace* trace;
    int block;
    int64_t ready;                   // by its own
    std::vector<int64_t> registers;  // when they are there
    size_t next = 0;
    bool meets = false;  // others of its block, and waits for them
  };

  void begin_blocks() {
    for (; running_ < at_once_ && next_block_ < blocks_.size(); ++running_, ++next_block_) {
      left_.push_back(int(blocks_[next_block_]->size()));
      met_.push_back(0);
      for (Trace& trace : *blocks_[next_block_]) {
        code_.put_in_order(trace.issued);
        of_[turn_++ % kSchedulers].push_back(
            {&trace, int(next_block_), now_ + kLaunched, std::vector<int64_t>(num_registers_)});
      }
    }
  }

  // Issues what a scheduler can at this clock. Returns the one at which it may be asked again.
  int64_t issue(int s) {
    if (free_[s] > now_) return free_[s];
    int64_t soonest = std::numeric_limits<int64_t>::max();
    std::vector<Running>& warps = of_[s];
    for (size_t w = 0; w < warps.size();) {
      Running& warp = warps[w];
      while (warp.next < warp.trace->issued.size() && !code_.cost(warp.trace->issued[warp.next].at).slots) pass(warp);
      if (warp.next == warp.trace->issued.size()) {
        end(s, w);
        continue;
      }
      if (const int64_t at = warp.meets ? std::numeric_limits<int64_t>::max() : can_issue(s, warp); at > now_) {
        soonest = std::min(soonest, at);
        ++w;
        continue;
      }
      issue(s, warp);
      return now_ + 1;
    }
    return soonest;
  }

  int64_t operands_of(const Running& warp, const Instruction& i) const {
    int64_t at = i.guard >= 0 ? warp.registers[i.guard] : 0;
    for (int n = 0; n < i.num_in; ++n)
      if (i.in[n] >= 0) at = std::max(at, warp.registers[i.in[n]]);
    return at;
  }

  static void give(Running& warp, const Instruction& i, int64_t at) {
    for (int n = 0; n < i.num_out; ++n)
      if (i.out[n] >= 0) warp.registers[i.out[n]] = at;
  }

  void pass(Running& warp) {
    const Instruction& i = code_.instruction(warp.trace->issued[warp.next++].at);
    give(warp, i, operands_of(warp, i));
  }

  int64_t can_issue(int s, const Running& warp) const {
    const int at = warp.trace->issued[warp.next].at;
    const Unit unit = code_.cost(at).unit;
    const int64_t unit_free = unit >= kSharedMemory ? requests_ - kWaiting : units_[s][unit];
    return std::max({warp.ready, operands_of(warp, code_.instruction(at)), unit_free});
  }

  void issue(int s, Running& warp) {
    const Issued issued = warp.trace->issued[warp.next++];
    const Instruction& i = code_.instruction(issued.at);
    const Cost& cost = code_.cost(issued.at);
    free_[s] = warp.ready = now_ + cost.slots;
    units_[s][cost.unit] = now_ + int64_t(cost.interval) * cost.slots;
    int64_t done = now_ + cost.slots - 1 + cost.latency;
    if (cost.unit == kSharedMemory) {
      requests_ = std::max(requests_, now_) + std::max(issued.num, 1);
      done = requests_ + cost.latency;
    } else if (cost.unit >= kSharedMemory) {
      done = touch(warp, issued, cost);
    } else if (cost.unit == kControl) {
      warp.ready = now_ + kBranched;
    }
    if (i.kind == Instruction::kBarrier) meet(warp);
    give(warp, i, done);
    last_ = std::max(last_, done);
  }

  // Global memory, whose lines are asked for one after the other. Returns when what is read is there.
  int64_t touch(const Running& warp, const Issued& issued, const Cost& cost) {
    std::set<uint64_t> lines;
    int missed = 0, far = 0;
    for (int n = 0; n < issued.num; ++n) {
      const uint64_t sector = warp.trace->sectors[issued.first + n];
      lines.insert(sector / 4);
      if (cost.unit == kLoads && l1_.touch(sector)) continue;
      ++missed;
      far += sectors_.from_memory(sector);
    }
    requests_ = std::max(requests_, now_) + std::max<int64_t>(int64_t(lines.size()), (issued.num + 3) / 4);
    if (missed) from_l2_ = std::max(from_l2_, double(requests_)) + missed * 32 / kBytesAClock;
    if (far) from_memory_ = std::max(from_memory_, double(requests_)) + far * 32 / kMemoryBytesAClock;
    if (cost.unit == kStores) {  // which wait where there are too many
      requests_ = std::max(requests_, int64_t(std::max(from_l2_, from_memory_)) - kStored);
      return requests_ + cost.latency;
    }
    int64_t there = requests_ + kToL1;
    if (missed) there = std::max(there, int64_t(from_l2_) + kToL2);
    if (far) there = std::max(there, int64_t(from_memory_) + kToMemory);
    return there;
  }

  void meet(Running& warp) {
    warp.meets = true;
    if (++met_[warp.block] < left_[warp.block]) return;
    met_[warp.block] = 0;
    for (std::vector<Running>& warps : of_)
      for (Running& other : warps)
        if (other.block == warp.block && other.meets) {
          other.meets = false;
          other.ready = now_ + kMet;
        }
  }

  void end(int s, size_t w) {
    const int block = of_[s][w].block;
    of_[s].erase(of_[s].begin() + w);
    if (--left_[block]) return;
    --running_;
    begin_blocks();
  }

  const Compiled& code_;
  const Sectors& sectors_;
  const int num_registers_;
  int at_once_;
  std::vector<std::vector<Trace>*> blocks_;
  std::vector<int> left_, met_;  // warps of a block
  std::array<std::vector<Running>, kSchedulers> of_;
  std::array<int64_t, kSchedulers> free_{};
  std::array<std::array<int64_t, kUnits>, kSchedulers> units_{};
  L1Cache l1_{kL1Bytes};
  int64_t now_ = 0, last_ = 0, requests_ = 0;
  double from_l2_ = 0, from_memory_ = 0;  // when what was asked for last comes
  int running_ = 0, turn_ = 0;
  size_t next_block_ = 0;
};

// How many processors there are whose time is told; none: nobody asks.
inline int& num_timed() {
  static int num = 0;
  return num;
}

inline void launch(Kernel& kernel, const Launch& launch, const uint8_t* parameters) {
  if (num_timed() == 0) return run(kernel, launch, parameters);
  std::vector<std::vector<Trace>> blocks;
  run(kernel, launch, parameters, &blocks);
  const Compiled code(kernel);
  const Sectors sectors(blocks, num_timed());
  int64_t clocks = 0;
  for (int p = 0; p < num_timed(); ++p) {
    std::vector<std::vector<Trace>*> its;
    for (size_t b = p; b < blocks.size(); b += num_timed()) its.push_back(&blocks[b]);
    clocks = std::max(clocks, Processor(code, sectors, kernel.num_registers, launch).run(its));
  }
  kernel.counts.microseconds += double(clocks) / kClocksPerMicrosecond;
}

}  // namespace played

// From now on counts tell how long as many processors would take, which is all that there are; none: as before.
extern "C" __attribute__((used)) inline void time_on_processors(int num) { played::num_timed() = num; }
