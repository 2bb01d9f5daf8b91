#pragma once
// Byte-pair merging of one pre-token: while some adjacent pair has a merge, apply the merge of lowest rank, leftmost
// first. Time is n log n with a log of base 16, whatever the bytes, so that a megabyte without a space is no attack.

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace glint {

struct Merge {
  std::int32_t left = 0;
  std::int32_t right = 0;
  std::int32_t result = 0;
};

// Working memory of Bpe::encode; reusable, one a thread. It grows to the longest pre-token seen.
class BpeScratch {
 public:
  BpeScratch() = default;

 private:
  friend class BpeRun;
  static constexpr std::size_t kFan = 16;  // ranks a node: one cache line
  struct alignas(64) Node {
    std::array<std::int32_t, kFan> rank;
  };
  struct Symbol {
    std::int32_t id;  // the token that starts here
    std::int32_t previous;
    std::int32_t next;
  };
  std::vector<Symbol> symbols_;
  std::vector<Node> nodes_;
};

// Read-only once built: any number of threads may use it, each with its own scratch.
class Bpe {
 public:
  Bpe() = default;
  static constexpr int kIdBits = 20, kRankBits = 23;  // ids and ranks must fit: a pair and its rank share a word
  // byte_ids[b] is the token of the single byte b. merges are in order of rank; of a repeated pair the last counts
  // (as in Hugging Face tokenizers, which fills a map in this order).
  Bpe(const std::array<std::int32_t, 256>& byte_ids, const std::vector<Merge>& merges);

  // Appends the tokens of `bytes`, which must be shorter than 2^31 bytes.
  void encode(std::string_view bytes, BpeScratch& scratch, std::vector<std::int32_t>& out) const;

 private:
  friend class BpeRun;
  static constexpr std::int32_t kNoMerge = INT32_MAX;
  static constexpr std::uint64_t kEmptySlot = UINT64_MAX;
  void encode_long(std::string_view bytes, BpeScratch& scratch, std::vector<std::int32_t>& out) const;
  bool keep_apart(std::string_view left, std::string_view right, BpeScratch& scratch) const;
  // The rank of a pair, kNoMerge if it has none.
  std::int32_t find(std::int32_t left, std::int32_t right) const;
  std::int32_t find_in_table(std::uint64_t key, std::uint64_t mixed) const;  // the part of it that is seldom needed

  std::array<std::int32_t, 256> byte_ids_{};
  std::vector<std::int32_t> results_;     // by rank
  std::vector<std::int32_t> byte_pairs_;  // [65536] find() of every pair of single bytes: the first look at any text
  // Most pairs that are looked up have no merge. One bit a hash value, small enough for the second-level cache, says so
  // for nine in ten of them; the rest need the table of merges, which is too large for it.
  std::vector<std::uint64_t> filter_{0};
  int filter_shift_ = 58;  // 64 - log2(bits of filter_)
  // Open addressing, a power of two, at most two thirds full; a merge is one word: its pair, then its rank.
  std::vector<std::uint64_t> slots_{kEmptySlot};
  int slot_shift_ = 63;  // 64 - log2(slots_.size())
};

}  // namespace glint
