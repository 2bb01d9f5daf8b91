// Random histories and a day of serving, replayed.

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <ctime>
#include <functional>
#include <iterator>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "scheduler/simulator.hpp"

namespace glint {
namespace {

using scheduler_test::ceil_div;
using scheduler_test::Simulator;

void demand(const std::string& wrong) {
  if (!wrong.empty()) RC_FAIL(wrong);
}

// A scheduler of any size whose requests draft at random, and random events on it.
class History {
 public:
  History() {
    const std::size_t draft_limit = *rc::gen::element(0U, 0U, 3U);
    sim.propose = [this, draft_limit](RequestId) { return below(draft_limit + 1); };
    sim.accept = [this](RequestId, std::int64_t n) { return below(static_cast<std::size_t>(n) + 1); };
  }

  std::int64_t below(std::size_t n) { return static_cast<std::int64_t>(rng_() % n); }
  bool one_in(std::size_t n) { return below(n) == 0; }

  void admit(RequestDescriptor request, std::int64_t generates, std::vector<std::int32_t> tokens = {}) {
    request.id = next_++;
    request.priority = one_in(3) ? below(5) - 2 : 0;
    if (one_in(8)) request.deadline_us = now_ + 1 + below(60);
    if (sim.admit(request, generates, std::move(tokens))) work_ += request.prompt_tokens + generates;
  }

  // `arrive` admits a request, `other` is an event of the test's own.
  void run(const std::function<void()>& arrive, const std::function<void()>& other) {
    const auto cancel_any = [&] {
      if (!sim.jobs.empty()) sim.cancel(std::next(sim.jobs.begin(), below(sim.jobs.size()))->first);
    };
    const int events = *rc::gen::resize(rc::kNominalSize, rc::gen::inRange(1, 200));
    for (; now_ < events; ++now_) {
      switch (below(9)) {
        case 0:
        case 1:
          arrive();
          break;
        case 2:
          cancel_any();
          break;
        case 3:  // a client goes away while its step runs
          demand(sim.step(now_, cancel_any));
          break;
        case 4:
          other();
          break;
        default:
          demand(sim.step(now_));
      }
      demand(sim.scheduler.check_integrity());
    }
    while (sim.unpin_one()) demand(sim.scheduler.check_integrity());
    // No livelock: a row a step would do without preemption; what is preempted is read again, at worst the whole
    // context for every page's worth of progress.
    demand(sim.drain(100 + work_ * (2 + ceil_div(140, options_.page_tokens))));
    RC_ASSERT(sim.jobs.empty());
    RC_CLASSIFY(sim.scheduler.n_preemptions() > 0, "preempted");
  }

 private:
  const SchedulerOptions options_{.n_pages = *rc::gen::element(1, 3, 6, 10, 20, 60),
                                  .page_tokens = *rc::gen::element(1, 4, 16),
                                  .chunk_tokens = *rc::gen::element(1, 2, 7, 16, 64),
                                  .prompt_rows = *rc::gen::element(0, 0, 1, 5),
                                  .max_running = *rc::gen::inRange(1, 12),
                                  .max_context = *rc::gen::element(0, 90)};
  std::mt19937 rng_{*rc::gen::arbitrary<std::uint32_t>()};
  RequestId next_ = 1;
  std::int64_t work_ = 0;
  std::int64_t now_ = 0;

 public:
  Simulator sim{options_};
};

TEST(SchedulerHistory, AnyHistoryKeepsTheInvariantsAndEveryRequestFinishes) {
  const bool ok = rc::check("admit, step, cancel, expire", [] {
    History h;
    const auto arrive = [&] {
      h.admit({.prompt_tokens = 1 + h.below(80), .max_chunk_tokens = h.one_in(3) ? 5 : 0}, 1 + h.below(60));
    };
    h.run(arrive, [] {});
  });
  EXPECT_TRUE(ok);
}

// Prompts that begin as earlier conversations did, or as others that run now: every row that is read must have been
// computed for these tokens, whatever was shared, copied, evicted, preempted, cancelled or broken before.
TEST(SchedulerHistory, AnyHistoryOfSharedPrefixesReadsTheRightRows) {
  const bool ok = rc::check("turns, branches, cancels, failures", [] {
    History h;
    Simulator& sim = h.sim;
    const std::vector<std::vector<std::int32_t>>& old = sim.finished_tokens;
    const auto any_old = [&] { return old[static_cast<std::size_t>(h.below(old.size()))]; };
    const bool breaks = *rc::gen::element(false, false, true);
    sim.fail = [&](RequestId) { return breaks && h.one_in(40); };
    const auto arrive = [&] {
      std::vector<std::int32_t> tokens;
      if (!old.empty() && !h.one_in(3)) {
        tokens = any_old();
        if (h.one_in(2)) tokens.resize(static_cast<std::size_t>(h.below(tokens.size() + 1)));
      } else if (!sim.jobs.empty() && !h.one_in(2)) {
        tokens = *sim.jobs.begin()->second.tokens;
      }
      for (std::int64_t n = h.below(30) + 1; n > 0; --n) tokens.push_back(static_cast<std::int32_t>(h.below(2)));
      const RequestDescriptor d{.prompt_tokens = static_cast<std::int64_t>(tokens.size())};
      if (h.one_in(8)) tokens.clear();  // uses no prefix cache
      h.admit(d, h.below(30) + 1, std::move(tokens));
    };
    h.run(arrive, [&] {  // pages that come from the disk
      if (h.one_in(2)) {
        sim.unpin_one();
      } else if (!old.empty()) {
        sim.pin(any_old(), static_cast<std::int32_t>(h.below(4)));
      }
    });
    RC_CLASSIFY(sim.cached > 0, "hits");
    RC_CLASSIFY(sim.scheduler.kv().n_evicted() > 0, "evictions");
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
