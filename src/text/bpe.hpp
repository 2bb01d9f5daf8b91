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
    std::int32_t id;      // the token that starts here
    std::int32_t result;  // what merging it with the next one gives, if it merges
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
  // byte_ids[b] is the token of the single byte b. merges are in order of rank; of a repeated pair the last counts
  // (as in Hugging Face tokenizers, which fills a map in this order).
  Bpe(const std::array<std::int32_t, 256>& byte_ids, const std::vector<Merge>& merges);

  // Appends the tokens of `bytes`, which must be shorter than 2^31 bytes.
  void encode(std::string_view bytes, BpeScratch& scratch, std::vector<std::int32_t>& out) const;

 private:
  friend class BpeRun;
  static constexpr std::int32_t kNoMerge = INT32_MAX;
  struct Found {
    std::int32_t rank = kNoMerge;
    std::int32_t result = -1;
  };
  struct Slot {
    std::uint64_t key = kEmptyKey;
    Found found;
  };
  static constexpr std::uint64_t kEmptyKey = UINT64_MAX;
  static std::uint64_t key_of(std::int32_t left, std::int32_t right) {
    return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 | static_cast<std::uint32_t>(right);
  }
  void encode_long(std::string_view bytes, BpeScratch& scratch, std::vector<std::int32_t>& out) const;
  bool keep_apart(std::string_view left, std::string_view right, BpeScratch& scratch) const;
  Slot& slot_for(std::uint64_t key);
  Found find(std::int32_t left, std::int32_t right) const;

  std::array<std::int32_t, 256> byte_ids_{};
  std::vector<Slot> slots_{1};     // open addressing, a power of two, at most half full
  int shift_ = 63;                 // 64 - log2(slots_.size())
  std::vector<Found> byte_pairs_;  // [65536] find() of every pair of single bytes: the first look at any text
};

}  // namespace glint
