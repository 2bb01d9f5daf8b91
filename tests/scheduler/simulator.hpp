#pragma once
// A fake engine that obeys the scheduler and checks what it is told: ranges join up, rows stay within the budget, and
// every cache row that a step would read was written for that request and position.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/check.hpp"
#include "scheduler/scheduler.hpp"

namespace glint::scheduler_test {

inline constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

class Simulator {
 public:
  // What a request will do: the tokens it generates before it ends (at most what the scheduler allows).
  struct Job {
    std::int64_t known = 0;  // tokens: prompt + generated
    std::int64_t end = 0;    // ends at this many
    std::int64_t prompt = 0;
    std::int64_t cached = 0;
    std::int64_t waited_steps = 0;  // while decoding, since its last row
    std::int64_t most_decodes = 0;  // running decodes at most in that time
    std::int64_t first_token_step = -1;
  };

  explicit Simulator(const SchedulerOptions& options)
      : scheduler(options), slots_(static_cast<std::size_t>(options.n_pages * options.page_tokens), {-1, -1}) {}

  // False: refused.
  bool admit(const RequestDescriptor& request, std::int64_t generates) {
    const Admission a = scheduler.admit(request);
    if (a.refusal) return false;
    const std::int64_t n = std::clamp<std::int64_t>(generates, 1, a.max_tokens);
    jobs[request.id] = {
        .known = request.prompt_tokens, .end = request.prompt_tokens + n, .prompt = request.prompt_tokens};
    return true;
  }

  void cancel(RequestId id) {
    scheduler.cancel(id);
    jobs.erase(id);
  }

  // Drafts that request `id` proposes for the next step, and how many of `n` verified drafts are accepted.
  std::function<std::int64_t(RequestId)> propose = [](RequestId) { return 0; };
  std::function<std::int64_t(RequestId, std::int64_t)> accept = [](RequestId, std::int64_t n) { return n; };

  // Plans, checks and commits one step; `between` runs after the plan. Returns what is wrong, or nothing.
  std::string step(std::int64_t now_us = 0, const std::function<void()>& between = {}) {
    const StepPlan& plan = scheduler.plan(now_us);
    ++steps;
    rows += plan.n_rows;
    if (std::string wrong = check(plan); !wrong.empty()) return "step " + std::to_string(steps) + ": " + wrong;
    const std::string stall = check_stalls(plan);
    if (!stall.empty()) return "step " + std::to_string(steps) + ": " + stall;
    for (const RequestId id : plan.expired) jobs.erase(id);
    if (between) between();
    std::vector<StepOutcome> outcomes;
    for (const StepItem& item : plan.items) {
      const auto it = jobs.find(item.request);
      if (it == jobs.end()) continue;  // cancelled in between
      run(item, it->second, &outcomes);
    }
    scheduler.commit(outcomes);
    return scheduler.check_integrity();
  }

  std::string drain(std::int64_t max_steps) {
    for (std::int64_t i = 0; i < max_steps && !scheduler.idle(); ++i) {
      if (std::string wrong = step(); !wrong.empty()) return wrong;
    }
    if (!scheduler.idle()) return std::to_string(jobs.size()) + " requests never finished";
    if (scheduler.kv().free_pages() != scheduler.kv().n_pages()) return "pages are missing";
    return {};
  }

  Scheduler scheduler;
  std::map<RequestId, Job> jobs;
  std::int64_t steps = 0;
  std::int64_t rows = 0;
  std::int64_t finished = 0;
  std::uint64_t hash = 1469598103934665603ULL;  // FNV-1a over every plan

 private:
  void mix(std::int64_t v) { hash = (hash ^ static_cast<std::uint64_t>(v)) * 1099511628211ULL; }

