#include "cache/plan.hpp"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <map>
#include <set>
#include <string>
#include <vector>

namespace glint {
namespace {

TEST(KvPlan, GrowsByPagesAndGivesThemBack) {
  KvPlan plan(4, 16);
  const SequenceId a = plan.open();
  EXPECT_EQ(plan.pages_needed(a, 16), 1);
  EXPECT_EQ(plan.pages_needed(a, 17), 2);
  EXPECT_TRUE(plan.extend(a, 17, nullptr));
  EXPECT_EQ(plan.free_pages(), 2);
  EXPECT_EQ(plan.slot(a, 16), plan.pages(a)[1] * 16);
  EXPECT_FALSE(plan.extend(a, 48, nullptr));
  EXPECT_EQ(plan.tokens(a), 17);
  plan.truncate(a, 16);
  EXPECT_EQ(plan.free_pages(), 3);
  EXPECT_EQ(plan.pages_ever_used(), 2);  // the lowest new page is taken next
  plan.release(a);
  EXPECT_EQ(plan.free_pages(), 4);
  EXPECT_EQ(plan.pages_ever_used(), 2);
  EXPECT_EQ(plan.check_integrity(), "");
}

TEST(KvPlan, AForkSharesPagesAndCopiesOnlyTheLastOneWhenWritten) {
  KvPlan plan(4, 16);
  const SequenceId a = plan.open();
  std::optional<PageCopy> copy;
  ASSERT_TRUE(plan.extend(a, 20, &copy));
  const SequenceId b = plan.fork(a);
  EXPECT_EQ(plan.free_pages(), 2);
  const PageId shared = plan.pages(a)[1];
  EXPECT_EQ(plan.pages_needed(b, 1), 1);
  ASSERT_TRUE(plan.extend(b, 1, &copy));
  ASSERT_TRUE(copy.has_value());
  EXPECT_EQ(copy->from, shared);
  EXPECT_EQ(copy->to, plan.pages(b)[1]);
  EXPECT_EQ(plan.pages(b)[0], plan.pages(a)[0]);
  ASSERT_TRUE(plan.extend(a, 1, &copy));  // now its own
  EXPECT_FALSE(copy.has_value());
  EXPECT_EQ(plan.pages(a)[1], shared);
  EXPECT_EQ(plan.check_integrity(), "");
}

// A model of the cache's content: what each slot holds, written by extend, moved by the copies that the plan asks for.
// If every sequence reads back the tokens that it wrote, no page was shared, reused or dropped wrongly.
class Model {
 public:
  Model(std::int32_t n_pages, std::int32_t page_tokens)
      : plan_(n_pages, page_tokens), bytes_(static_cast<std::size_t>(n_pages * page_tokens), -1) {}

  void step() {
    switch (*rc::gen::inRange(0, 7)) {
      case 0:
        sequences_[plan_.open()] = {};
        break;
      case 1:
      case 2:
      case 3:
        extend();
        break;
      case 4:
        fork();
        break;
      case 5:
        truncate();
        break;
      default:
        release();
    }
    check();
  }

  void release_all() {
    for (const auto& [id, tokens] : sequences_) plan_.release(id);
    sequences_.clear();
    RC_ASSERT(plan_.free_pages() == plan_.n_pages());
    RC_ASSERT(plan_.check_integrity().empty());
  }

 private:
  SequenceId any() const {
    return std::next(sequences_.begin(), *rc::gen::inRange<int>(0, static_cast<int>(sequences_.size())))->first;
  }

  void extend() {
    if (sequences_.empty()) return;
    const SequenceId id = any();
    const std::int64_t n = *rc::gen::inRange(0, 3 * plan_.page_tokens());
    const std::int32_t need = plan_.pages_needed(id, n);
    const std::int32_t before = plan_.free_pages();
    const std::vector<PageId> pages(plan_.pages(id).begin(), plan_.pages(id).end());
    std::optional<PageCopy> copy;
    if (!plan_.extend(id, n, &copy)) {
      RC_ASSERT(need > before);
      RC_ASSERT(plan_.free_pages() == before);
      RC_ASSERT(!copy.has_value());
      RC_ASSERT(std::equal(pages.begin(), pages.end(), plan_.pages(id).begin(), plan_.pages(id).end()));
      return;
    }
    RC_ASSERT(need <= before);
    // A page that was shared is still used by the others, so the pages taken are exactly those announced.
    RC_ASSERT(plan_.free_pages() == before - need);
    if (copy) {
      const int rows = plan_.page_tokens();
      for (int r = 0; r < rows; ++r)
        bytes_[static_cast<std::size_t>(copy->to * rows + r)] = bytes_[static_cast<std::size_t>(copy->from * rows + r)];
    }
    std::vector<int>& tokens = sequences_.at(id);
    for (std::int64_t i = 0; i < n; ++i) {
      tokens.push_back(next_token_);
      bytes_[static_cast<std::size_t>(plan_.slot(id, static_cast<std::int64_t>(tokens.size()) - 1))] = next_token_++;
    }
  }
  void fork() {
    if (sequences_.empty()) return;
    const SequenceId id = any();
    const SequenceId other = plan_.fork(id);
    RC_ASSERT(!sequences_.contains(other));
    sequences_[other] = std::vector<int>(sequences_.at(id));
  }
  void truncate() {
    if (sequences_.empty()) return;
    const SequenceId id = any();
    std::vector<int>& tokens = sequences_.at(id);
    const int n = *rc::gen::inRange<int>(0, static_cast<int>(tokens.size()) + 1);
    plan_.truncate(id, n);
    tokens.resize(static_cast<std::size_t>(n));
  }
  void release() {
    if (sequences_.empty()) return;
    const SequenceId id = any();
    plan_.release(id);
    sequences_.erase(id);
  }
  void check() const {
    const std::string wrong = plan_.check_integrity();
    if (!wrong.empty()) RC_FAIL(wrong);
    RC_ASSERT(plan_.n_sequences() == static_cast<std::int32_t>(sequences_.size()));
    std::set<PageId> used;
    for (const auto& [id, tokens] : sequences_) {
      RC_ASSERT(plan_.tokens(id) == static_cast<std::int64_t>(tokens.size()));
      for (std::size_t i = 0; i < tokens.size(); ++i) {
        RC_ASSERT(bytes_[static_cast<std::size_t>(plan_.slot(id, static_cast<std::int64_t>(i)))] == tokens[i]);
      }
      used.insert(plan_.pages(id).begin(), plan_.pages(id).end());
    }
    RC_ASSERT(plan_.free_pages() + static_cast<std::int32_t>(used.size()) == plan_.n_pages());
  }

  KvPlan plan_;
  std::map<SequenceId, std::vector<int>> sequences_;
  std::vector<int> bytes_;
  int next_token_ = 0;
};

TEST(KvPlan, RandomHistoriesKeepEverySequencesContent) {
  const bool ok = rc::check("open, extend, fork, truncate, release", [] {
    Model model(*rc::gen::inRange(1, 24), *rc::gen::element(1, 2, 4, 16));
    const int steps = *rc::gen::inRange(1, 150);
    for (int i = 0; i < steps; ++i) model.step();
    model.release_all();
  });
  EXPECT_TRUE(ok);
}

}  // namespace
}  // namespace glint
