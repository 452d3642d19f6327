// Memory as played kernels see it: where tensors end, and who has touched what.
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

// Who has touched memory, and when: the threads of a warp are ordered by the barriers of the warp, those of a block by
// its barriers, blocks by nothing.
struct Toucher {
  int32_t block = -1;
  uint16_t thread = 0;
  uint16_t block_barriers = 0;  // modulo 2^16, to need less room
  uint32_t warp_barriers = 0;

  bool is_before(const Toucher& now) const {
    if (block < 0 || (block == now.block && thread == now.thread)) return true;
    if (block != now.block) return false;
    return is_beside(now) ? warp_barriers != now.warp_barriers : block_barriers != now.block_barriers;
  }
  bool is_beside(const Toucher& other) const { return thread / 32 == other.thread / 32; }
};

// What has touched a word. Additions may meet; what else touches it needs a barrier before and after them.
class Touched {
 public:
  // Says what of another thread may happen at the same time, a "write" or a "read"; null: nothing.
  const char* touch(Touch how, const Toucher& now) {
    if (!(how == kAdds && added_) && !writer_.is_before(now)) return "write";
    if (how == kReads) {
      read_by(now);
      return nullptr;
    }
    for (const Toucher& reader : readers_)
      if (!reader.is_before(now)) return "read";
    *this = {};
    added_ = how == kAdds;
    writer_ = now;
    return nullptr;
  }

 private:
  bool added_ = false;  // by the writer, and maybe by others
  Toucher writer_;
  Toucher readers_[4];  // the last, and before it the last of another thread, of another warp and of another block

  void read_by(const Toucher& reader) {
    const Toucher& last = readers_[0];
    if (last.block != reader.block) {
      readers_[3] = last;
    } else {
      if (last.thread != reader.thread) readers_[1] = last;
      if (!last.is_beside(reader)) readers_[2] = last;
    }
    readers_[0] = reader;
  }
};

// What a launch does to words of four bytes, and to what is read and written by halves or single bytes.
class Touches {
 public:
  void launch() { ++launch_; }

  // As Touched tells, of the first word of which there is something to tell.
  const char* touch(uint64_t address, size_t bytes, Touch how, const Toucher& now) {
    const size_t of_word = std::min<size_t>(bytes, sizeof(uint32_t));
    for (size_t at = 0; at < bytes; at += of_word)
      if (const char* other = word_of(address + at, of_word).touch(how, now)) return other;
    return nullptr;
  }

 private:
  struct Page {
    int64_t launch = 0;
    std::vector<Touched> words;
  };
  static constexpr uint64_t kPageBytes = 1 << 12;
  std::unordered_map<uint64_t, Page> pages_;  // by their numbers and the bytes of a word
  Page* page_ = nullptr;                      // the last
  uint64_t key_ = 0;                          // its own
  int64_t launch_ = 1;

  Touched& word_of(uint64_t address, size_t of_word) {
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
