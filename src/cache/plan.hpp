#pragma once
// KvPlan: the host's books of the paged cache. It decides which page holds which tokens; it never touches a page's
// bytes (KvStore does). One sequence is a list of pages; pages are shared between forks and counted by reference.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

namespace glint {

using PageId = std::int32_t;
using SequenceId = std::int64_t;

// A page copy that the caller must make (KvStore::copy_page) before the next write to `to`.
struct PageCopy {
  PageId from = -1;
  PageId to = -1;
};

// Owned and mutated by the engine thread alone. Invariants (check_integrity):
//   free + used = n_pages; a page's reference count = the number of sequences that list it;
//   a sequence of n tokens lists ceil(n / page_tokens) pages; only the last page of a sequence is partly filled.
class KvPlan {
 public:
  KvPlan(std::int32_t n_pages, std::int32_t page_tokens);

  std::int32_t n_pages() const { return static_cast<std::int32_t>(references_.size()); }
  std::int32_t page_tokens() const { return page_tokens_; }
  std::int32_t free_pages() const { return static_cast<std::int32_t>(free_.size()); }
  std::int32_t n_sequences() const { return static_cast<std::int32_t>(sequences_.size()); }

  // A new, empty sequence.
  SequenceId open();

  // Pages that `extend(id, n_tokens)` would take from the free list (a copy-on-write page included).
  std::int32_t pages_needed(SequenceId id, std::int64_t n_tokens) const;

  // Makes room for n_tokens more. If the last page is partly filled and shared, a private copy is taken first and the
  // copy to make is returned in *copy. False, with nothing changed, when pages are short.
  bool extend(SequenceId id, std::int64_t n_tokens, std::optional<PageCopy>* copy);

  // Forgets the tokens from n_tokens on (a rejected draft, an edited prompt).
  void truncate(SequenceId id, std::int64_t n_tokens);

  // A second sequence with the same tokens; pages are shared, the first write to a shared partial page copies it.
  SequenceId fork(SequenceId id);

  // Gives the sequence's pages back.
  void release(SequenceId id);

  std::int64_t tokens(SequenceId id) const { return at(id).tokens; }
  std::span<const PageId> pages(SequenceId id) const { return at(id).pages; }
  // page · page_tokens + row of token `position`.
  std::int32_t slot(SequenceId id, std::int64_t position) const;

  // Empty when the invariants hold, else what is wrong.
  std::string check_integrity() const;

 private:
  struct Sequence {
    std::vector<PageId> pages;
    std::int64_t tokens = 0;
  };
  const Sequence& at(SequenceId id) const;
  Sequence& at(SequenceId id);
  void unref(PageId page);
  PageId take();

  std::int32_t page_tokens_;
  std::vector<PageId> free_;              // a stack: the page freed last is reused first, while it is warm
  std::vector<std::int32_t> references_;  // per page
  std::unordered_map<SequenceId, Sequence> sequences_;
  SequenceId next_id_ = 1;
};

}  // namespace glint
