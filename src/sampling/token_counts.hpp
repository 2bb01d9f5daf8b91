#pragma once
// Which tokens a request has seen, for the penalties. Owned by the request; grows, never shrinks.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace glint {

class TokenCounts {
 public:
  struct Entry {
    std::int32_t id = -1;
    std::int32_t generated = 0;  // times generated; 0: only in the prompt
  };

  TokenCounts() = default;
  explicit TokenCounts(std::span<const std::int32_t> prompt);

  // A generated token. Amortised O(1); allocates only when the number of distinct tokens passes a power of two.
  void add_generated(std::int32_t id) { ++at(id).generated; }

  // Every distinct token once, in order of its first appearance.
  std::span<const Entry> entries() const { return entries_; }
  // Distinct tokens are in the map, others give 0.
  std::int32_t generated(std::int32_t id) const;

 private:
  Entry& at(std::int32_t id);  // inserts
  std::size_t find(std::int32_t id) const;
  void grow();

  std::vector<Entry> entries_;
  std::vector<std::int32_t> index_;  // open addressing: -1 or an index into entries_; size a power of two
};

}  // namespace glint
