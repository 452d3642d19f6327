// The memory of tensors as played kernels see it: where it ends, and who has touched it in a launch.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace played {

// The tensors whose places ops have asked for. What is beside them is nobody's, as far as anybody knows.
class Tensors {
 public:
  struct Extent {
    uint64_t begin = 0, end = 0;
    bool writable = false;
    int64_t launches = 0;  // before its place was asked for

    bool holds(uint64_t address, size_t bytes, bool writes) const {
      return address >= begin && address + bytes <= end && (writable || !writes);
    }
  };

  void add(const void* data, size_t bytes, bool writable) {
    if (bytes == 0) return;
    const auto begin = reinterpret_cast<uint64_t>(data);
    // Those that lay here before are gone, unless they are asked for together.
    std::erase_if(extents_, [&](const Extent& other) {
      return other.launches < launches_ && other.begin < begin + bytes && begin < other.end;
    });
    extents_.push_back({begin, begin + bytes, writable, launches_});
  }

  // `last` is where the same instruction has been: most often it stays within a tensor.
  bool hold(uint64_t address, size_t bytes, bool writes, Extent& last) const {
    if (extents_.empty()) return true;
    if (last.launches == launches_ && last.holds(address, bytes, writes)) return true;
    const auto found = std::find_if(extents_.rbegin(), extents_.rend(),
                                    [&](const Extent& e) { return e.holds(address, bytes, writes); });
    if (found == extents_.rend()) return false;
    last = *found;
    last.launches = launches_;
    return true;
  }

  void launch() { ++launches_; }

 private:
  std::vector<Extent> extents_;
  int64_t launches_ = 0;
};

inline Tensors& tensors() {
  static Tensors all;
  return all;
}

enum Touch { kReads, kWrites, kAdds };

// Who has touched it, and when: the threads of a warp are ordered by the barriers of the warp, those of a block by its
// barriers, blocks by nothing.
struct Toucher {
  int32_t block = -1, thread = -1;
  int32_t block_barriers = 0, warp_barriers = 0;

  bool is_before(const Toucher& now) const {
    if (block < 0 || (block == now.block && thread == now.thread)) return true;
    if (block != now.block) return false;
    return thread / 32 == now.thread / 32 ? warp_barriers < now.warp_barriers : block_barriers < now.block_barriers;
  }
};

// What a launch does to words of two bytes, and to single bytes.
class Touches {
 public:
  void launch() {
    ++launch_;
    num_ = 0;
  }

  // Whether nobody else can touch it at the same time.
  bool alone(uint64_t address, size_t bytes, Touch how, const Toucher& now) {
    for (size_t half = 0; half < std::max<size_t>(bytes / 2, 1); ++half) {
      Word& word = word_of(bytes == 1 ? address | 1ull << 63 : address / 2 + half);
      if (!(how == kAdds && word.added) && !word.writer.is_before(now)) return false;
      if (how == kReads) {
        if (word.reader.block != now.block) word.elsewhere = word.reader;
        word.reader = now;
        continue;
      }
      if (!word.reader.is_before(now) || !word.elsewhere.is_before(now)) return false;
      word.added = how == kAdds;
      word.writer = now;
      word.reader = word.elsewhere = {};
    }
    return true;
  }

 private:
  struct Word {
    uint64_t key = 0;
    int64_t launch = 0;
    bool added = false;                 // by the writer, and maybe by others
    Toucher writer, reader, elsewhere;  // the last; of readers also one of another block
  };
  std::vector<Word> words_ = std::vector<Word>(1 << 12);  // where the key says, or behind it
  size_t num_ = 0;                                        // of this launch
  int64_t launch_ = 1;

  Word& word_of(uint64_t key) {
    Word* word = place_of(key);
    if (word->launch == launch_) return *word;
    if (++num_ > words_.size() / 2) {
      std::vector<Word> before(2 * words_.size());
      std::swap(before, words_);
      for (const Word& each : before)
        if (each.launch == launch_) *place_of(each.key) = each;
      word = place_of(key);
    }
    *word = {key, launch_, false, {}, {}, {}};
    return *word;
  }

  // That of the key, or a free one.
  Word* place_of(uint64_t key) {
    size_t place = key * 0x9e3779b97f4a7c15ull >> 20;
    for (;; ++place) {
      Word& word = words_[place & (words_.size() - 1)];
      if (word.launch != launch_ || word.key == key) return &word;
    }
  }
};

inline Touches& touches() {
  static Touches all;
  return all;
}

}  // namespace played
