#pragma once
// KvPlan: the host's books of the paged cache. It decides which page holds which tokens; it never touches a page's
// bytes (KvStore does). One sequence is a list of pages; pages are shared between sequences and counted by reference.
// Pages that keep() puts into the prefix tree outlive their sequence: open(tokens) finds them again, and the one that
// was not used for the longest time gives way when pages are short.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "cache/plan_tree.hpp"

namespace glint {

using SequenceId = std::int64_t;

// A page copy that the caller must make (KvStore::copy_page) before the next write to `to`.
struct PageCopy {
  PageId from = -1;
  PageId to = -1;
};

// What the tree holds of a prompt.
struct PrefixMatch {
  std::int64_t tokens = 0;
  std::int32_t used_pages = 0;  // whole pages among them that a sequence lists already: sharing them takes none
};

// Owned and mutated by the engine thread alone. Invariants (check_integrity):
//   free + used = n_pages; a page's reference count = the number of sequences that list it, and one for the tree;
//   a sequence of n tokens lists ceil(n / page_tokens) pages; only the last page of a sequence is partly filled;
//   a page in the tree that a sequence lists has no ancestor that none does, so that all idle pages can be evicted.
class KvPlan {
 public:
  KvPlan(std::int32_t n_pages, std::int32_t page_tokens);

  std::int32_t n_pages() const { return static_cast<std::int32_t>(references_.size()); }
  std::int32_t page_tokens() const { return page_tokens_; }
  // Pages from it on have never been used: the lowest of those is taken next.
  PageId pages_ever_used() const { return ever_used_; }
  std::int32_t free_pages() const { return static_cast<std::int32_t>(free_.size()); }
  // Pages of the tree that no sequence lists.
  std::int32_t kept_pages() const { return tree_.n_idle(); }
  // Pages that a sequence could get.
  std::int32_t available_pages() const { return free_pages() + kept_pages(); }
  std::int64_t n_evicted() const { return n_evicted_; }
  std::int32_t n_sequences() const { return static_cast<std::int32_t>(sequences_.size()); }

  // A new, empty sequence.
  SequenceId open();

  // ---- the prefix tree ----

  PrefixMatch match(std::span<const std::int32_t> tokens) const;
  // A new sequence that begins with what the tree holds of the tokens: whole pages shared, of a page that matches in
  // part the beginning (extend() copies it). tokens(id) says how many were found.
  SequenceId open(std::span<const std::int32_t> tokens);
  // The sequence's tokens are computed from the first to tokens.size(): their whole pages go into the tree, and with
  // kTail the last, partly filled one too. A page that the tree has already takes the place of the sequence's own.
  enum class Keep : std::uint8_t { kPages, kTail };
  void keep(SequenceId id, std::span<const std::int32_t> tokens, Keep what);
  // The content of these tokens' pages cannot be trusted: the tree forgets them and all that goes on from them.
  void discard(std::span<const std::int32_t> tokens);
  // Time goes on: what is used from here on is more recent than what was used before.
  void advance() { tree_.advance(); }

  // ---- sequences ----

  // Pages that `extend(id, n_tokens)` would take (a copy-on-write page included).
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
  void ref(PageId page);
  void unref(PageId page);
  PageId take();
  void drop(PrefixNode* leaf);
  // Shorter matches of a page are not worth the page that the copy takes.
  std::int64_t least_partial() const { return std::max(1, page_tokens_ / 8); }

  std::int32_t page_tokens_;
  PageId ever_used_ = 0;
  std::vector<PageId> free_;              // a stack: the page freed last is reused first, while it is warm
  std::vector<std::int32_t> references_;  // per page
  PrefixTree tree_;
  std::unordered_map<SequenceId, Sequence> sequences_;
  SequenceId next_id_ = 1;
  std::int64_t n_evicted_ = 0;
};

}  // namespace glint
