#include "engine/step.hpp"

#include <algorithm>
#include <exception>

#include "base/check.hpp"
#include "base/clock.hpp"
#include "base/hash.hpp"
#include "engine/probe.hpp"

namespace glint {
namespace {
std::int64_t to_us(double seconds) { return static_cast<std::int64_t>(seconds * 1e6); }
}  // namespace

StepLoop::StepLoop(Runtime& runtime, StepLoopOptions options)
    : runtime_(runtime),
      scheduler_(options.scheduler),
      sampler_(runtime.model().config().vocab),
      eos_ids_(std::move(options.eos_ids)),
      prefix_cache_(options.prefix_cache) {
  const auto n = static_cast<std::size_t>(options.scheduler.max_running);
  allowed_.resize(static_cast<std::size_t>(sampler_.vocab() + 63) / 64);
  outcomes_.reserve(n);
  logits_rows_.reserve(n);
  sample_batch_.rows.reserve(n);
  outgoing_.reserve(2 * n);
  if (options.disk && prefix_cache_)
    disk_ = std::make_unique<DiskTier>(scheduler_, runtime_.store(), std::move(*options.disk));
}

RequestState& StepLoop::at(RequestId id) {
  const auto it = requests_.find(id);
  CHECK(it != requests_.end(), "request " + std::to_string(id));
  return *it->second;
}

void StepLoop::admit(std::unique_ptr<RequestState> request) {
  RequestState& r = *request;
  requests_.emplace(r.id, std::move(request));
  const bool waits = disk_ && r.scores == nullptr && disk_->load(r.id, r.tokens);
  if (!waits) enqueue(r);
}

void StepLoop::enqueue(RequestState& request) {
  const bool shares = prefix_cache_ && request.scores == nullptr;  // scores are of every row: all must be computed
  const double deadline_s = request.submitted_s + request.timeout_s;
  const Admission admission = scheduler_.admit({.id = request.id,
                                                .prompt_tokens = request.prompt_tokens,
                                                .max_tokens = request.max_tokens,
                                                .deadline_us = request.timeout_s > 0 ? to_us(deadline_s) : 0,
                                                .priority = request.priority,
                                                .tokens = shares ? &request.tokens : nullptr});
  CHECK(!admission.refusal.has_value(), "submit() checked it");
}

// Requests whose prompts have come from the disk go to the scheduler.
bool StepLoop::collect_loaded() {
  if (!disk_) return false;
  bool any = false;
  for (const RequestId id : disk_->collect()) {
    const auto it = requests_.find(id);  // cancelled ones are gone
    if (it == requests_.end()) continue;
    enqueue(*it->second);
    any = true;
  }
  return any;
}

void StepLoop::save_ended() {
  for (const std::unique_ptr<RequestState>& request : ended_) {
    if (disk_ && request->scores == nullptr) disk_->save(request->tokens);
  }
  ended_.clear();
}

void StepLoop::finish(RequestId id, Event event) {
  const auto it = requests_.find(id);
  outgoing_.push_back(
      {.request = id, .scored = it->second->scores != nullptr, .scored_rows = 0, .event = std::move(event)});
  ended_.push_back(std::move(it->second));
  requests_.erase(it);
}

void StepLoop::cancel(RequestId id) {
  const auto it = requests_.find(id);
  if (it == requests_.end()) return;
  scheduler_.cancel(id);
  finish(id, it->second->end(Finish::kCancelled, it->second->scores != nullptr ? "cancelled" : ""));
  save_ended();
}

void StepLoop::cancel_all() {
  while (!requests_.empty()) cancel(requests_.begin()->first);
}

bool StepLoop::step() noexcept {
  constexpr std::chrono::milliseconds kDiskWait{1};
  const bool loaded = collect_loaded();
  if (scheduler_.idle()) {
    if (!disk_ || !disk_->busy()) return loaded;
    disk_->wait(kDiskWait);
    return true;
  }
  const double begin = now_s();
  const StepPlan& plan = scheduler_.plan(to_us(begin));
  outcomes_.clear();
  const bool worked = !plan.empty() || !plan.expired.empty();
  expire(plan);
  if (!plan.empty()) {
    for (const RequestId id : plan.started) {
      RequestState& request = at(id);
      if (request.started_s == 0) request.started_s = begin;
    }
    try {
      run(plan);
    } catch (const std::exception& e) { fail_step(plan, e.what()); }
  }
  scheduler_.commit(outcomes_);
  save_ended();
  if (!worked && disk_ && disk_->busy()) {  // it may be their pages that are missing
    disk_->wait(kDiskWait);
    return true;
  }
  if (!plan.empty()) {
    ++stats_.steps;
    stats_.step_s += now_s() - begin;
  }
  return worked;
}

void StepLoop::expire(const StepPlan& plan) {
  for (const RequestId id : plan.expired) finish(id, at(id).end(Finish::kTimeout, ""));
}

void StepLoop::build(const StepPlan& plan) {
  BatchBuilder& batch = runtime_.batch();
  batch.begin();
  logits_rows_.clear();
  for (const StepItem& item : plan.items) {
    if (item.copy) runtime_.store().copy_page(*item.copy);
    RequestState& request = at(item.request);
    request.cached_tokens = item.cached;
    const std::span<const std::int32_t> tokens = request.tokens;
    const bool wants_logits = item.samples && request.scores == nullptr;
    logits_rows_.push_back(batch.add(scheduler_.kv(), {.sequence = item.sequence,
                                                       .ids = tokens.subspan(static_cast<std::size_t>(item.start),
                                                                             static_cast<std::size_t>(item.n_tokens)),
                                                       .first_position = item.start,
                                                       .n_logits = wants_logits ? 1 : 0}));
    (item.prefill ? stats_.prefill_tokens : stats_.decode_tokens) += item.n_tokens;
  }
}

void StepLoop::run(const StepPlan& plan) {
  build(plan);
  runtime_.forward(scheduler_.kv());
  const std::span<const std::int32_t> tokens = sample_on_backend(plan);
  const double now = now_s();
  for (std::size_t i = 0; i < plan.items.size(); ++i) {
    const StepItem& item = plan.items[i];
    if (at(item.request).scores != nullptr) continue;
    if (item.samples) {
      const auto row = static_cast<std::size_t>(logits_rows_[i]);
      const bool drawn = !tokens.empty() && sample_batch_.rows[row].mode != SampleMode::kNone;
      take(item, logits_rows_[i], drawn ? &tokens[row] : nullptr, now);
    } else {
      report_progress(item);
    }
  }
  // Scored windows last: the logits of their rows take the place of those that were sampled from.
  std::int64_t first_row = 0;
  for (const StepItem& item : plan.items) {
    const auto it = requests_.find(item.request);  // ended requests are gone
    if (it != requests_.end() && it->second->scores != nullptr) score_item(item, first_row);
    first_row += item.n_tokens;
  }
}

// All but the logits. The mask is in allowed_ until the next call.
SampleInput StepLoop::sample_input(RequestState& request) {
  SampleInput input{.params = &request.sampling,
                    .counts = &request.counts,
                    .position = static_cast<std::int64_t>(request.tokens.size())};
  if (request.constraint) {
    request.constraint->mask(allowed_);
    input.allowed_tokens = allowed_;
  }
  return input;
}

// Tokens of the rows of logits, as far as the backend draws them; none where it does not sample.
std::span<const std::int32_t> StepLoop::sample_on_backend(const StepPlan& plan) {
  if (runtime_.logits().on_host()) return {};
  sample_batch_.clear();
  for (const StepItem& item : plan.items) {
    RequestState& request = at(item.request);
    if (!item.samples || request.scores != nullptr) continue;
    try {
      add_sample_row(sample_input(request), sampler_.vocab(), Runtime::kMaxEdits, sample_batch_);
    } catch (const std::exception&) { sample_batch_.rows.emplace_back(); }  // take() will meet it, and end this request
  }
  return runtime_.sample(sample_batch_);
}

Sample StepLoop::sample(RequestState& request, std::int64_t logits_row) {
  SampleInput input = sample_input(request);
  input.logits = runtime_.logits().row(logits_row);
  return sampler_.sample(input);
}

// The item's token, drawn by the backend or, without one, here.
void StepLoop::take(const StepItem& item, std::int64_t logits_row, const std::int32_t* token, double now) {
  RequestState& request = at(item.request);
  Event event;
  bool failed = true;
  try {
    const Sample drawn = token != nullptr ? sampled(*token) : sample(request, logits_row);
    failed = drawn.status != SampleStatus::kOk;
    CHECK(failed || !request.constraint || request.constraint->accept(drawn.token), "the mask allowed it");
    event = failed ? request.end(Finish::kError, sample_status_text(drawn.status)) : request.take(drawn, eos_ids_, now);
    if (event.finish != Finish::kNone) {
      const std::span<const float> logits = runtime_.logits().row(logits_row);
      event.usage.logits_hash = hash64(logits.data(), logits.size_bytes());
    }
  } catch (const std::exception& e) {
    failed = true;
    event = request.end(Finish::kError, e.what());
  }
  const bool finished = event.finish != Finish::kNone;
  outcomes_.push_back({.request = item.request, .n_sampled = failed ? 0 : 1, .finished = finished});
  if (!finished) {
    outgoing_.push_back({.request = item.request, .event = std::move(event)});
    return;
  }
  finish(item.request, std::move(event));
}

void StepLoop::report_progress(const StepItem& item) {
  const RequestState& request = at(item.request);
  if (!item.prefill || request.generated() > 0) return;  // reading again after preemption is nobody's news
  Event event;
  event.prefill_done = item.start + item.n_tokens;
  event.usage = request.usage();
  outgoing_.push_back({.request = item.request, .event = std::move(event)});
}

// Log-probs of the tokens that follow the item's rows. Logits come in parts, so that a long prompt needs no more of
// them than max_logits rows.
void StepLoop::score_item(const StepItem& item, std::int64_t first_row) {
  RequestState& request = at(item.request);
  const std::int64_t part = runtime_.model().options().max_logits;
  for (std::int64_t done = 0; done < item.n_tokens; done += part) {
    const std::int64_t n = std::min(part, item.n_tokens - done);
    runtime_.logits_of_rows(first_row + done, n);
    for (std::int64_t r = 0; r < n; ++r) {
      const auto position = static_cast<std::size_t>(item.start + done + r);
      request.scores[position] = static_cast<float>(log_prob(runtime_.logits().row(r), request.tokens[position + 1]));
    }
  }
  outgoing_.push_back({.request = item.request, .scored = true, .scored_rows = item.n_tokens});
  if (item.samples) {
    outcomes_.push_back({.request = item.request, .n_sampled = 0, .finished = true});
    finish(item.request, request.end(Finish::kLength, ""));
  }
}

// The forward pass or the memory around it failed: nothing of this step's requests can be trusted.
void StepLoop::fail_step(const StepPlan& plan, const std::string& error) {
  outcomes_.clear();
  for (const StepItem& item : plan.items) {
    outcomes_.push_back({.request = item.request, .n_sampled = 0, .finished = true});
    const auto it = requests_.find(item.request);
    if (it != requests_.end()) finish(item.request, it->second->end(Finish::kError, error));
  }
}

EngineStats StepLoop::stats() const {
  EngineStats s = stats_;
  s.running_requests = scheduler_.n_running();
  s.waiting_requests = scheduler_.n_waiting();
  const KvPlan& kv = scheduler_.kv();
  s.cache_tokens = static_cast<std::int64_t>(kv.n_pages()) * kv.page_tokens();
  s.cache_tokens_used = static_cast<std::int64_t>(kv.n_pages() - kv.available_pages()) * kv.page_tokens();
  s.cache_tokens_kept = static_cast<std::int64_t>(kv.kept_pages()) * kv.page_tokens();
  s.cached_tokens = scheduler_.n_cached_tokens();
  s.evicted_tokens = kv.n_evicted() * kv.page_tokens();
  s.preemptions = scheduler_.n_preemptions();
  if (disk_) {
    s.waiting_requests += disk_->n_loading();
    s.disk_loaded_tokens = disk_->loaded_tokens();
    s.disk_bytes = disk_->disk().bytes();
    s.disk_files = disk_->disk().n_files();
  }
  return s;
}

}  // namespace glint
