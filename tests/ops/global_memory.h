// The memory of tensors as played kernels see it: where it ends, and who has touched it in a launch.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
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
  int32_t block = -1;
  uint16_t thread = 0;
  uint16_t block_barriers = 0;  // beyond 2^16 counted from the start: a race might go unseen
  uint32_t warp_barriers = 0;

  bool is_before(const Toucher& now) const {
    if (block < 0 || (block == now.block && thread == now.thread)) return true;
    if (block != now.block) return false;
    return thread / 32 == now.thread / 32 ? warp_barriers != now.warp_barriers : block_barriers != now.block_barriers;
  }
};

// What a launch does to words of four bytes, and to what is read and written by halves or single bytes.
class Touches {
 public:
  void launch() { ++launch_; }

  // Whether nobody else can touch it at the same time.
  bool alone(uint64_t address, size_t bytes, Touch how, const Toucher& now) {
    const size_t of_word = std::min<size_t>(bytes, sizeof(uint32_t));
    for (size_t at = 0; at < bytes; at += of_word) {
      Word& word = word_of(address + at, of_word);
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
    bool added = false;                 // by the writer, and maybe by others
    Toucher writer, reader, elsewhere;  // the last; of readers also one of another block
  };
  struct Page {
    int64_t launch = 0;
    std::vector<Word> words;
  };
  static constexpr uint64_t kPageBytes = 1 << 12;
  std::unordered_map<uint64_t, Page> pages_;  // by their numbers and the bytes of a word
  Page* page_ = nullptr;                      // the last
  uint64_t key_ = 0;                          // its own
  int64_t launch_ = 1;

  Word& word_of(uint64_t address, size_t of_word) {
    const uint64_t key = address / kPageBytes * 8 + of_word;
    if (!page_ || key != key_) {
      page_ = &pages_[key];
      key_ = key;
    }
    if (page_->launch != launch_) {
      page_->launch = launch_;
      page_->words.assign(kPageBytes / of_word, {});
    }
    return page_->words[address % kPageBytes / of_word];
  }
};

inline Touches& touches() {
  static Touches all;
  return all;
}

}  // namespace played
