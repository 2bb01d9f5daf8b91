#include "text/vocab.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.hpp"

namespace glint {
namespace {

// Odd constants without structure (digits of pi), as the multiply-and-fold step needs.
constexpr std::uint64_t kMixA = 0x243F6A8885A308D3, kMixB = 0x13198A2E03707345;

std::uint64_t fold(std::uint64_t a, std::uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

template <typename Word>
std::uint64_t load(const char* p) {
  Word word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

}  // namespace

std::uint64_t hash_bytes(std::string_view bytes) {
  const char* p = bytes.data();
  std::size_t n = bytes.size();
  std::uint64_t seed = kMixA ^ n;
  for (; n > 16; n -= 16, p += 16) seed = fold(load<std::uint64_t>(p) ^ kMixB, load<std::uint64_t>(p + 8) ^ seed);
  // Up to 16 bytes are left: two overlapping words hold them all.
  std::uint64_t low = 0, high = 0;
  if (n >= 8) {
    low = load<std::uint64_t>(p);
    high = load<std::uint64_t>(p + n - 8);
  } else if (n >= 4) {
    low = load<std::uint32_t>(p);
    high = load<std::uint32_t>(p + n - 4);
  } else if (n > 0) {
    low = load<std::uint8_t>(p) << 16 | load<std::uint8_t>(p + n / 2) << 8 | load<std::uint8_t>(p + n - 1);
  }
  return fold(fold(low ^ kMixB, high ^ seed), kMixA);
}

Vocab::Vocab(const std::vector<VocabEntry>& entries) {
  std::int32_t end = 0;
  std::size_t total_bytes = 0, searchable = 0;
  for (const VocabEntry& e : entries) {
    end = std::max(end, e.id + 1);
    total_bytes += e.bytes.size();
    if (!e.searchable) continue;
    ++searchable;
    longest_ = std::max(longest_, e.bytes.size());
  }
  CHECK(total_bytes <= UINT32_MAX);
  std::vector<const VocabEntry*> by_id(static_cast<std::size_t>(end), nullptr);
  for (const VocabEntry& e : entries) {
    CHECK(by_id[static_cast<std::size_t>(e.id)] == nullptr, "id " + std::to_string(e.id) + " twice");
    by_id[static_cast<std::size_t>(e.id)] = &e;
  }
  arena_.reserve(total_bytes);
  begin_.reserve(by_id.size() + 1);
  for (const VocabEntry* e : by_id) {
    if (e != nullptr) arena_ += e->bytes;
    begin_.push_back(static_cast<std::uint32_t>(arena_.size()));
  }
  slots_.assign(std::bit_ceil(2 * searchable + 1), Slot{});
  for (const VocabEntry& e : entries) {
    if (!e.searchable) continue;
    const std::uint64_t hash = hash_bytes(e.bytes);
    std::size_t i = hash & (slots_.size() - 1);
    while (slots_[i].id >= 0) i = (i + 1) & (slots_.size() - 1);
    slots_[i] = {static_cast<std::uint32_t>(hash >> 32), e.id};
  }
}

std::int32_t Vocab::find(std::string_view text, std::uint64_t hash) const {
  if (text.size() > longest_) return -1;
  const auto tag = static_cast<std::uint32_t>(hash >> 32);
  for (std::size_t i = hash & (slots_.size() - 1);; i = (i + 1) & (slots_.size() - 1)) {
    const Slot slot = slots_[i];
    if (slot.id < 0) return -1;
    if (slot.tag == tag && bytes(slot.id) == text) return slot.id;
  }
}

}  // namespace glint
