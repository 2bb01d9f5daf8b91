// The prefix tree through KvPlan: what is found, what gives way, and random histories in which every row that a
// sequence lists must be the row of its own tokens.

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "cache/plan.hpp"

namespace glint {
namespace {

using Tokens = std::vector<std::int32_t>;

Tokens range(std::int32_t first, std::int32_t n) {
  Tokens t(static_cast<std::size_t>(n));
  std::iota(t.begin(), t.end(), first);
  return t;
}

Tokens operator+(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Opens, fills, keeps and releases.
void run(KvPlan& plan, const Tokens& tokens) {
  plan.advance();
  const SequenceId id = plan.open(tokens);
  std::optional<PageCopy> copy;
  ASSERT_TRUE(plan.extend(id, static_cast<std::int64_t>(tokens.size()) - plan.tokens(id), &copy));
  plan.keep(id, tokens, KvPlan::Keep::kTail);
  plan.release(id);
  ASSERT_EQ(plan.check_integrity(), "");
}

TEST(PrefixTree, FindsWholePagesAndTheBeginningOfTheNextOne) {
  KvPlan plan(20, 8);
  EXPECT_EQ(plan.match(range(0, 30)).tokens, 0);
  run(plan, range(0, 30));  // three pages and six tokens
  EXPECT_EQ(plan.free_pages(), 16);
  EXPECT_EQ(plan.kept_pages(), 4);
  EXPECT_EQ(plan.available_pages(), 20);
  EXPECT_EQ(plan.match(range(0, 30)).tokens, 30);
  EXPECT_EQ(plan.match(range(0, 50)).tokens, 30);
  EXPECT_EQ(plan.match(range(0, 29)).tokens, 29);
  EXPECT_EQ(plan.match(range(0, 16)).tokens, 16);
  EXPECT_EQ(plan.match(range(0, 11)).tokens, 11);
  EXPECT_EQ(plan.match(range(0, 10) + range(70, 9)).tokens, 10);
  EXPECT_EQ(plan.match(range(1, 30)).tokens, 0);
  EXPECT_EQ(plan.match({}).tokens, 0);
}

TEST(PrefixTree, APageThatMatchesInPartIsCopiedBeforeItIsWrittenTo) {
  KvPlan plan(20, 8);
  run(plan, range(0, 24));
  const Tokens branch = range(0, 12) + range(90, 2);
  const SequenceId id = plan.open(branch);
  EXPECT_EQ(plan.tokens(id), 12);
  EXPECT_EQ(plan.match(branch).used_pages, 1);
  EXPECT_EQ(plan.pages_needed(id, 2), 1);
  const PageId shared = plan.pages(id)[1];
  std::optional<PageCopy> copy;
  ASSERT_TRUE(plan.extend(id, 2, &copy));
  ASSERT_TRUE(copy.has_value());
  EXPECT_EQ(copy->from, shared);
  EXPECT_NE(plan.pages(id)[1], shared);
  plan.keep(id, branch, KvPlan::Keep::kTail);
  plan.release(id);
  EXPECT_EQ(plan.check_integrity(), "");
  EXPECT_EQ(plan.match(branch).tokens, 14);
  EXPECT_EQ(plan.match(range(0, 24)).tokens, 24);
}

TEST(PrefixTree, AShorterTailGivesWayToTheSameTokensAndMore) {
  KvPlan plan(20, 8);
  run(plan, range(0, 11));
  EXPECT_EQ(plan.kept_pages(), 2);
  run(plan, range(0, 14));
  EXPECT_EQ(plan.kept_pages(), 2);
  run(plan, range(0, 20));
  EXPECT_EQ(plan.kept_pages(), 3);
  run(plan, range(0, 13));  // adds nothing
  EXPECT_EQ(plan.kept_pages(), 3);
  EXPECT_EQ(plan.match(range(0, 20)).tokens, 20);
}

TEST(PrefixTree, TwoThatComputedTheSameShareThePagesOfTheFirst) {
  KvPlan plan(20, 8);
  const Tokens tokens = range(0, 24);
  const SequenceId a = plan.open(tokens);
  const SequenceId b = plan.open(tokens);
  ASSERT_TRUE(plan.extend(a, 24, nullptr));
  ASSERT_TRUE(plan.extend(b, 24, nullptr));
  EXPECT_EQ(plan.free_pages(), 14);
  plan.keep(a, tokens, KvPlan::Keep::kPages);
  plan.keep(b, tokens, KvPlan::Keep::kPages);
  EXPECT_EQ(plan.free_pages(), 17);
  EXPECT_TRUE(std::equal(plan.pages(a).begin(), plan.pages(a).end(), plan.pages(b).begin()));
  EXPECT_EQ(plan.kept_pages(), 0);  // all are used
  plan.release(a);
  EXPECT_EQ(plan.kept_pages(), 0);
  plan.release(b);
  EXPECT_EQ(plan.kept_pages(), 3);
  EXPECT_EQ(plan.check_integrity(), "");
}

TEST(PrefixTree, TheLeafUsedLongestAgoGivesWayAndUsedPagesNeverDo) {
  KvPlan plan(9, 8);
  run(plan, range(0, 24));
  run(plan, range(100, 24));
  run(plan, range(200, 24));
  run(plan, range(0, 24));  // used again
  EXPECT_EQ(plan.free_pages(), 0);
  const SequenceId pinned = plan.open(range(200, 24));
  run(plan, range(300, 8));
  EXPECT_EQ(plan.n_evicted(), 1);
  EXPECT_EQ(plan.match(range(100, 24)).tokens, 16);  // from the end
  EXPECT_EQ(plan.match(range(0, 24)).tokens, 24);
  EXPECT_EQ(plan.available_pages(), 6);
  const SequenceId all = plan.open();
  EXPECT_FALSE(plan.extend(all, 7 * 8, nullptr));
  EXPECT_TRUE(plan.extend(all, 6 * 8, nullptr));
  EXPECT_EQ(plan.match(range(0, 24)).tokens, 0);
  EXPECT_EQ(plan.match(range(200, 24)).tokens, 24);
  plan.release(pinned);
  EXPECT_EQ(plan.check_integrity(), "");
}

// Two sequences share pages that are discarded, and a third one computes the first of them anew: the second page must
// not come back behind the new first one, which the other sharer does not list.
TEST(PrefixTree, WhatWasDiscardedComesBackOnlyWithItsWholePath) {
  KvPlan plan(8, 4);
  const Tokens tokens = range(0, 8);
  run(plan, tokens);
  const SequenceId one = plan.open(tokens);
  const SequenceId other = plan.open(tokens);
  plan.discard(tokens);
  const SequenceId anew = plan.open(range(0, 4));
  EXPECT_EQ(plan.tokens(anew), 0);
  ASSERT_TRUE(plan.extend(anew, 4, nullptr));
  plan.keep(anew, range(0, 4), KvPlan::Keep::kPages);
  plan.keep(one, tokens, KvPlan::Keep::kPages);
  plan.release(one);
  plan.release(anew);
  EXPECT_EQ(plan.check_integrity(), "");
  EXPECT_EQ(plan.match(tokens).tokens, 4);
  plan.keep(other, tokens, KvPlan::Keep::kPages);  // alone now
  EXPECT_EQ(plan.match(tokens).tokens, 8);
  plan.release(other);
  EXPECT_EQ(plan.check_integrity(), "");
  EXPECT_EQ(plan.available_pages(), 8);
}

TEST(PrefixTree, DiscardForgetsAllThatGoesOnFromThere) {
  KvPlan plan(20, 8);
  run(plan, range(0, 24));
  run(plan, range(0, 8) + range(50, 13));
  run(plan, range(100, 8));
  const SequenceId user = plan.open(range(0, 24));
  plan.discard(range(0, 10));
  EXPECT_EQ(plan.check_integrity(), "");
  EXPECT_EQ(plan.match(range(0, 24)).tokens, 0);
  EXPECT_EQ(plan.match(range(100, 8)).tokens, 8);
  EXPECT_EQ(plan.tokens(user), 24);
  plan.release(user);
  EXPECT_EQ(plan.available_pages(), 20);
}

// Sequences over a small alphabet, so that beginnings meet; slots hold a hash of the tokens up to theirs.
class TreeModel {
 public:
  TreeModel(std::int32_t n_pages, std::int32_t page_tokens)
      : plan_(n_pages, page_tokens), slots_(static_cast<std::size_t>(n_pages * page_tokens), 0) {}

  void step() {
    plan_.advance();
    switch (*rc::gen::inRange(0, 9)) {
      case 0:
      case 1:
        open();
        break;
      case 2:
      case 3:
      case 4:
        extend();
        break;
      case 5:
        if (Sequence* s = any())
          plan_.keep(s->id, s->tokens, *rc::gen::element(KvPlan::Keep::kPages, KvPlan::Keep::kTail));
        break;
      case 6:
        if (Sequence* s = any()) {
          s->tokens.resize(static_cast<std::size_t>(*rc::gen::inRange<int>(0, static_cast<int>(s->tokens.size()) + 1)));
          plan_.truncate(s->id, static_cast<std::int64_t>(s->tokens.size()));
        }
        break;
      case 7:
        if (Sequence* s = any()) {
          if (*rc::gen::inRange(0, 4) == 0) plan_.discard(s->tokens);
          if (*rc::gen::inRange(0, 2) == 0) plan_.keep(s->id, s->tokens, KvPlan::Keep::kTail);
          old_.push_back(s->tokens);
          plan_.release(s->id);
          sequences_.erase(sequences_.begin() + (s - sequences_.data()));
        }
        break;
      default:
        if (Sequence* s = any()) {
          const Tokens copy = s->tokens;
          sequences_.push_back({plan_.fork(s->id), copy});
        }
    }
    check();
  }

  void finish() {
    for (const Sequence& s : sequences_) plan_.release(s.id);
    RC_ASSERT(plan_.available_pages() == plan_.n_pages());
    RC_ASSERT(plan_.check_integrity().empty());
  }

  std::int64_t found = 0;
  std::int64_t evicted() const { return plan_.n_evicted(); }

 private:
  struct Sequence {
    SequenceId id;
    Tokens tokens;
  };

  static std::uint64_t fold(std::uint64_t h, std::int32_t t) {
    return (h ^ static_cast<std::uint64_t>(t + 7)) * 1099511628211ULL;
  }

  Sequence* any() {
    if (sequences_.empty()) return nullptr;
    return &sequences_[static_cast<std::size_t>(*rc::gen::inRange<int>(0, static_cast<int>(sequences_.size())))];
  }

  void open() {
    Tokens tokens;
    if (!old_.empty())
      tokens = old_[static_cast<std::size_t>(*rc::gen::inRange<int>(0, static_cast<int>(old_.size())))];
    for (int n = *rc::gen::inRange(0, 4); n > 0; --n) tokens.push_back(*rc::gen::inRange(0, 2));
    const PrefixMatch match = plan_.match(tokens);
    const SequenceId id = plan_.open(tokens);
    RC_ASSERT(plan_.tokens(id) == match.tokens);
    RC_ASSERT(match.tokens <= static_cast<std::int64_t>(tokens.size()));
    tokens.resize(static_cast<std::size_t>(match.tokens));
    found += match.tokens;
    sequences_.push_back({id, std::move(tokens)});
  }

  void extend() {
    Sequence* s = any();
    if (s == nullptr) return;
    const std::int64_t n = *rc::gen::inRange(0, 3 * plan_.page_tokens());
    const std::int32_t need = plan_.pages_needed(s->id, n);
    const std::int32_t available = plan_.available_pages();
    std::optional<PageCopy> copy;
    const bool done = plan_.extend(s->id, n, &copy);
    RC_ASSERT(done == (need <= available));
    if (!done) return;
    if (copy) {
      for (std::int32_t r = 0; r < plan_.page_tokens(); ++r) {
        slots_[static_cast<std::size_t>(copy->to * plan_.page_tokens() + r)] =
            slots_[static_cast<std::size_t>(copy->from * plan_.page_tokens() + r)];
      }
    }
    std::uint64_t h = 1;
    for (const std::int32_t t : s->tokens) h = fold(h, t);
    for (std::int64_t i = 0; i < n; ++i) {
      s->tokens.push_back(*rc::gen::inRange(0, 2));
      h = fold(h, s->tokens.back());
      slots_[static_cast<std::size_t>(plan_.slot(s->id, static_cast<std::int64_t>(s->tokens.size()) - 1))] = h;
    }
  }

  void check() const {
    const std::string wrong = plan_.check_integrity();
    if (!wrong.empty()) RC_FAIL(wrong);
    for (const Sequence& s : sequences_) {
      RC_ASSERT(plan_.tokens(s.id) == static_cast<std::int64_t>(s.tokens.size()));
      std::uint64_t h = 1;
      for (std::size_t i = 0; i < s.tokens.size(); ++i) {
        h = fold(h, s.tokens[i]);
        RC_ASSERT(slots_[static_cast<std::size_t>(plan_.slot(s.id, static_cast<std::int64_t>(i)))] == h);
      }
    }
  }

  KvPlan plan_;
  std::vector<Sequence> sequences_;
  std::vector<Tokens> old_;
  std::vector<std::uint64_t> slots_;
};

TEST(PrefixTree, RandomHistoriesKeepEverySequencesRows) {
  const bool ok = rc::check("open, extend, keep, truncate, fork, discard, release", [] {
    TreeModel model(*rc::gen::inRange(1, 24), *rc::gen::element(1, 2, 4, 16));
    const int steps = *rc::gen::inRange(1, 150);
    for (int i = 0; i < steps; ++i) model.step();
    model.finish();
    RC_CLASSIFY(model.found > 0, "hits");
    RC_CLASSIFY(model.evicted() > 0, "evictions");
  });
  EXPECT_TRUE(ok);
}

}  // namespace
}  // namespace glint
