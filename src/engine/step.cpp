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
  sample_batch_.rows.reserve(n);
  outgoing_.reserve(2 * n);
  if (options.disk && prefix_cache_)
    disk_ = std::make_unique<DiskTier>(scheduler_, runtime_.store(), std::move(*options.disk));
}

RequestState* StepLoop::find(RequestId id) {
  const auto it = requests_.find(id);
  return it == requests_.end() ? nullptr : it->second.get();
}

RequestState& StepLoop::at(RequestId id) {
  RequestState* request = find(id);
  CHECK(request != nullptr, "request " + std::to_string(id));
  return *request;
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
  if (scheduler_.idle() && !flight_) {
    if (!disk_ || !disk_->busy()) return loaded;
    disk_->wait(kDiskWait);
    return true;
  }
  const double begin = now_s();
  bool worked = true;
  if (!flight_) worked = start_step(begin);
  if (flight_) {
    if (may_look_ahead(*flight_)) look_ahead(begin);
    collect();
    ++stats_.steps;
    stats_.step_s += now_s() - begin;
  }
  if (!worked && disk_ && disk_->busy()) {  // it may be their pages that are missing
    disk_->wait(kDiskWait);
    return true;
  }
  return worked;
}

// Plans a step and launches it, if there is anything to do. False: there was nothing, nor did anything end.
bool StepLoop::start_step(double begin) {
  const StepPlan& plan = scheduler_.plan(to_us(begin));
  launch(plan, begin, 0, nullptr);
  return !plan.empty() || !plan.expired.empty();
}

// The plan's step on its way, if it is not empty, as flight_ or, behind one, as next_. `before`: whose tokens are not
// known yet.
void StepLoop::launch(const StepPlan& plan, double begin, std::int64_t first_logits, const StepFlight* before) {
  expire(plan);
  for (const RequestId id : plan.started) {
    RequestState& request = at(id);
    if (request.started_s == 0) request.started_s = begin;
  }
  if (plan.empty()) {
    outcomes_.clear();
    return commit();
  }
  std::optional<StepFlight>& to = before == nullptr ? flight_ : next_;
  StepFlight& flight = to.emplace();
  flight.first_logits = first_logits;
  flight.items.reserve(plan.items.size());
  for (const StepItem& item : plan.items) flight.items.push_back({.step = item});
  try {
    build(flight, before);
    runtime_.forward(scheduler_.kv(), first_logits);
    sample_on_backend(flight);
  } catch (const std::exception& e) {
    fail(flight, e.what());
    commit();
    to.reset();
  }
}

// Whether what follows can be planned before this step's tokens are known: they are on the backend, every request goes
// on but for what its token says, and what the next tokens depend on does not hang on these.
bool StepLoop::may_look_ahead(const StepFlight& flight) {
  if (!flight.sampled || disk_ || scheduler_.n_running() + scheduler_.n_waiting() > half_of_logits()) return false;
  return std::all_of(flight.items.begin(), flight.items.end(), [this](const StepFlight::Item& item) {
    const RequestState* r = find(item.step.request);
    if (r == nullptr || r->scores != nullptr) return false;
    return !item.step.samples ||
           (item.drawn && !r->constraint && !r->sampling.needs_counts() && r->generated() + 1 < r->max_tokens);
  });
}

void StepLoop::look_ahead(double begin) {
  outcomes_.clear();
  for (const StepFlight::Item& item : flight_->items) {
    if (item.step.samples) outcomes_.push_back({.request = item.step.request, .n_sampled = 1});
  }
  scheduler_.commit(outcomes_);
  flight_->committed = true;
  launch(scheduler_.plan(to_us(begin)), begin, flight_->first_logits == 0 ? half_of_logits() : 0, &*flight_);
  if (next_) ++steps_ahead_;
}

// What came out of flight_; then next_ is what is on its way.
void StepLoop::collect() {
  outcomes_.clear();
  try {
    take_all(*flight_);
  } catch (const std::exception& e) { fail(*flight_, e.what()); }
  if (flight_->committed) {
    save_ended();
  } else {
    commit();
  }
  flight_ = std::move(next_);
  next_.reset();
}

void StepLoop::commit() {
  scheduler_.commit(outcomes_);
  save_ended();
}

void StepLoop::expire(const StepPlan& plan) {
  for (const RequestId id : plan.expired) finish(id, at(id).end(Finish::kTimeout, ""));
}

