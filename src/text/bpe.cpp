#include "text/bpe.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <string>
#include <unordered_map>

#include "base/check.hpp"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace glint {
namespace {

constexpr std::size_t kFan = 16;

// Pre-tokens above kLongBytes are merged in chunks, at first of kChunkBytes. Tokens within kCutMargin bytes of the end
// of a chunk are left to the next one, because they have not seen what follows.
constexpr std::size_t kChunkBytes = 256, kLongBytes = 2 * kChunkBytes, kCutMargin = 32;

// The least of 16 aligned ranks.
inline std::int32_t min_rank(const std::int32_t* ranks) {
#ifdef __SSE2__
  const auto lesser = [](__m128i a, __m128i b) {
    const __m128i a_less = _mm_cmplt_epi32(a, b);
    return _mm_or_si128(_mm_and_si128(a_less, a), _mm_andnot_si128(a_less, b));
  };
  const auto* p = reinterpret_cast<const __m128i*>(ranks);
  __m128i m =
      lesser(lesser(_mm_load_si128(p), _mm_load_si128(p + 1)), lesser(_mm_load_si128(p + 2), _mm_load_si128(p + 3)));
  m = lesser(m, _mm_shuffle_epi32(m, 0x4E));
  m = lesser(m, _mm_shuffle_epi32(m, 0xB1));
  return _mm_cvtsi128_si32(m);
#else
  std::int32_t least = ranks[0];
  for (std::size_t i = 1; i < kFan; ++i) least = std::min(least, ranks[i]);
  return least;
#endif
}

// The first of 16 aligned ranks that equals `wanted`, which is among them.
inline std::size_t index_of(const std::int32_t* ranks, std::int32_t wanted) {
#ifdef __SSE2__
  const auto* p = reinterpret_cast<const __m128i*>(ranks);
  const __m128i w = _mm_set1_epi32(wanted);
  const auto equal = [p, w](int i) { return _mm_cmpeq_epi32(_mm_load_si128(p + i), w); };
  const __m128i bytes = _mm_packs_epi16(_mm_packs_epi32(equal(0), equal(1)), _mm_packs_epi32(equal(2), equal(3)));
  return static_cast<std::size_t>(std::countr_zero(static_cast<unsigned>(_mm_movemask_epi8(bytes))));
#else
  std::size_t i = 0;
  while (ranks[i] != wanted) ++i;
  return i;
#endif
}

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return static_cast<std::uint64_t>(left) << Bpe::kIdBits | static_cast<std::uint64_t>(right);
}

// Fibonacci hashing: the upper bits of a product with 2^64 / golden ratio spread consecutive ids.
std::uint64_t mix(std::uint64_t key) { return key * 0x9E3779B97F4A7C15u; }

}  // namespace

inline std::int32_t Bpe::find(std::int32_t left, std::int32_t right) const {
  const std::uint64_t key = pair_key(left, right), mixed = mix(key), bit = mixed >> filter_shift_;
  if ((filter_[bit / 64] >> bit % 64 & 1) == 0) return kNoMerge;
  return find_in_table(key, mixed);
}

std::int32_t Bpe::find_in_table(std::uint64_t key, std::uint64_t mixed) const {
  for (std::size_t i = mixed >> slot_shift_;; i = (i + 1) & (slots_.size() - 1)) {
    const std::uint64_t slot = slots_[i];
    if (slot >> kRankBits == key) return static_cast<std::int32_t>(slot & ((1u << kRankBits) - 1));
    if (slot == kEmptySlot) return kNoMerge;
  }
}

// One pre-token being merged. Symbols are a linked list over byte positions; the rank of the pair that starts at each
// position is a leaf of a tree of minima of fan-out 16, whose leftmost least leaf is the next merge.
class BpeRun {
 public:
  BpeRun(const Bpe& bpe, std::string_view bytes, BpeScratch& scratch) : bpe_(bpe), scratch_(scratch) {
    static_assert(kFan == BpeScratch::kFan);
    start(bytes);
    merge_all();
  }

  void append_all(std::vector<std::int32_t>& out) const {
    for (std::int32_t i = 0; i < end_; i = symbol(i).next) out.push_back(symbol(i).id);
  }

  struct Cut {
    std::size_t end = 0;         // of the last token appended
    std::size_t last_begin = 0;  // and its begin
    std::int32_t next_id = -1;   // the token after it
  };
  // Appends the tokens that end at or before `limit`.
  Cut append_until(std::size_t limit, std::vector<std::int32_t>& out) const {
    Cut cut;
    std::int32_t i = 0;
    for (; i < end_ && static_cast<std::size_t>(symbol(i).next) <= limit; i = symbol(i).next) {
      out.push_back(symbol(i).id);
      cut.last_begin = static_cast<std::size_t>(i);
    }
    cut.end = static_cast<std::size_t>(i);
    if (i < end_) cut.next_id = symbol(i).id;
    return cut;
  }

