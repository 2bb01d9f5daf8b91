#include "sampling/token_counts.hpp"

#include "base/check.hpp"

namespace glint {

namespace {
std::size_t hash(std::int32_t id, std::size_t mask) {
  return static_cast<std::size_t>((static_cast<std::uint32_t>(id) * 0x9E3779B97F4A7C15ULL) >> 32) & mask;
}
}  // namespace

TokenCounts::TokenCounts(std::span<const std::int32_t> prompt) {
  for (const std::int32_t id : prompt) at(id);
}

// The slot of the id, or the free slot where it belongs.
std::size_t TokenCounts::find(std::int32_t id) const {
  const std::size_t mask = index_.size() - 1;
  std::size_t slot = hash(id, mask);
  while (index_[slot] >= 0 && entries_[static_cast<std::size_t>(index_[slot])].id != id) slot = (slot + 1) & mask;
  return slot;
}

std::int32_t TokenCounts::generated(std::int32_t id) const {
  if (index_.empty()) return 0;
  const std::int32_t i = index_[find(id)];
  return i < 0 ? 0 : entries_[static_cast<std::size_t>(i)].generated;
}

TokenCounts::Entry& TokenCounts::at(std::int32_t id) {
  CHECK(id >= 0, std::to_string(id));
  if (2 * (entries_.size() + 1) > index_.size()) grow();
  const std::size_t slot = find(id);
  if (index_[slot] < 0) {
    index_[slot] = static_cast<std::int32_t>(entries_.size());
    entries_.push_back({.id = id, .generated = 0});
  }
  return entries_[static_cast<std::size_t>(index_[slot])];
}

void TokenCounts::grow() {
  index_.assign(index_.empty() ? 64 : 2 * index_.size(), -1);
  for (std::size_t i = 0; i < entries_.size(); ++i) index_[find(entries_[i].id)] = static_cast<std::int32_t>(i);
}

}  // namespace glint
