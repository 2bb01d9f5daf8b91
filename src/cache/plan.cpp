#include "cache/plan.hpp"

#include <utility>

#include "base/check.hpp"

namespace glint {

KvPlan::KvPlan(std::int32_t n_pages, std::int32_t page_tokens)
    : page_tokens_(page_tokens), references_(static_cast<std::size_t>(n_pages), 0) {
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
  CHECK(!free_.empty());
  const PageId page = free_.back();
  free_.pop_back();
  references_[static_cast<std::size_t>(page)] = 1;
  return page;
}

void KvPlan::unref(PageId page) {
  auto& count = references_[static_cast<std::size_t>(page)];
  CHECK(count > 0, "page " + std::to_string(page));
  if (--count == 0) free_.push_back(page);
}

SequenceId KvPlan::open() {
  const SequenceId id = next_id_++;
  sequences_.emplace(id, Sequence{});
  return id;
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
  if (pages_needed(id, n_tokens) > free_pages()) return false;
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
  for (const PageId p : copy.pages) ++references_[static_cast<std::size_t>(p)];
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
  }
  return {};
}

}  // namespace glint
