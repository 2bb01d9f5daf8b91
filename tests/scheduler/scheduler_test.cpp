#include "scheduler/scheduler.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "scheduler/simulator.hpp"

namespace glint {
namespace {

using scheduler_test::Simulator;

const StepItem* find(const StepPlan& plan, RequestId id) {
  const auto it =
      std::find_if(plan.items.begin(), plan.items.end(), [&](const StepItem& i) { return i.request == id; });
  return it == plan.items.end() ? nullptr : &*it;
}

// Runs the plan: every sampling item gives one token and goes on, except those in `finish`.
void commit(Scheduler& s, const StepPlan& plan, const std::vector<RequestId>& finish = {}) {
  std::vector<StepOutcome> outcomes;
  for (const StepItem& i : plan.items) {
    const bool ends = std::count(finish.begin(), finish.end(), i.request) != 0;
    if (i.samples || ends) outcomes.push_back({.request = i.request, .n_sampled = 1, .finished = ends});
  }
  s.commit(outcomes);
  EXPECT_EQ(s.check_integrity(), "");
}

TEST(Scheduler, RefusesWhatCanNeverRunAndClipsTheRest) {
  Scheduler s({.n_pages = 10, .page_tokens = 16, .max_context = 100});
  EXPECT_EQ(s.admit({.id = 1, .prompt_tokens = 0}).refusal->what, "prompt tokens");
  const Admission too_long = s.admit({.id = 1, .prompt_tokens = 100});
  ASSERT_TRUE(too_long.refusal.has_value());
  EXPECT_EQ(too_long.refusal->found, "100");
  EXPECT_EQ(too_long.refusal->expected, "at most 99");
  EXPECT_EQ(s.admit({.id = 1, .prompt_tokens = 5, .max_tokens = -1}).refusal->what, "max_tokens");
  EXPECT_TRUE(s.idle());
  EXPECT_EQ(s.admit({.id = 1, .prompt_tokens = 99}).max_tokens, 1);
  EXPECT_EQ(s.admit({.id = 2, .prompt_tokens = 40, .max_tokens = 70}).max_tokens, 60);
  EXPECT_EQ(s.admit({.id = 3, .prompt_tokens = 40, .max_tokens = 7}).max_tokens, 7);
  Scheduler small({.n_pages = 2, .page_tokens = 16, .max_context = 100});
  EXPECT_EQ(small.admit({.id = 1, .prompt_tokens = 20}).max_tokens, 12);
}

TEST(Scheduler, ReadsAPromptInChunksThenDecodes) {
  Scheduler s({.n_pages = 10, .page_tokens = 4, .chunk_tokens = 8});
  s.admit({.id = 7, .prompt_tokens = 18});
  for (const std::int64_t start : {0, 8, 16}) {
    const StepPlan& p = s.plan(0);
    ASSERT_EQ(p.items.size(), 1U);
    EXPECT_EQ(p.items[0].start, start);
    EXPECT_EQ(p.items[0].n_tokens, start == 16 ? 2 : 8);
    EXPECT_EQ(p.items[0].samples, start == 16);
    EXPECT_TRUE(p.items[0].prefill);
    EXPECT_EQ(p.started.size(), start == 0 ? 1U : 0U);
    commit(s, p);
  }
  for (const std::int64_t start : {18, 19}) {
    const StepPlan& p = s.plan(0);
    ASSERT_EQ(p.items.size(), 1U);
    EXPECT_EQ(p.items[0].start, start);
    EXPECT_EQ(p.items[0].n_tokens, 1);
    EXPECT_TRUE(p.items[0].samples);
    EXPECT_FALSE(p.items[0].prefill);
    commit(s, p, start == 19 ? std::vector<RequestId>{7} : std::vector<RequestId>{});
  }
  EXPECT_TRUE(s.idle());
  EXPECT_EQ(s.kv().free_pages(), 10);
  EXPECT_TRUE(s.plan(0).empty());
}

TEST(Scheduler, DecodesComeFirstAndPromptsFillTheRest) {
  Scheduler s({.n_pages = 100, .page_tokens = 16, .chunk_tokens = 16});
  for (RequestId id = 1; id <= 4; ++id) s.admit({.id = id, .prompt_tokens = 4});
  commit(s, s.plan(0));
  s.admit({.id = 9, .prompt_tokens = 500});
  for (int step = 0; step < 10; ++step) {
    const StepPlan& p = s.plan(0);
    ASSERT_EQ(p.items.size(), 5U);
    for (RequestId id = 1; id <= 4; ++id) EXPECT_EQ(find(p, id)->n_tokens, 1);
    EXPECT_EQ(find(p, 9)->n_tokens, 12);
    EXPECT_EQ(p.n_rows, 16);
    EXPECT_EQ(p.n_logits, 4);
    commit(s, p);
  }
}

TEST(Scheduler, PromptsBesideDecodesGetFewRows) {
  Scheduler s({.n_pages = 1000, .page_tokens = 16, .chunk_tokens = 256, .prompt_rows = 16, .max_running = 100});
  s.admit({.id = 1000, .prompt_tokens = 5000});
  EXPECT_EQ(find(s.plan(0), 1000)->n_tokens, 256);  // alone: a whole step
  s.commit({});
  s.cancel(1000);
  for (RequestId id = 1; id <= 60; ++id) s.admit({.id = id, .prompt_tokens = 1});
  commit(s, s.plan(0));
  s.admit({.id = 1000, .prompt_tokens = 5000});
  const StepPlan& many = s.plan(0);
  EXPECT_EQ(find(many, 1000)->n_tokens, 30);  // half as many as decode
  std::vector<RequestId> all_but_one;
  for (RequestId id = 2; id <= 60; ++id) all_but_one.push_back(id);
  commit(s, many, all_but_one);
  EXPECT_EQ(find(s.plan(0), 1000)->n_tokens, 16);
}

TEST(Scheduler, AShortPromptDoesNotWaitForALongOne) {
  Scheduler s({.n_pages = 1000, .page_tokens = 16, .chunk_tokens = 64});
  s.admit({.id = 1, .prompt_tokens = 10000});
  commit(s, s.plan(0));
  s.admit({.id = 2, .prompt_tokens = 100});
  s.admit({.id = 3, .prompt_tokens = 20});
  const StepPlan& p = s.plan(0);
  EXPECT_EQ(find(p, 1)->n_tokens, 32);
  EXPECT_EQ(find(p, 2)->n_tokens, 12);
  EXPECT_EQ(find(p, 3)->n_tokens, 20);
  EXPECT_TRUE(find(p, 3)->samples);
}

TEST(Scheduler, MoreDecodesThanRowsTakeTurnsAndPromptsStillAdvance) {
  Simulator sim({.n_pages = 400, .page_tokens = 16, .chunk_tokens = 8, .max_running = 64});
  for (RequestId id = 1; id <= 30; ++id) ASSERT_TRUE(sim.admit({.id = id, .prompt_tokens = 3}, 40));
  ASSERT_TRUE(sim.admit({.id = 99, .prompt_tokens = 200}, 3));
  EXPECT_EQ(sim.drain(1000), "");  // checks the stall bound in every step
  EXPECT_EQ(sim.finished, 31);
}

TEST(Scheduler, OneRowAStepServesPromptsAndDecodesInTurn) {
  // Six pages: the second prompt comes short of them while the first request decodes.
  for (const std::int32_t n_pages : {6, 7, 40}) {
    Simulator sim({.n_pages = n_pages, .page_tokens = 4, .chunk_tokens = 1});
    ASSERT_TRUE(sim.admit({.id = 1, .prompt_tokens = 3}, 15));
    ASSERT_TRUE(sim.admit({.id = 2, .prompt_tokens = 12}, 5));
    ASSERT_TRUE(sim.admit({.id = 3, .prompt_tokens = 1}, 5));
    EXPECT_EQ(sim.drain(300), "");
  }
}

TEST(Scheduler, AdmitsInOrderWhileSmallOnesMayOvertakeABoundedNumberOfTimes) {
  Scheduler s({.n_pages = 20, .page_tokens = 16, .chunk_tokens = 512, .max_running = 4});
  s.admit({.id = 1, .prompt_tokens = 160, .max_tokens = 100});
  commit(s, s.plan(0));
  s.admit({.id = 2, .prompt_tokens = 200});  // 13 pages: not now
  RequestId next = 3;
  int overtakes = 0;
  for (int i = 0; i < 60; ++i) {
    s.admit({.id = next++, .prompt_tokens = 10, .max_tokens = 5});
    const StepPlan& p = s.plan(0);
    overtakes += static_cast<int>(p.started.size());
    EXPECT_EQ(find(p, 2), nullptr);
    std::vector<RequestId> small;
    for (const StepItem& item : p.items) {
      if (item.request != 1) small.push_back(item.request);
    }
    commit(s, p, small);
  }
  EXPECT_EQ(overtakes, kMaxOvertakes);
  s.cancel(1);
  const StepPlan& p = s.plan(0);
  EXPECT_EQ(p.started.front(), 2);
}

TEST(Scheduler, PreemptsTheYoungestAndReadsItAgainFirst) {
  Scheduler s({.n_pages = 8, .page_tokens = 4, .chunk_tokens = 32});
  s.admit({.id = 1, .prompt_tokens = 8, .max_tokens = 24});
  s.admit({.id = 2, .prompt_tokens = 7, .max_tokens = 20});
  commit(s, s.plan(0));
  ASSERT_EQ(s.n_running(), 2);
  std::int64_t generated = 1;  // of request 2
  while (true) {
    const StepPlan& p = s.plan(0);
    if (!p.preempted.empty()) {
      EXPECT_EQ(p.preempted, std::vector<RequestId>{2});
      EXPECT_EQ(find(p, 2), nullptr);
      ASSERT_NE(find(p, 1), nullptr);
      commit(s, p);
      break;
    }
    ++generated;
    commit(s, p);
    ASSERT_LT(generated, 20);
  }
  s.admit({.id = 3, .prompt_tokens = 1, .max_tokens = 1});  // would fit, but a preempted one waits
  const StepPlan& waits = s.plan(0);
  EXPECT_TRUE(waits.started.empty());
  commit(s, waits, {1});
  const StepPlan& again = s.plan(0);
  EXPECT_EQ(again.started, (std::vector<RequestId>{2, 3}));
  EXPECT_EQ(find(again, 2)->start, 0);
  EXPECT_EQ(find(again, 2)->n_tokens, 7 + generated);
  EXPECT_TRUE(find(again, 2)->samples);
  EXPECT_TRUE(find(again, 2)->prefill);
  EXPECT_EQ(s.n_preemptions(), 1);
}

TEST(Scheduler, DraftsAreVerifiedAndRefusedOnesLeaveTheCache) {
  Scheduler s({.n_pages = 8, .page_tokens = 4, .chunk_tokens = 32});
  s.admit({.id = 1, .prompt_tokens = 5, .max_tokens = 8});
  s.plan(0);
  const StepOutcome first{.request = 1, .n_sampled = 1, .n_next_drafts = 3};
  s.commit({&first, 1});
  const StepPlan& p = s.plan(0);
  EXPECT_EQ(p.items[0].start, 5);
  EXPECT_EQ(p.items[0].n_tokens, 4);
  EXPECT_EQ(p.items[0].n_drafts, 3);
  EXPECT_EQ(p.n_logits, 4);
  EXPECT_EQ(s.kv().tokens(p.items[0].sequence), 9);
  const StepOutcome two{.request = 1, .n_sampled = 2, .n_next_drafts = 9};  // one draft accepted
  s.commit({&two, 1});
  EXPECT_EQ(s.check_integrity(), "");
  const StepPlan& q = s.plan(0);
  EXPECT_EQ(q.items[0].start, 7);
  EXPECT_EQ(q.items[0].n_drafts, 4);  // 8 known, 13 the limit: only 5 tokens may come, and the last is never drafted
  const StepOutcome end{.request = 1, .n_sampled = 5, .finished = true};
  s.commit({&end, 1});
  EXPECT_TRUE(s.idle());
}

TEST(Scheduler, DraftsYieldToOtherDecodesAndToShortPages) {
  Scheduler s({.n_pages = 100, .page_tokens = 4, .chunk_tokens = 5});
  for (RequestId id = 1; id <= 3; ++id) s.admit({.id = id, .prompt_tokens = 1});
  s.plan(0);
  std::vector<StepOutcome> outcomes;
  for (RequestId id = 1; id <= 3; ++id) outcomes.push_back({.request = id, .n_sampled = 1, .n_next_drafts = 4});
  s.commit(outcomes);
  const StepPlan& p = s.plan(0);
  EXPECT_EQ(p.n_rows, 5);
  for (RequestId id = 1; id <= 3; ++id) ASSERT_NE(find(p, id), nullptr) << id;

  Scheduler tight({.n_pages = 4, .page_tokens = 4, .chunk_tokens = 32});
  tight.admit({.id = 1, .prompt_tokens = 3});
  tight.admit({.id = 2, .prompt_tokens = 3});
  tight.plan(0);
  tight.commit(std::vector<StepOutcome>{{.request = 1, .n_sampled = 1, .n_next_drafts = 9},
                                        {.request = 2, .n_sampled = 1, .n_next_drafts = 5}});
  const StepPlan& q = tight.plan(0);  // two pages are free: ten rows would need three more
  EXPECT_TRUE(q.preempted.empty());
  EXPECT_EQ(find(q, 1)->n_drafts, 0);
  EXPECT_EQ(find(q, 2)->n_drafts, 5);
}

TEST(Scheduler, CancelFreesAtOnceAtAnyTime) {
  Scheduler s({.n_pages = 10, .page_tokens = 4, .chunk_tokens = 8});
  s.cancel(5);
  s.admit({.id = 1, .prompt_tokens = 20});
  s.admit({.id = 2, .prompt_tokens = 3});
  s.cancel(2);  // waiting
  const StepPlan& p = s.plan(0);
  ASSERT_EQ(p.items.size(), 1U);
  s.cancel(1);  // between plan and commit
  EXPECT_EQ(s.kv().free_pages(), 10);
  EXPECT_EQ(s.check_integrity(), "");
  const StepOutcome late{.request = 1, .n_sampled = 1};
  s.commit({&late, 1});
  EXPECT_TRUE(s.idle());
}

TEST(Scheduler, AFailureWhileReadingEndsThatRequestAlone) {
  Scheduler s({.n_pages = 20, .page_tokens = 4, .chunk_tokens = 8});
  s.admit({.id = 1, .prompt_tokens = 20});
  s.admit({.id = 2, .prompt_tokens = 20});
  commit(s, s.plan(0), {1});
  EXPECT_EQ(s.n_running(), 1);
  EXPECT_EQ(find(s.plan(0), 2)->start, 4);
}

TEST(Scheduler, DeadlinesDropRequestsRunningAndWaiting) {
  Scheduler s({.n_pages = 10, .page_tokens = 4, .chunk_tokens = 8, .max_running = 1});
  s.admit({.id = 1, .prompt_tokens = 20, .deadline_us = 1000});
  s.admit({.id = 2, .prompt_tokens = 3, .deadline_us = 500});
  s.admit({.id = 3, .prompt_tokens = 3});
  commit(s, s.plan(499));
  const StepPlan& p = s.plan(500);
  EXPECT_EQ(p.expired, std::vector<RequestId>{2});
  commit(s, p);
  const StepPlan& q = s.plan(1000);
  EXPECT_EQ(q.expired, std::vector<RequestId>{1});
  EXPECT_EQ(q.started, std::vector<RequestId>{3});
  EXPECT_EQ(s.check_integrity(), "");
}

TEST(Scheduler, ABetterPriorityIsAdmittedAndReadFirst) {
  Scheduler s({.n_pages = 100, .page_tokens = 16, .chunk_tokens = 64, .max_running = 2});
  s.admit({.id = 1, .prompt_tokens = 4});
  s.admit({.id = 2, .prompt_tokens = 4});
  commit(s, s.plan(0));
  s.admit({.id = 3, .prompt_tokens = 100, .priority = 1});
  s.admit({.id = 4, .prompt_tokens = 100});
  s.admit({.id = 5, .prompt_tokens = 1000, .priority = -5});
  s.admit({.id = 6, .prompt_tokens = 100, .priority = -5});
  const StepPlan& full = s.plan(0);
  EXPECT_TRUE(full.started.empty());
  commit(s, full, {1, 2});
  const StepPlan& p = s.plan(0);
  EXPECT_EQ(p.started, (std::vector<RequestId>{5, 6}));
  EXPECT_EQ(find(p, 5)->n_tokens, 32);
  commit(s, p);
  s.cancel(6);
  const StepPlan& q = s.plan(0);
  EXPECT_EQ(q.started, std::vector<RequestId>{4});
  EXPECT_EQ(find(q, 5)->n_tokens, 32);  // first in the order of reading: at least half
  commit(s, q);
  s.cancel(5);
  EXPECT_EQ(s.plan(0).started, std::vector<RequestId>{3});
}

TEST(Scheduler, AWorsePriorityIsPreemptedFirstAndNeverTakesTheRoomOfABetterOne) {
  Scheduler s({.n_pages = 6, .page_tokens = 4, .chunk_tokens = 32});
  s.admit({.id = 1, .prompt_tokens = 7, .priority = 9});
  commit(s, s.plan(0));
  s.admit({.id = 2, .prompt_tokens = 7});  // younger
  std::vector<RequestId> preempted;
  for (int i = 0; i < 20 && preempted.empty(); ++i) {
    const StepPlan& p = s.plan(0);
    preempted = p.preempted;
    commit(s, p);
  }
  EXPECT_EQ(preempted, std::vector<RequestId>{1});
  s.admit({.id = 3, .prompt_tokens = 23});                // does not fit yet
  s.admit({.id = 4, .prompt_tokens = 1, .priority = 1});  // would fit
  const StepPlan& p = s.plan(0);
  EXPECT_TRUE(p.started.empty());
  commit(s, p, {2});
  EXPECT_EQ(s.plan(0).started, std::vector<RequestId>{3});
}

// A queue that never runs out of urgent requests, one place, and two others behind.
TEST(Scheduler, NoPriorityStarves) {
  Scheduler s({.n_pages = 100, .page_tokens = 16, .chunk_tokens = 64, .max_running = 1});
  s.admit({.id = 1, .prompt_tokens = 4, .priority = 3});
  s.admit({.id = 2, .prompt_tokens = 4, .priority = 1000});
  RequestId next = 10;
  std::vector<RequestId> order;
  for (int i = 0; i < 3 * kPriorityTurns; ++i) {
    while (s.n_waiting() < 6) s.admit({.id = next++, .prompt_tokens = 4, .priority = -1});
    const StepPlan& p = s.plan(0);
    ASSERT_EQ(p.started.size(), 1U);
    order.push_back(p.started[0]);
    commit(s, p, p.started);
  }
  const auto place = [&](RequestId id) { return std::find(order.begin(), order.end(), id) - order.begin(); };
  EXPECT_EQ(place(1), kPriorityTurns);
  EXPECT_EQ(place(2), 2 * kPriorityTurns + 1);
}

// Urgent requests, each of which comes while the other one runs and will need its pages.
TEST(Scheduler, APreemptedRequestGetsItsTurnToo) {
  Simulator sim({.n_pages = 6, .page_tokens = 4, .chunk_tokens = 32});
  sim.admit({.id = 1, .prompt_tokens = 7, .priority = 5}, 15);
  RequestId next = 2;
  int steps = 0;
  for (; sim.jobs.contains(1) && steps < 500; ++steps) {
    if (sim.jobs.size() < 2 && steps > 0) sim.admit({.id = next++, .prompt_tokens = 3}, 17);
    ASSERT_EQ(sim.step(), "");
  }
  EXPECT_LT(steps, 500);
  EXPECT_GT(sim.scheduler.n_preemptions(), 1);
  EXPECT_LE(sim.scheduler.n_preemptions(), kPriorityTurns);
}

TEST(Scheduler, ARequestMayLimitItsOwnChunks) {
  Scheduler s({.n_pages = 100, .page_tokens = 16, .chunk_tokens = 64});
  s.admit({.id = 1, .prompt_tokens = 100, .max_chunk_tokens = 10});
  s.admit({.id = 2, .prompt_tokens = 100});
  const StepPlan& p = s.plan(0);
  EXPECT_EQ(find(p, 1)->n_tokens, 10);
  EXPECT_EQ(find(p, 2)->n_tokens, 54);
}

}  // namespace
}  // namespace glint