void StepLoop::build(StepFlight& flight, const StepFlight* before) {
  BatchBuilder& batch = runtime_.batch();
  batch.begin();
  for (StepFlight::Item& item : flight.items) {
    const StepItem& s = item.step;
    if (s.copy) runtime_.store().copy_page(*s.copy);
    RequestState& request = at(s.request);
    request.cached_tokens = s.cached;
    SequenceRows rows{.sequence = s.sequence,
                      .ids = {},
                      .first_position = s.start,
                      .n_logits = s.samples && request.scores == nullptr ? 1 : 0};
    if (s.start == static_cast<std::int64_t>(request.tokens.size())) {
      // Its token is one of the step before, and not known yet.
      CHECK(before != nullptr && s.n_tokens == 1);
      const auto drawn = std::find_if(before->items.begin(), before->items.end(),
                                      [&](const StepFlight::Item& i) { return i.step.request == s.request; });
      CHECK(drawn != before->items.end() && drawn->drawn, "request " + std::to_string(s.request));
      rows.token = drawn->logits_row;
    } else {
      rows.ids = std::span<const std::int32_t>(request.tokens)
                     .subspan(static_cast<std::size_t>(s.start), static_cast<std::size_t>(s.n_tokens));
    }
    item.logits_row = batch.add(scheduler_.kv(), rows);
    (s.prefill ? stats_.prefill_tokens : stats_.decode_tokens) += s.n_tokens;
  }
}

void StepLoop::take_all(StepFlight& flight) {
  const std::span<const std::int32_t> tokens =
      flight.sampled ? runtime_.take_tokens() : std::span<const std::int32_t>{};
  flight.sampled = false;
  const double now = now_s();
  for (const StepFlight::Item& item : flight.items) {
    const RequestState* request = find(item.step.request);
    if (request == nullptr || request->scores != nullptr) continue;  // ended, or below
    if (item.step.samples) {
      const auto row = static_cast<std::size_t>(item.logits_row);
      take(item.step, flight.first_logits + item.logits_row, item.drawn ? &tokens[row] : nullptr, now);
    } else {
      report_progress(item.step);
    }
  }
  // Scored windows last: the logits of their rows take the place of those that were sampled from.
  std::int64_t first_row = 0;
  for (const StepFlight::Item& item : flight.items) {
    const RequestState* request = find(item.step.request);
    if (request != nullptr && request->scores != nullptr) score_item(item.step, first_row);
    first_row += item.step.n_tokens;
  }
}

// All but the logits, of the token behind the item's rows. The mask is in allowed_ until the next call.
SampleInput StepLoop::sample_input(RequestState& request, const StepItem& item) {
  SampleInput input{.params = &request.sampling, .counts = &request.counts, .position = item.start + item.n_tokens};
  if (request.constraint) {
    request.constraint->mask(allowed_);
    input.allowed_tokens = allowed_;
  }
  return input;
}

// Has the backend draw the tokens of the step, as far as it can.
void StepLoop::sample_on_backend(StepFlight& flight) {
  if (runtime_.logits().on_host()) return;
  sample_batch_.clear();
  for (const StepFlight::Item& item : flight.items) {
    RequestState& request = at(item.step.request);
    if (!item.step.samples || request.scores != nullptr) continue;
    try {
      add_sample_row(sample_input(request, item.step), sampler_.vocab(), Runtime::kMaxEdits, sample_batch_);
    } catch (const std::exception&) { sample_batch_.rows.emplace_back(); }  // take() will meet it, and end this request
  }
  flight.sampled = runtime_.sample(sample_batch_, flight.first_logits);
  if (!flight.sampled) return;
  for (StepFlight::Item& item : flight.items) {
    if (!item.step.samples || at(item.step.request).scores != nullptr) continue;
    item.drawn = sample_batch_.rows[static_cast<std::size_t>(item.logits_row)].mode != SampleMode::kNone;
  }
}

Sample StepLoop::sample(RequestState& request, const StepItem& item, std::int64_t logits_row) {
  SampleInput input = sample_input(request, item);
  input.logits = runtime_.logits().row(logits_row);
  return sampler_.sample(input);
}

// The item's token, drawn by the backend or, without one, here.
void StepLoop::take(const StepItem& item, std::int64_t logits_row, const std::int32_t* token, double now) {
  RequestState& request = at(item.request);
  Event event;
  bool failed = true;
  try {
    const Sample drawn = token != nullptr ? sampled(*token) : sample(request, item, logits_row);
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
  if (event.finish == Finish::kNone) {
    outcomes_.push_back({.request = item.request, .n_sampled = 1});
    outgoing_.push_back({.request = item.request, .event = std::move(event)});
    return;
  }
  if (!flight_->committed) {
    outcomes_.push_back({.request = item.request, .n_sampled = failed ? 0 : 1, .finished = true});
  } else if (failed) {
    scheduler_.fail(item.request);
  } else {
    scheduler_.cancel(item.request);  // what a row behind the last token computes is for nothing
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
void StepLoop::fail(const StepFlight& flight, const std::string& error) {
  outcomes_.clear();
  for (const StepFlight::Item& item : flight.items) {
    const RequestId id = item.step.request;
    scheduler_.fail(id);
    if (RequestState* request = find(id); request != nullptr) finish(id, request->end(Finish::kError, error));
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