  std::string check(const StepPlan& plan) {
    if (std::string wrong = scheduler.check_integrity(); !wrong.empty()) return wrong;
    std::int64_t n_rows = 0;
    std::int64_t n_logits = 0;
    for (const RequestId id : plan.preempted) jobs.at(id).cached = 0;
    std::vector<RequestId> seen;
    for (const StepItem& item : plan.items) {
      const std::string name = "request " + std::to_string(item.request);
      const auto it = jobs.find(item.request);
      if (it == jobs.end()) return name + " is not there";
      const Job& job = it->second;
      if (std::count(seen.begin(), seen.end(), item.request) != 0) return name + " comes twice";
      seen.push_back(item.request);
      if (item.start != job.cached) return name + " does not go on where it stopped";
      if (item.n_tokens < 1 + item.n_drafts) return name + " has no rows";
      const std::int64_t reach = item.start + item.n_tokens - item.n_drafts;
      if (reach > job.known) return name + " runs past its tokens";
      if (item.samples != (reach == job.known)) return name + " samples at the wrong time";
      if (item.n_drafts > 0 && (!item.samples || item.prefill)) return name + " drafts while it reads";
      if (job.known + item.n_drafts >= job.prompt + scheduler.check({.prompt_tokens = job.prompt}).max_tokens) {
        return name + " drafts past the context";
      }
      n_rows += item.n_tokens;
      if (item.samples) n_logits += 1 + item.n_drafts;
      mix(item.request);
      mix(item.start);
      mix(item.n_tokens);
    }
    if (n_rows != plan.n_rows || n_logits != plan.n_logits) return "the sums are wrong";
    if (n_rows > scheduler.options().chunk_tokens) return std::to_string(n_rows) + " rows";
    return {};
  }

  // The header's bound, in stretches without preemption.
  std::string check_stalls(const StepPlan& plan) {
    std::int64_t decodes = 0;
    for (const auto& [id, job] : jobs) decodes += decoding(job);
    const std::int64_t b = scheduler.options().chunk_tokens;
    for (auto& [id, job] : jobs) {
      const RequestId wanted = id;
      const bool served =
          std::any_of(plan.items.begin(), plan.items.end(), [&](const StepItem& i) { return i.request == wanted; });
      if (!decoding(job) || served || !plan.preempted.empty()) {
        job.waited_steps = 0;
        job.most_decodes = 0;
        continue;
      }
      job.most_decodes = std::max(job.most_decodes, decodes);
      ++job.waited_steps;
      const std::int64_t bound =
          b == 1 ? 2 * job.most_decodes : ceil_div(job.most_decodes, b - std::max<std::int64_t>(1, b / 8));
      if (job.waited_steps >= bound)
        return "request " + std::to_string(id) + " stalled for " + std::to_string(job.waited_steps) + " steps";
    }
    return {};
  }

  static bool decoding(const Job& job) { return job.cached > 0 && job.cached == job.known - 1; }

  void run(const StepItem& item, Job& job, std::vector<StepOutcome>* outcomes) {
    const KvPlan& kv = scheduler.kv();
    for (std::int64_t p = item.start; p < item.start + item.n_tokens; ++p) {
      slots_[static_cast<std::size_t>(kv.slot(item.sequence, p))] = {item.request, p};
    }
    for (std::int64_t p = 0; p < item.start + item.n_tokens; ++p) {  // what attention reads
      const auto& slot = slots_[static_cast<std::size_t>(kv.slot(item.sequence, p))];
      CHECK(slot == std::make_pair(item.request, p), "request " + std::to_string(item.request) + " reads foreign rows");
    }
    if (!item.samples) {
      job.cached += item.n_tokens;
      return;
    }
    const std::int64_t n =
        std::min(1 + std::min(accept(item.request, item.n_drafts), item.n_drafts), job.end - job.known);
    job.cached = job.known + n - 1;
    job.known += n;
    if (job.first_token_step < 0) job.first_token_step = steps;
    const bool done = job.known == job.end;
    outcomes->push_back(
        {.request = item.request, .n_sampled = n, .finished = done, .n_next_drafts = propose(item.request)});
    if (!done) return;
    jobs.erase(item.request);
    ++finished;
  }

  std::vector<std::pair<RequestId, std::int64_t>> slots_;
};

}  // namespace glint::scheduler_test
