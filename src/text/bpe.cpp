#include "text/bpe.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <string>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace glint {
namespace {

constexpr std::size_t kFan = 16;

// Pre-tokens above kLongBytes are merged in chunks, whose last tokens, within kCutMargin bytes of the end, are left to
// the next chunk because they have not seen what follows.
constexpr std::size_t kChunkBytes = 1024, kLongBytes = 2 * kChunkBytes, kCutMargin = 64;

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

}  // namespace

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

  std::size_t first_length() const { return static_cast<std::size_t>(symbol(0).next); }

 private:
  void merge_all() {
    std::int32_t rank = min_rank(node(top_, 0));
    std::size_t leaf = 0;
    bool in_leaf = false;  // whether `leaf` holds the leftmost pair of this rank
    while (rank != Bpe::kNoMerge) {
      if (!in_leaf) leaf = find_leaf(rank);
      merge(leaf * kFan + index_of(node(0, leaf), rank));
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
      Bpe::Found found;
      if (i + 1 < n) found = bpe_.byte_pairs_[byte * 256u + static_cast<std::uint8_t>(bytes[i + 1])];
      const auto at = static_cast<std::int32_t>(i);
      scratch_.symbols_[i] = {bpe_.byte_ids_[byte], found.result, at - 1, at + 1};
      node(0, 0)[i] = found.rank;
    }
    fill_tail(0, n);
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

  void merge(std::size_t position) {
    const auto at = static_cast<std::int32_t>(position);
    Symbol& left = symbol(at);
    const std::int32_t right = left.next;
    left.id = left.result;
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

  // Sets the rank and result of the pair that starts at `at`; the tree above is refreshed by the caller.
  void look_up(std::int32_t at) {
    Symbol& s = symbol(at);
    Bpe::Found found;
    if (s.next < end_) found = bpe_.find(s.id, symbol(s.next).id);
    s.result = found.result;
    node(0, 0)[at] = found.rank;
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
  slots_.assign(std::bit_ceil(2 * merges.size() + 2), Slot{});
  shift_ = 64 - std::countr_zero(slots_.size());
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const std::uint64_t key = key_of(merges[rank].left, merges[rank].right);
    slot_for(key) = {key, {static_cast<std::int32_t>(rank), merges[rank].result}};
  }
  byte_pairs_.resize(65536);
  for (std::size_t a = 0; a < 256; ++a) {
    for (std::size_t b = 0; b < 256; ++b) byte_pairs_[a * 256 + b] = find(byte_ids_[a], byte_ids_[b]);
  }
}

// Fibonacci hashing: the upper bits of a product with 2^64 / golden ratio spread consecutive ids.
Bpe::Slot& Bpe::slot_for(std::uint64_t key) {
  std::size_t i = (key ^ key >> 29) * 0x9E3779B97F4A7C15u >> shift_;
  while (slots_[i].key != key && slots_[i].key != kEmptyKey) i = (i + 1) & (slots_.size() - 1);
  return slots_[i];
}

Bpe::Found Bpe::find(std::int32_t left, std::int32_t right) const {
  const std::uint64_t key = key_of(left, right);
  for (std::size_t i = (key ^ key >> 29) * 0x9E3779B97F4A7C15u >> shift_;; i = (i + 1) & (slots_.size() - 1)) {
    if (slots_[i].key == key) return slots_[i].found;
    if (slots_[i].key == kEmptyKey) return {};
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
// the next chunk begins with the token that the chunk had there. Should they not, all is merged again as one.
void Bpe::encode_long(std::string_view bytes, BpeScratch& scratch, std::vector<std::int32_t>& out) const {
  const std::size_t out_begin = out.size();
  std::size_t begin = 0;
  BpeRun::Cut before;
  for (;;) {
    const std::string_view chunk = bytes.substr(begin, kChunkBytes);
    const bool is_last = begin + chunk.size() == bytes.size();
    const std::size_t chunk_out = out.size();
    const BpeRun run(*this, chunk, scratch);
    const BpeRun::Cut cut = run.append_until(is_last ? chunk.size() : chunk.size() - kCutMargin, out);
    const std::int32_t first = out.size() > chunk_out ? out[chunk_out] : -1;
    if (first < 0 || (begin > 0 && first != before.next_id &&
                      !keep_apart(bytes.substr(before.last_begin, begin - before.last_begin),
                                  chunk.substr(0, run.first_length()), scratch))) {
      out.resize(out_begin);
      BpeRun(*this, bytes, scratch).append_all(out);
      return;
    }
    if (is_last) return;
    before = {begin + cut.end, begin + cut.last_begin, cut.next_id};
    begin = before.end;
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
