#include "cache/plan.hpp"

#include <utility>

#include "base/check.hpp"

namespace glint {

KvPlan::KvPlan(std::int32_t n_pages, std::int32_t page_tokens)
    : page_tokens_(page_tokens), references_(static_cast<std::size_t>(n_pages), 0), tree_(n_pages, page_tokens) {
  CHECK(n_pages > 0 && page_tokens > 0);
  free_.reserve(references_.size());
  for (PageId p = n_pages - 1; p >= 0; --p) free_.push_back(p);
}

const KvPlan::Sequence& KvPlan::at(SequenceId id) const {
  const auto it = sequences_.find(id);
  CHECK(it != sequences_.end(), "sequence " + std::to_string(id));
  return it->second;
}

KvPlan::Sequence& KvPlan::at(SequenceId id) { return const_cast<Sequence&>(std::as_const(*this).at(id)); }

PageId KvPlan::take() {
  if (free_.empty()) {
    PrefixNode* oldest = tree_.oldest();
    CHECK(oldest != nullptr);
    drop(oldest);
    ++n_evicted_;
  }
  const PageId page = free_.back();
  free_.pop_back();
  references_[static_cast<std::size_t>(page)] = 1;
  if (page >= ever_used_) ever_used_ = page + 1;
  return page;
}

void KvPlan::unref(PageId page) {
  auto& count = references_[static_cast<std::size_t>(page)];
  CHECK(count > 0, "page " + std::to_string(page));
  if (--count == 0) free_.push_back(page);
  if (PrefixNode* node = tree_.at(page); node != nullptr && count == 1) tree_.set_idle(node, true);
}

void KvPlan::ref(PageId page) {
  ++references_[static_cast<std::size_t>(page)];
  if (PrefixNode* node = tree_.at(page)) tree_.set_idle(node, false);
}

// Takes a leaf out of the tree.
void KvPlan::drop(PrefixNode* leaf) {
  const PageId page = leaf->page;
  tree_.remove(leaf);
  unref(page);
}

SequenceId KvPlan::open() {
  const SequenceId id = next_id_++;
  sequences_.emplace(id, Sequence{});
  return id;
}

PrefixMatch KvPlan::match(std::span<const std::int32_t> tokens) const {
  const PrefixTree::Path path = tree_.find(tokens);
  PrefixMatch match{.tokens = static_cast<std::int64_t>(path.full.size()) * page_tokens_};
  if (path.partial_tokens >= least_partial()) match.tokens += path.partial_tokens;
  for (const PrefixNode* node : path.full) match.used_pages += node->idle ? 0 : 1;
  return match;
}

SequenceId KvPlan::open(std::span<const std::int32_t> tokens) {
  const PrefixTree::Path path = tree_.find(tokens);
  const SequenceId id = open();
  Sequence& s = at(id);
  const auto adopt = [&](PrefixNode* node, std::int64_t n) {
    tree_.touch(node);
    ref(node->page);
    s.pages.push_back(node->page);
    s.tokens += n;
  };
  for (PrefixNode* node : path.full) adopt(node, page_tokens_);
  if (path.partial_tokens >= least_partial()) adopt(path.partial, path.partial_tokens);
  return id;
}

void KvPlan::keep(SequenceId id, std::span<const std::int32_t> tokens, Keep what) {
  Sequence& s = at(id);
  CHECK(static_cast<std::int64_t>(tokens.size()) <= s.tokens, std::to_string(tokens.size()) + " tokens");
  const auto page_tokens = static_cast<std::size_t>(page_tokens_);
  PrefixNode* parent = nullptr;
  for (std::size_t i = 0; i * page_tokens < tokens.size(); ++i) {
    const auto held = tokens.subspan(i * page_tokens, std::min(page_tokens, tokens.size() - i * page_tokens));
    const bool tail = held.size() < page_tokens;
    if (tail && (what == Keep::kPages || static_cast<std::int64_t>(held.size()) < least_partial())) return;
    PageId& page = s.pages[i];
    PrefixNode* node = tree_.child(parent, held);
    if (node == nullptr) {
      // A page of another path is one that a partial match shares and nothing was written to. One that is in no path
      // and that another sequence lists too was discarded or comes of a fork: the other sequence may list other pages
      // before it than those of this path, which would be idle while it is used.
      if (tree_.at(page) != nullptr || references_[static_cast<std::size_t>(page)] > 1) return;
      if (PrefixNode* leaf = tree_.shorter(parent, held)) drop(leaf);
      node = tree_.add(parent, held, page);
      ref(page);
    } else if (node->page != page && !tail) {  // a tail may be the beginning of a page that goes on differently
      ref(node->page);
      unref(std::exchange(page, node->page));
    }
    tree_.touch(node);
    parent = node;
  }
}

void KvPlan::discard(std::span<const std::int32_t> tokens) {
  const PrefixTree::Path path = tree_.find(tokens);
  PrefixNode* top = path.full.empty() ? path.partial : path.full.front();
  while (top != nullptr) {
    PrefixNode* leaf = PrefixTree::leaf_of(top);
    if (leaf == top) top = nullptr;
    drop(leaf);
  }
}

std::int32_t KvPlan::pages_needed(SequenceId id, std::int64_t n_tokens) const {
  const Sequence& s = at(id);
  CHECK(n_tokens >= 0);
  if (n_tokens == 0) return 0;
  const auto have = static_cast<std::int64_t>(s.pages.size());
  const std::int64_t want = (s.tokens + n_tokens + page_tokens_ - 1) / page_tokens_;
  const bool partial = s.tokens % page_tokens_ != 0;
  const bool copies = partial && references_[static_cast<std::size_t>(s.pages.back())] > 1;
  return static_cast<std::int32_t>(want - have + (copies ? 1 : 0));
}

bool KvPlan::extend(SequenceId id, std::int64_t n_tokens, std::optional<PageCopy>* copy) {
  if (copy != nullptr) copy->reset();
  if (pages_needed(id, n_tokens) > available_pages()) return false;
  if (n_tokens == 0) return true;
  Sequence& s = at(id);
  if (s.tokens % page_tokens_ != 0 && references_[static_cast<std::size_t>(s.pages.back())] > 1) {
    CHECK(copy != nullptr, "a shared partial page needs a copy");
    const PageId shared = s.pages.back();
    s.pages.back() = take();
    *copy = PageCopy{shared, s.pages.back()};
    unref(shared);
  }
  s.tokens += n_tokens;
  while (static_cast<std::int64_t>(s.pages.size()) * page_tokens_ < s.tokens) s.pages.push_back(take());
  return true;
}

void KvPlan::truncate(SequenceId id, std::int64_t n_tokens) {
  Sequence& s = at(id);
  CHECK(n_tokens >= 0 && n_tokens <= s.tokens, std::to_string(n_tokens) + " of " + std::to_string(s.tokens));
  s.tokens = n_tokens;
  while ((static_cast<std::int64_t>(s.pages.size()) - 1) * page_tokens_ >= n_tokens && !s.pages.empty()) {
    unref(s.pages.back());
    s.pages.pop_back();
  }
}

SequenceId KvPlan::fork(SequenceId id) {
  Sequence copy = at(id);
  for (const PageId p : copy.pages) ref(p);
  const SequenceId fork_id = next_id_++;
  sequences_.emplace(fork_id, std::move(copy));
  return fork_id;
}

void KvPlan::release(SequenceId id) {
  truncate(id, 0);
  sequences_.erase(id);
}

std::int32_t KvPlan::slot(SequenceId id, std::int64_t position) const {
  const Sequence& s = at(id);
  CHECK(position >= 0 && position < s.tokens, std::to_string(position) + " of " + std::to_string(s.tokens));
  const PageId page = s.pages[static_cast<std::size_t>(position / page_tokens_)];
  return page * page_tokens_ + static_cast<std::int32_t>(position % page_tokens_);
}

std::string KvPlan::check_integrity() const {
  std::vector<std::int32_t> counted(references_.size(), 0);
  for (const auto& [id, s] : sequences_) {
    const std::int64_t want = (s.tokens + page_tokens_ - 1) / page_tokens_;
    if (static_cast<std::int64_t>(s.pages.size()) != want) {
      return "sequence " + std::to_string(id) + " of " + std::to_string(s.tokens) + " tokens lists " +
             std::to_string(s.pages.size()) + " pages";
    }
    for (const PageId p : s.pages) {
      if (p < 0 || p >= n_pages()) return "sequence " + std::to_string(id) + " lists page " + std::to_string(p);
      ++counted[static_cast<std::size_t>(p)];
    }
  }
  if (std::string wrong = tree_.check_integrity(); !wrong.empty()) return wrong;
  for (PageId p = 0; p < n_pages(); ++p) {
    const PrefixNode* node = tree_.at(p);
    if (node != nullptr && node->idle != (counted[static_cast<std::size_t>(p)]++ == 0)) {
      return "page " + std::to_string(p) + " of the tree is wrongly " + (node->idle ? "idle" : "used");
    }
  }
  std::vector<bool> is_free(references_.size(), false);
  for (const PageId p : free_) {
    if (p < 0 || p >= n_pages() || is_free[static_cast<std::size_t>(p)]) return "free list: page " + std::to_string(p);
    is_free[static_cast<std::size_t>(p)] = true;
  }
  for (std::size_t p = 0; p < references_.size(); ++p) {
    if (counted[p] != references_[p]) {
      return "page " + std::to_string(p) + " is listed " + std::to_string(counted[p]) + " times, counted " +
             std::to_string(references_[p]);
    }
    if ((references_[p] == 0) != is_free[p]) return "page " + std::to_string(p) + " is neither free nor used";
    if (!is_free[p] && static_cast<PageId>(p) >= ever_used_) {
      return "page " + std::to_string(p) + " is used, and said to be new";
    }
  }
  return {};
}

}  // namespace glint
