#pragma once
// A fake engine that obeys the scheduler and checks what it is told: ranges join up, rows stay within the budget, and
// every cache row that a step would read was written for these tokens up to that position, by whichever request.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
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
    bool shares = false;                                // shows its tokens to the scheduler
    std::shared_ptr<std::vector<std::int32_t>> tokens;  // the known ones
    std::vector<std::uint64_t> prefixes;                // a hash of tokens[0 … i]
  };

  explicit Simulator(const SchedulerOptions& options)
      : scheduler(options), slots_(static_cast<std::size_t>(options.n_pages * options.page_tokens), 0) {}

  // False: refused. With tokens (as many as the prompt has) the request uses the prefix cache.
  bool admit(RequestDescriptor request, std::int64_t generates, std::vector<std::int32_t> tokens = {}) {
    Job job{.shares = !tokens.empty()};
    if (!job.shares) tokens.assign(static_cast<std::size_t>(std::max<std::int64_t>(0, request.prompt_tokens)), 0);
    job.tokens = std::make_shared<std::vector<std::int32_t>>(std::move(tokens));
    if (job.shares) request.tokens = job.tokens.get();
    const Admission a = scheduler.admit(request);
    if (a.refusal) return false;
    job.known = job.prompt = request.prompt_tokens;
    job.end = job.known + std::clamp<std::int64_t>(generates, 1, a.max_tokens);
    extend_prefixes(request.id, job);
    jobs[request.id] = std::move(job);
    return true;
  }

  void cancel(RequestId id) {
    scheduler.cancel(id);
    jobs.erase(id);
  }

  // Pages that come from elsewhere, as the disk tier's do: pinned and written now, given to the tree by unpin_one().
  void pin(const std::vector<std::int32_t>& tokens, std::int32_t n_more) {
    const SequenceId sequence = scheduler.pin(tokens, n_more);
    const std::int64_t page = scheduler.options().page_tokens;
    const std::int64_t n =
        std::min(scheduler.kv().tokens(sequence), static_cast<std::int64_t>(tokens.size()) / page * page);
    std::uint64_t prefix = 1;
    for (std::int64_t p = 0; p < n; ++p) {
      prefix = fold(prefix, static_cast<std::uint64_t>(tokens[static_cast<std::size_t>(p)]));
      slots_[static_cast<std::size_t>(scheduler.kv().slot(sequence, p))] = prefix;
    }
    pins_.emplace_back(sequence, std::vector(tokens.begin(), tokens.begin() + n));
  }
  bool unpin_one() {
    if (pins_.empty()) return false;
    scheduler.unpin(pins_.front().first, pins_.front().second);
    pins_.erase(pins_.begin());
    return true;
  }

  // Drafts that request `id` proposes for the next step, and how many of `n` verified drafts are accepted.
  std::function<std::int64_t(RequestId)> propose = [](RequestId) { return 0; };
  std::function<std::int64_t(RequestId, std::int64_t)> accept = [](RequestId, std::int64_t n) { return n; };
  // Whether the request's rows of this step come out broken.
  std::function<bool(RequestId)> fail = [](RequestId) { return false; };

  // Plans, checks and commits one step; `between` runs after the plan. Returns what is wrong, or nothing.
  std::string step(std::int64_t now_us = 0, const std::function<void()>& between = {}) {
    const StepPlan& plan = scheduler.plan(now_us);
    ++steps;
    rows += plan.n_rows;
    for (const RequestId id : plan.expired) jobs.erase(id);
    if (std::string wrong = check(plan); !wrong.empty()) return "step " + std::to_string(steps) + ": " + wrong;
    const std::string stall = check_stalls(plan);
    if (!stall.empty()) return "step " + std::to_string(steps) + ": " + stall;
    for (const StepItem& item : plan.items) {
      if (item.copy) copy_page(*item.copy);
    }
    if (between) between();
    std::vector<StepOutcome> outcomes;
    for (const StepItem& item : plan.items) {
      const auto it = jobs.find(item.request);
      if (it == jobs.end()) continue;  // cancelled in between
      run(item, it->second, &outcomes);
    }
    scheduler.commit(outcomes);
    ended_.clear();
    return scheduler.check_integrity();
  }

  std::string drain(std::int64_t max_steps) {
    for (std::int64_t i = 0; i < max_steps && !scheduler.idle(); ++i) {
      if (std::string wrong = step(); !wrong.empty()) return wrong;
    }
    if (!scheduler.idle()) return std::to_string(jobs.size()) + " requests never finished";
    if (scheduler.kv().available_pages() != scheduler.kv().n_pages()) return "pages are missing";
    return {};
  }

  Scheduler scheduler;
  std::map<RequestId, Job> jobs;
  std::int64_t steps = 0;
  std::int64_t rows = 0;
  std::int64_t finished = 0;
  std::int64_t cached = 0;                                 // prompt tokens of finished requests that were not computed
  std::vector<std::vector<std::int32_t>> finished_tokens;  // of those that share
  std::uint64_t hash = 1469598103934665603ULL;             // FNV-1a over every plan

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
      if (!job.shares && item.start != job.cached) return name + " does not go on where it stopped";
      if (item.start >= job.known) return name + " has no token left to compute";
      if (item.cached < 0 || item.cached >= job.prompt || (!job.shares && item.cached > 0))
        return name + " found " + std::to_string(item.cached) + " tokens";
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
    return check_prompt_rows(plan);
  }

  std::string check_prompt_rows(const StepPlan& plan) const {
    std::int64_t prompts = 0;
    for (const StepItem& item : plan.items) prompts += item.prefill ? item.n_tokens : 0;
    const std::int64_t decodes = plan.n_rows - prompts;
    const std::int64_t most = scheduler.options().prompt_rows;
    // A decode that was planned first and then preempted for a prompt has left its mark on the bound and not on the
    // plan.
    if (most == 0 || decodes == 0 || !plan.preempted.empty() || prompts <= std::max(most, decodes / 2)) return {};
    return std::to_string(prompts) + " rows of prompts beside " + std::to_string(decodes) + " of decodes";
  }

  // The header's bound, in stretches without preemption.
  std::string check_stalls(const StepPlan& plan) {
    std::int64_t decodes = 0;
    // One that found all but its last token in the cache is a decode from its start, which cannot be seen from here.
    for (const auto& [id, job] : jobs) decodes += decoding(job) || job.shares;
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

  static std::uint64_t fold(std::uint64_t h, std::uint64_t v) {
    return (h ^ (v + 0x9E3779B97F4A7C15U)) * 1099511628211ULL;
  }

  // The next tokens depend on those before, as with greedy decoding, and now and then on the request.
  void extend_prefixes(RequestId id, Job& job) {
    std::vector<std::int32_t>& tokens = *job.tokens;
    while (static_cast<std::int64_t>(tokens.size()) < job.known) {
      const std::uint64_t h = job.prefixes.back();
      tokens.push_back(static_cast<std::int32_t>((h >> 20) % 16 == 0 ? id % 3 : (h >> 30) % 3));
    }
    for (std::size_t i = job.prefixes.size(); i < tokens.size(); ++i) {
      const std::uint64_t before = i > 0        ? job.prefixes[i - 1]
                                   : job.shares ? 1
                                                : fold(2, static_cast<std::uint64_t>(id));
      job.prefixes.push_back(fold(before, static_cast<std::uint64_t>(tokens[i])));
    }
  }

  void copy_page(PageCopy copy) {
    const auto n = static_cast<std::size_t>(scheduler.options().page_tokens);
    for (std::size_t r = 0; r < n; ++r) {
      slots_[static_cast<std::size_t>(copy.to) * n + r] = slots_[static_cast<std::size_t>(copy.from) * n + r];
    }
  }

  void run(const StepItem& item, Job& job, std::vector<StepOutcome>* outcomes) {
    const KvPlan& kv = scheduler.kv();
    const auto row = [&](std::int64_t p) -> std::uint64_t& {
      return slots_[static_cast<std::size_t>(kv.slot(item.sequence, p))];
    };
    constexpr std::uint64_t kBroken = 3;
    const bool breaks = fail(item.request);
    const std::int64_t known = item.start + item.n_tokens - item.n_drafts;
    for (std::int64_t p = item.start; p < item.start + item.n_tokens; ++p) {
      row(p) = breaks || p >= known ? kBroken : job.prefixes[static_cast<std::size_t>(p)];
    }
    for (std::int64_t p = 0; p < known && !breaks; ++p) {  // what attention reads
      CHECK(row(p) == job.prefixes[static_cast<std::size_t>(p)],
            "request " + std::to_string(item.request) + " reads foreign rows");
    }
    if (breaks) {
      outcomes->push_back({.request = item.request, .n_sampled = 0, .finished = true});
      return end(item.request);
    }
    job.cached = item.start;
    if (!item.samples) {
      job.cached += item.n_tokens;
      return;
    }
    const std::int64_t n =
        std::min(1 + std::min(accept(item.request, item.n_drafts), item.n_drafts), job.end - job.known);
    job.cached = job.known + n - 1;
    job.known += n;
    extend_prefixes(item.request, job);
    for (std::int64_t p = known; p < job.cached; ++p) row(p) = job.prefixes[static_cast<std::size_t>(p)];  // accepted
    if (job.first_token_step < 0) job.first_token_step = steps;
    const bool done = job.known == job.end;
    outcomes->push_back(
        {.request = item.request, .n_sampled = n, .finished = done, .n_next_drafts = propose(item.request)});
    if (!done) return;
    ++finished;
    cached += item.cached;
    if (job.shares) finished_tokens.push_back(*job.tokens);
    end(item.request);
  }

  void end(RequestId id) {
    ended_.push_back(jobs.at(id).tokens);  // the scheduler reads them in its commit
    jobs.erase(id);
  }

  std::vector<std::uint64_t> slots_;  // the prefix that each row was computed for
  std::vector<std::shared_ptr<std::vector<std::int32_t>>> ended_;
  std::vector<std::pair<SequenceId, std::vector<std::int32_t>>> pins_;
};

}  // namespace glint::scheduler_test