  std::int32_t first_id() const { return symbol(0).id; }
  std::size_t first_length() const { return static_cast<std::size_t>(symbol(0).next); }

 private:
  void merge_all() {
    std::int32_t rank = min_rank(node(top_, 0));
    std::size_t leaf = 0;
    bool in_leaf = false;  // whether `leaf` holds the leftmost pair of this rank
    while (rank != Bpe::kNoMerge) {
      if (!in_leaf) leaf = find_leaf(rank);
      merge(leaf * kFan + index_of(node(0, leaf), rank), rank);
      // A merge makes no pair of its own rank, and no pair of this rank is left of it. So if nothing lower appeared
      // and this leaf has more of them, they come next: a long run of one pair never walks the tree.
      const std::int32_t least = min_rank(node(top_, 0));
      in_leaf = least == rank && min_rank(node(0, leaf)) == rank;
      rank = least;
    }
  }

  using Symbol = BpeScratch::Symbol;

  Symbol& symbol(std::int32_t i) const { return scratch_.symbols_[static_cast<std::size_t>(i)]; }
  std::int32_t* node(int level, std::size_t i) const { return scratch_.nodes_[level_begin_[level] + i].rank.data(); }

  void start(std::string_view bytes) {
    const std::size_t n = bytes.size();
    end_ = static_cast<std::int32_t>(n);
    std::size_t total = 0, nodes = (n + kFan - 1) / kFan;
    for (top_ = 0;; ++top_, nodes = (nodes + kFan - 1) / kFan) {
      level_begin_[top_] = total;
      level_nodes_[top_] = nodes;
      total += nodes;
      if (nodes == 1) break;
    }
    if (scratch_.symbols_.size() < n) scratch_.symbols_.resize(n);
    if (scratch_.nodes_.size() < total) scratch_.nodes_.resize(total);
    for (std::size_t i = 0; i < n; ++i) {
      const auto byte = static_cast<std::uint8_t>(bytes[i]);
      const auto at = static_cast<std::int32_t>(i);
      scratch_.symbols_[i] = {bpe_.byte_ids_[byte], at - 1, at + 1};
      if (i + 1 < n) node(0, 0)[i] = bpe_.byte_pairs_[byte * 256u + static_cast<std::uint8_t>(bytes[i + 1])];
    }
    fill_tail(0, n - 1);  // the last symbol has no pair
    for (int level = 1; level <= top_; ++level) {
      for (std::size_t i = 0; i < level_nodes_[level - 1]; ++i) node(level, 0)[i] = min_rank(node(level - 1, i));
      fill_tail(level, level_nodes_[level - 1]);
    }
  }

  // The last node of a level may be partly unused.
  void fill_tail(int level, std::size_t used) {
    std::fill(node(level, 0) + used, node(level, level_nodes_[level]), Bpe::kNoMerge);
  }

  std::size_t find_leaf(std::int32_t rank) const {
    std::size_t i = 0;
    for (int level = top_; level > 0; --level) i = i * kFan + index_of(node(level, i), rank);
    return i;
  }

  void merge(std::size_t position, std::int32_t rank) {
    const auto at = static_cast<std::int32_t>(position);
    Symbol& left = symbol(at);
    const std::int32_t right = left.next;
    left.id = bpe_.results_[static_cast<std::size_t>(rank)];
    left.next = symbol(right).next;
    if (left.next < end_) symbol(left.next).previous = at;
    node(0, 0)[right] = Bpe::kNoMerge;
    look_up(at);
    if (left.previous >= 0) look_up(left.previous);
    refresh(position / kFan);
    const auto right_leaf = static_cast<std::size_t>(right) / kFan;
    if (right_leaf != position / kFan) refresh(right_leaf);
    if (left.previous < 0) return;
    const auto previous_leaf = static_cast<std::size_t>(left.previous) / kFan;
    if (previous_leaf != position / kFan) refresh(previous_leaf);
  }

  // Sets the rank of the pair that starts at `at`; the tree above is refreshed by the caller.
  void look_up(std::int32_t at) {
    const Symbol& s = symbol(at);
    node(0, 0)[at] = s.next < end_ ? bpe_.find(s.id, symbol(s.next).id) : Bpe::kNoMerge;
  }

  // Carries a leaf's minimum upwards, as far as it changes anything.
  void refresh(std::size_t i) {
    for (int level = 0; level < top_; ++level, i /= kFan) {
      const std::int32_t least = min_rank(node(level, i));
      std::int32_t& above = node(level + 1, 0)[i];
      if (above == least) return;
      above = least;
    }
  }

  static constexpr int kMaxLevels = 8;  // 16^8 covers 2^31 bytes

  const Bpe& bpe_;
  BpeScratch& scratch_;
  std::int32_t end_ = 0;
  int top_ = 0;
  std::array<std::size_t, kMaxLevels> level_begin_{}, level_nodes_{};
};

