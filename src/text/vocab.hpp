#pragma once
// The vocabulary: id -> bytes for every token, bytes -> id for those that text may be looked up as.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace glint {

// A 64-bit hash of a short byte string: two multiplications for up to 16 bytes.
std::uint64_t hash_bytes(std::string_view bytes);

struct VocabEntry {
  std::string bytes;
  std::int32_t id = 0;
  bool searchable = true;  // find() may return it; added tokens are matched elsewhere
};

// Read-only once built: any number of threads may use it.
class Vocab {
 public:
  Vocab() = default;
  // Ids must be unique and >= 0, and the bytes of searchable entries unique and not empty; ids may leave holes.
  explicit Vocab(const std::vector<VocabEntry>& entries);

  // Highest id + 1.
  std::int32_t size() const { return static_cast<std::int32_t>(begin_.size()) - 1; }
  // Empty for a hole or an id outside [0, size()).
  std::string_view bytes(std::int32_t id) const {
    if (id < 0 || id >= size()) return {};
    const auto i = static_cast<std::size_t>(id);
    return std::string_view(arena_).substr(begin_[i], begin_[i + 1] - begin_[i]);
  }
  // -1 when no searchable entry has these bytes.
  std::int32_t find(std::string_view bytes) const { return find(bytes, hash_bytes(bytes)); }
  // The same, with hash_bytes(bytes) at hand.
  std::int32_t find(std::string_view bytes, std::uint64_t hash) const;

 private:
  struct Slot {
    std::uint32_t tag = 0;  // the hash's upper half: most mismatches end here
    std::int32_t id = -1;   // -1: empty
  };
  std::string arena_;                    // all tokens' bytes, in order of id
  std::vector<std::uint32_t> begin_{0};  // [size() + 1] offsets into arena_
  std::vector<Slot> slots_{1};           // open addressing, a power of two, at most half full
  std::size_t longest_ = 0;
};

}  // namespace glint
