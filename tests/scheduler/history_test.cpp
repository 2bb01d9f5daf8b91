// Random histories and a day of serving, replayed.

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <ctime>
#include <random>
#include <string>

#include "scheduler/simulator.hpp"

namespace glint {
namespace {

using scheduler_test::ceil_div;
using scheduler_test::Simulator;

void demand(const std::string& wrong) {
  if (!wrong.empty()) RC_FAIL(wrong);
}

TEST(SchedulerHistory, AnyHistoryKeepsTheInvariantsAndEveryRequestFinishes) {
  const bool ok = rc::check("admit, step, cancel", [] {
    const SchedulerOptions options{.n_pages = *rc::gen::element(1, 3, 6, 10, 20, 40),
                                   .page_tokens = *rc::gen::element(1, 4, 16),
                                   .chunk_tokens = *rc::gen::element(1, 2, 7, 16, 64),
                                   .max_running = *rc::gen::inRange(1, 12),
                                   .max_context = *rc::gen::element(0, 50)};
    Simulator sim(options);
    std::mt19937 rng(*rc::gen::arbitrary<std::uint32_t>());
    const int draft_limit = *rc::gen::element(0, 0, 3);
    sim.propose = [&](RequestId) { return static_cast<std::int64_t>(rng() % static_cast<unsigned>(draft_limit + 1)); };
    sim.accept = [&](RequestId, std::int64_t n) {
      return static_cast<std::int64_t>(rng() % static_cast<unsigned>(n + 1));
    };
    const auto any = [&] {
      return std::next(sim.jobs.begin(), *rc::gen::inRange<int>(0, static_cast<int>(sim.jobs.size())))->first;
    };
    RequestId next = 1;
    std::int64_t work = 0;
    const int events = *rc::gen::resize(rc::kNominalSize, rc::gen::inRange(1, 150));
    for (int i = 0; i < events; ++i) {
      switch (*rc::gen::inRange(0, 8)) {
        case 0:
        case 1: {
          const std::int64_t prompt = *rc::gen::resize(rc::kNominalSize, rc::gen::inRange(1, 80));
          const std::int64_t generates = *rc::gen::resize(rc::kNominalSize, rc::gen::inRange(1, 60));
          const RequestDescriptor d{
              .id = next++, .prompt_tokens = prompt, .max_chunk_tokens = *rc::gen::element(0, 0, 5)};
          if (sim.admit(d, generates)) work += prompt + generates;
          break;
        }
        case 2:
          if (!sim.jobs.empty()) sim.cancel(any());
          break;
        case 3:  // a client goes away while its step runs
          demand(sim.step(i, [&] {
            if (!sim.jobs.empty()) sim.cancel(any());
          }));
          break;
        default:
          demand(sim.step(i));
      }
      demand(sim.scheduler.check_integrity());
    }
    // No livelock: a row a step would do without preemption; what is preempted is read again, at worst the whole
    // context for every page's worth of progress.
    const std::int64_t bound = 100 + work * (2 + ceil_div(140, options.page_tokens));
    demand(sim.drain(bound));
    RC_ASSERT(sim.jobs.empty());
    RC_CLASSIFY(sim.scheduler.n_preemptions() > 0, "preempted");
  });
  EXPECT_TRUE(ok);
}

// Prompts that begin as earlier conversations did, or as others that run now: every row that is read must have been
// computed for these tokens, whatever was shared, copied, evicted, preempted, cancelled or broken before.
TEST(SchedulerHistory, AnyHistoryOfSharedPrefixesReadsTheRightRows) {
  const bool ok = rc::check("turns, branches, cancels, failures", [] {
    const SchedulerOptions options{.n_pages = *rc::gen::element(1, 3, 6, 10, 20, 60),
                                   .page_tokens = *rc::gen::element(1, 4, 16),
                                   .chunk_tokens = *rc::gen::element(1, 2, 7, 16, 64),
                                   .max_running = *rc::gen::inRange(1, 12),
                                   .max_context = *rc::gen::element(0, 90)};
    Simulator sim(options);
    std::mt19937 rng(*rc::gen::arbitrary<std::uint32_t>());
    const auto below = [&](std::size_t n) { return static_cast<std::int64_t>(rng() % n); };
    const std::size_t draft_limit = *rc::gen::element(0U, 0U, 3U);
    sim.propose = [&](RequestId) { return below(draft_limit + 1); };
    sim.accept = [&](RequestId, std::int64_t n) { return below(static_cast<std::size_t>(n) + 1); };
    const bool breaks = *rc::gen::element(false, false, true);
    sim.fail = [&](RequestId) { return breaks && below(40) == 0; };
    RequestId next = 1;
    std::int64_t work = 0;
    const int events = *rc::gen::resize(rc::kNominalSize, rc::gen::inRange(1, 200));
    for (int i = 0; i < events; ++i) {
      switch (below(10)) {
        case 8:
          if (!sim.finished_tokens.empty()) {
            const auto n = static_cast<std::size_t>(below(sim.finished_tokens.size()));
            sim.pin(sim.finished_tokens[n], static_cast<std::int32_t>(below(4)));
          }
          break;
        case 9:
          sim.unpin_one();
          break;
        case 0:
        case 1: {
          std::vector<std::int32_t> tokens;
          const auto& old = sim.finished_tokens;
          if (!old.empty() && below(3) > 0) {
            tokens = old[static_cast<std::size_t>(below(old.size()))];
            if (below(2) == 0) tokens.resize(static_cast<std::size_t>(below(tokens.size() + 1)));
          } else if (!sim.jobs.empty() && below(2) > 0) {
            tokens = *sim.jobs.begin()->second.tokens;
          }
          const std::int64_t more = below(30) + 1;
          for (std::int64_t n = 0; n < more; ++n) tokens.push_back(static_cast<std::int32_t>(below(2)));
          const auto prompt = static_cast<std::int64_t>(tokens.size());
          const std::int64_t generates = below(30) + 1;
          const bool alone = below(8) == 0;
          const RequestDescriptor d{.id = next++, .prompt_tokens = prompt};
          if (sim.admit(d, generates, alone ? std::vector<std::int32_t>{} : tokens)) work += prompt + generates;
          break;
        }
        case 2:
          if (!sim.jobs.empty()) sim.cancel(std::next(sim.jobs.begin(), below(sim.jobs.size()))->first);
          break;
        case 3:
          demand(sim.step(i, [&] {
            if (!sim.jobs.empty()) sim.cancel(std::next(sim.jobs.begin(), below(sim.jobs.size()))->first);
          }));
          break;
        default:
          demand(sim.step(i));
      }
      demand(sim.scheduler.check_integrity());
    }
    while (sim.unpin_one()) demand(sim.scheduler.check_integrity());
    demand(sim.drain(100 + work * (2 + ceil_div(140, options.page_tokens))));
    RC_ASSERT(sim.jobs.empty());
    RC_CLASSIFY(sim.cached > 0, "hits");
    RC_CLASSIFY(sim.scheduler.kv().n_evicted() > 0, "evictions");
    RC_CLASSIFY(sim.scheduler.n_preemptions() > 0, "preempted");
  });
  EXPECT_TRUE(ok);
}

// Arrivals all day, heavier at noon: chat turns, now and then a long document. A step takes 20 ms + 50 µs a row.
struct Day {
  std::uint64_t hash = 0;
  std::int64_t steps = 0;
  std::int64_t rows = 0;
  std::int64_t finished = 0;
  std::int64_t preemptions = 0;
};
Day replay_day(std::uint32_t seed, int n_requests) {
  Simulator sim({.n_pages = 256, .page_tokens = 64, .chunk_tokens = 256, .max_running = 32});
  std::mt19937 rng(seed);
  std::vector<std::int64_t> arrivals(static_cast<std::size_t>(n_requests));
  std::normal_distribution<double> noon(43200.0, 14000.0);
  for (std::int64_t& us : arrivals) us = static_cast<std::int64_t>(std::clamp(noon(rng), 0.0, 86400.0) * 1e6);
  std::sort(arrivals.begin(), arrivals.end());
  std::int64_t now_us = 0;
  std::size_t next = 0;
  while (next < arrivals.size() || !sim.scheduler.idle()) {
    if (sim.scheduler.idle()) now_us = std::max(now_us, arrivals[next]);
    for (; next < arrivals.size() && arrivals[next] <= now_us; ++next) {
      const std::int64_t prompt = rng() % 20 == 0 ? 6000 + rng() % 6000 : 20 + rng() % 400;
      sim.admit({.id = static_cast<RequestId>(next) + 1, .prompt_tokens = prompt}, 10 + rng() % 150);
    }
    const std::int64_t rows = sim.rows;
    const std::string wrong = sim.step(now_us);
    EXPECT_EQ(wrong, "");
    if (!wrong.empty()) break;
    now_us += 20000 + 50 * (sim.rows - rows);
  }
  EXPECT_EQ(sim.scheduler.kv().free_pages(), 256);
  return {sim.hash, sim.steps, sim.rows, sim.finished, sim.scheduler.n_preemptions()};
}

TEST(SchedulerHistory, ADayReplaysTheSame) {
  const Day a = replay_day(1, 300);
  const Day b = replay_day(1, 300);
  EXPECT_EQ(a.finished, 300);
  EXPECT_EQ(a.hash, b.hash);
  EXPECT_EQ(a.steps, b.steps);
  EXPECT_NE(replay_day(2, 300).hash, a.hash);
}

// The policy's own cost, without the simulator's checks: 32 decodes beside prompts.
TEST(SchedulerHistory, APlanCostsMicroseconds) {
  Scheduler s({.n_pages = 100000, .page_tokens = 64, .chunk_tokens = 512, .max_running = 256});
  for (RequestId id = 1; id <= 1000; ++id) s.admit({.id = id, .prompt_tokens = 100, .max_tokens = 1000000});
  std::vector<StepOutcome> outcomes;
  constexpr int kSteps = 2000;
  std::int64_t rows = 0;
  const std::clock_t start = std::clock();
  for (int i = 0; i < kSteps; ++i) {
    const StepPlan& plan = s.plan(i);
    rows += plan.n_rows;
    outcomes.clear();
    for (const StepItem& item : plan.items) {
      if (item.samples) outcomes.push_back({.request = item.request, .n_sampled = 1});
    }
    s.commit(outcomes);
  }
  const double us = 1e6 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC / kSteps;
  RecordProperty("us_a_step", std::to_string(us));
  EXPECT_GE(rows, 256 * (kSteps - 60));
  EXPECT_LT(us, 2000);  // a broken data structure, not a slow machine
}

}  // namespace
}  // namespace glint