Bpe::Bpe(const std::array<std::int32_t, 256>& byte_ids, const std::vector<Merge>& merges) : byte_ids_(byte_ids) {
  CHECK(merges.size() < std::size_t{1} << kRankBits);
  filter_.assign(std::bit_ceil(merges.size() * 8 + 64) / 64, 0);
  filter_shift_ = 64 - std::countr_zero(filter_.size() * 64);
  slots_.assign(std::bit_ceil(merges.size() * 3 / 2 + 2), kEmptySlot);
  slot_shift_ = 64 - std::countr_zero(slots_.size());
  byte_pairs_.assign(65536, kNoMerge);
  std::unordered_map<std::int32_t, std::size_t> byte_of;
  for (std::size_t b = 0; b < 256; ++b) byte_of.emplace(byte_ids_[b], b);
  results_.reserve(merges.size());
  for (const Merge& merge : merges) {
    CHECK((merge.left | merge.right) >> kIdBits == 0);
    const std::uint64_t key = pair_key(merge.left, merge.right), bit = mix(key) >> filter_shift_;
    const std::size_t rank = results_.size();
    filter_[bit / 64] |= std::uint64_t{1} << bit % 64;
    std::size_t i = mix(key) >> slot_shift_;
    while (slots_[i] != kEmptySlot && slots_[i] >> kRankBits != key) i = (i + 1) & (slots_.size() - 1);
    slots_[i] = key << kRankBits | rank;
    results_.push_back(merge.result);
    const auto left = byte_of.find(merge.left), right = byte_of.find(merge.right);
    if (left == byte_of.end() || right == byte_of.end()) continue;
    byte_pairs_[left->second * 256 + right->second] = static_cast<std::int32_t>(rank);
  }
}

void Bpe::encode(std::string_view bytes, BpeScratch& scratch, std::vector<std::int32_t>& out) const {
  if (bytes.size() == 1) {
    out.push_back(byte_ids_[static_cast<std::uint8_t>(bytes[0])]);
  } else if (bytes.size() > kLongBytes) {
    encode_long(bytes, scratch, out);
  } else if (!bytes.empty()) {
    BpeRun(*this, bytes, scratch).append_all(out);
  }
}

// In chunks, because merging goes all over its pre-token and a chunk stays in the first-level cache. This is exact:
// tokens t1 t2 ... are the encoding of their bytes if and only if each two neighbours are the encoding of theirs.
// (What stands around two neighbours does not change the order of the merges within them, so the first merge across a
// boundary of the whole would also happen between these two alone; and the other way round.) So a chunk may be cut
// at any of its tokens' boundaries and the next one start there, if the two tokens that meet keep apart. They do when
// the next chunk begins with the token that the chunk had there.
void Bpe::encode_long(std::string_view bytes, BpeScratch& scratch, std::vector<std::int32_t>& out) const {
  struct Start {
    std::size_t begin = 0;
    std::size_t out_size = 0;
    BpeRun::Cut before;  // where the chunk before was cut, as offsets into bytes
  };
  const Start whole{.out_size = out.size()};
  Start now = whole, previous = whole;
  for (std::size_t chunk_bytes = kChunkBytes;;) {
    const std::string_view chunk = bytes.substr(now.begin, chunk_bytes);
    const bool is_last = now.begin + chunk.size() == bytes.size();
    const BpeRun run(*this, chunk, scratch);
    const std::string_view last = bytes.substr(now.before.last_begin, now.begin - now.before.last_begin);
    const std::string_view first = chunk.substr(0, run.first_length());
    const bool same = now.begin == 0 || run.first_id() == now.before.next_id;
    const BpeRun::Cut cut = run.append_until(is_last ? chunk.size() : chunk.size() - kCutMargin, out);
    const bool joins = same || keep_apart(last, first, scratch);
    if (joins && is_last) return;
    if (joins && cut.end > 0) {
      if (cut.end < chunk.size() / 4 * 3) chunk_bytes *= 2;  // tokens are long: too much would be done twice
      previous = now;
      now = {now.begin + cut.end, out.size(), {now.begin + cut.end, now.begin + cut.last_begin, cut.next_id}};
      continue;
    }
    // The chunk was too short for its first token, or the one before was cut where it should not have been: with twice
    // the bytes, that one again; and if it still does not join, all as one.
    chunk_bytes *= 2;
    if (!joins && now.begin == previous.begin) {
      now = previous = whole;
      chunk_bytes = bytes.size();
    } else if (!joins) {
      now = previous;
    }
    out.resize(now.out_size);
  }
}

// Whether two tokens' bytes, encoded together, are still these two tokens.
bool Bpe::keep_apart(std::string_view left, std::string_view right, BpeScratch& scratch) const {
  const std::string both = std::string(left).append(right);
  std::vector<std::int32_t> ids;
  const BpeRun run(*this, both, scratch);
  run.append_all(ids);
  return ids.size() == 2 && run.first_length() == left.size();
}

}  // namespace glint
