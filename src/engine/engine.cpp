#include "engine/engine_impl.hpp"

#include <algorithm>
#include <random>
#include <utility>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "engine/chat_text.hpp"
#include "engine/disk_options.hpp"

namespace glint {
namespace {

void check_range(const char* name, std::int64_t value, std::int64_t least, std::int64_t most) {
  if (value >= least && value <= most) return;
  throw Error({.what = name,
               .found = std::to_string(value),
               .expected = "from " + std::to_string(least) + " to " + std::to_string(most)});
}

void check_options(const EngineOptions& o) {
  constexpr std::int64_t kMost = 1 << 30;
  check_range("max_context", o.max_context, 0, kMost);
  check_range("cache_tokens", o.cache_tokens, 0, kMost);
  check_range("chunk_tokens", o.chunk_tokens, 0, 1 << 16);
  check_range("max_requests", o.max_requests, 1, 4096);
  check_range("window_tokens", o.window_tokens, 0, kMost);
  check_range("synthetic_layers", o.synthetic_layers, 0, 1024);
  check_range("touch_ahead_bytes", o.touch_ahead_bytes, 0, std::int64_t{1} << 40);
  check_range("cache_dir_bytes", o.cache_dir_bytes, 0, std::int64_t{1} << 60);
  if (!o.cache_dir.empty() && !o.prefix_cache) {
    throw Error({.what = "cache_dir", .found = '"' + o.cache_dir + '"', .expected = "a prefix cache that is on"});
  }
  if (!(o.latent_eps >= 0) || o.latent_eps > 1) {
    throw Error({.what = "latent_eps", .found = std::to_string(o.latent_eps), .expected = "from 0 to 1"});
  }
}

// Rows of logits that scoring makes at a time: enough that reading lm_head's weights is not what takes the time.
constexpr std::int64_t kScoreRows = 64;

// Of prompts beside decodes. A host's step takes as long as it has rows; a device's costs much the same up to a chunk.
std::int64_t prompt_rows(std::int64_t chunk, const Ops& ops) {
  return ops.host_memory() ? std::max<std::int64_t>(1, chunk / 4) : 0;
}

constexpr double kMostSeconds = 1e9;  // a timeout: what microseconds in 64 bits hold, and more than anyone waits

std::uint64_t random_seed() {
  std::random_device device;
  return std::uint64_t{device()} << 32 | device();
}

}  // namespace

std::unique_ptr<Engine> Engine::open(const EngineOptions& options) { return std::make_unique<EngineImpl>(options); }

EngineImpl::EngineImpl(const EngineOptions& options) : options_((check_options(options), options)) {
  const double begin = now_s();
  loaded_ = load_model(options_);
  info_ = describe(options_, loaded_);

  const ModelConfig& config = loaded_.weights.config;
  const std::int64_t device_bytes = loaded_.ops->available_bytes();  // free after the weights are there
  const std::int64_t cache_bytes =
      options_.cache_tokens * KvStore::token_bytes(config.n_cache_layers(), kv_codec(options_));
  const std::int64_t chunk =
      options_.chunk_tokens > 0 ? options_.chunk_tokens : default_chunk(device_bytes - cache_bytes);
  const bool mapped = device_bytes < 0 && options_.synthetic_layers == 0;
  const MemoryState memory{.available_bytes = device_bytes >= 0 ? device_bytes : available_memory(),
                           .mapped_bytes = mapped ? info_.weight_bytes : 0};
  const CachePlan cache = plan_cache(options_, config, kv_codec(options_), memory);
  info_.max_context = cache.max_context;

  RuntimeOptions runtime;
  runtime.model = {.max_rows = chunk,
                   .max_logits = std::max<std::int64_t>(options_.max_requests, kScoreRows),
                   .max_context = cache.max_context,
                   .latent_eps = options_.latent_eps,
                   .valid_vocab = loaded_.valid_vocab,
                   .window_tokens = options_.window_tokens};
  runtime.codec = kv_codec(options_);
  runtime.cache_tokens = cache.cache_tokens;
  runtime.max_seqs = options_.max_requests;
  runtime.touch_ahead_bytes = options_.touch_ahead_bytes;
  runtime_ = std::make_unique<Runtime>(loaded_.weights, *loaded_.ops, runtime);

  loop_ = std::make_unique<StepLoop>(*runtime_,
                                     StepLoopOptions{.scheduler = {.n_pages = runtime_->store().n_pages(),
                                                                   .page_tokens = kPageTokens,
                                                                   .chunk_tokens = chunk,
                                                                   .prompt_rows = prompt_rows(chunk, *loaded_.ops),
                                                                   .max_running = options_.max_requests,
                                                                   .max_context = cache.max_context},
                                                     .eos_ids = config.eos_ids,
                                                     .prefix_cache = options_.prefix_cache,
                                                     .disk = disk_options(options_, loaded_, runtime_->store())});
  if (loaded_.tokenizer) {
    constraints_ = std::make_unique<Constraints>(*loaded_.tokenizer, config.eos_ids, loaded_.valid_vocab, config.vocab);
  }
  stats_ = loop_->stats();
  info_.open_s = now_s() - begin;
  if (options_.use_thread) thread_ = std::thread([this] { serve(); });
}

// Every request ends with kCancelled, threads that wait for events get it, then all goes.
EngineImpl::~EngineImpl() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) {
    thread_.join();
  } else {
    const std::lock_guard stepping(step_mutex_);
    accept();
    loop_->cancel_all();
    deliver();
  }
  std::unique_lock lock(mutex_);
  vacant_.wait(lock, [this] { return waiters_ == 0; });
}

// ---- requests in -----------------------------------------------------------------------------------------------

void EngineImpl::check_ids(std::span<const std::int32_t> ids, const char* what) const {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < loaded_.valid_vocab) continue;
    throw Error({.what = std::string(what) + "[" + std::to_string(i) + "]",
                 .found = std::to_string(ids[i]),
                 .expected = "a token id from 0 to " + std::to_string(loaded_.valid_vocab - 1)});
  }
}

// max_tokens clipped to the context. Throws when the request can never run.
std::int64_t EngineImpl::admissible_tokens(std::int64_t prompt_tokens, std::int64_t max_tokens) const {
  const Admission admission = loop_->check({.id = 1, .prompt_tokens = prompt_tokens, .max_tokens = max_tokens});
  if (admission.refusal) throw Error(*admission.refusal);
  return admission.max_tokens;
}

std::unique_ptr<RequestState> EngineImpl::make_request(Request request) const {
  if (request.ids.empty()) throw Error({.what = "ids", .found = "no token", .expected = "at least one"});
  check_ids(request.ids, "ids");
  check_ids(request.stop_ids, "stop_ids");
  if (request.max_tokens < 0) {
    throw Error({.what = "max_tokens", .found = std::to_string(request.max_tokens), .expected = "0 or more"});
  }
  if (!(request.timeout_s >= 0 && request.timeout_s <= kMostSeconds)) {
    throw Error({.what = "timeout_s",
                 .found = std::to_string(request.timeout_s),
                 .expected = "from 0 to " + std::to_string(static_cast<int>(kMostSeconds))});
  }
  for (const std::string& stop : request.stop) {
    if (stop.empty()) throw Error({.what = "stop", .found = "an empty string", .expected = "text"});
  }
  if (!request.stop.empty() || !request.constraint.empty()) tokenizer();  // without one no text ever comes

  auto state = std::make_unique<RequestState>();
  if (!request.constraint.empty()) {
    if (request.ignore_eos) {
      throw Error({.what = "ignore_eos", .found = "true", .expected = "false where the answer has a form to keep"});
    }
    state->constraint = constraints_->make(request.constraint);
  }
  SamplingParams& p = request.sampling;
  state->sampling = {.temperature = p.temperature,
                     .top_p = p.top_p,
                     .top_k = p.top_k,
                     .min_p = p.min_p,
                     .repetition_penalty = p.repetition_penalty,
                     .presence_penalty = p.presence_penalty,
                     .frequency_penalty = p.frequency_penalty,
                     .seed = p.seed ? *p.seed : random_seed(),
                     .logit_bias = std::move(p.logit_bias),
                     .logprobs = p.logprobs};
  validate(state->sampling, loaded_.valid_vocab);
  std::stable_sort(state->sampling.logit_bias.begin(), state->sampling.logit_bias.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  state->prompt_tokens = static_cast<std::int64_t>(request.ids.size());
  state->max_tokens = admissible_tokens(state->prompt_tokens, request.max_tokens);

  if (state->sampling.needs_counts()) state->counts = TokenCounts(request.ids);
  state->tokens = std::move(request.ids);
  // Room for what will come, so that a step seldom grows it; a long limit is no promise to use it.
  constexpr std::int64_t kReserve = 4096;
  state->tokens.reserve(state->tokens.size() + static_cast<std::size_t>(std::min(state->max_tokens, kReserve)));
  state->stop_ids = std::move(request.stop_ids);
  state->ignore_eos = request.ignore_eos;
  state->priority = request.priority;
  state->timeout_s = request.timeout_s;
  if (loaded_.tokenizer)
    state->decoder.emplace(*loaded_.tokenizer, DecodeOptions{.skip_special = request.skip_special});
  state->stops = StopMatcher(std::move(request.stop));
  return state;
}

RequestId EngineImpl::submit(Request request) {
  const auto channel = std::make_shared<Channel>();
  channel->on_ready = std::move(request.on_ready);
  std::unique_ptr<RequestState> state = make_request(std::move(request));
  const RequestId id = next_id_.fetch_add(1);
  state->id = id;
  state->submitted_s = now_s();
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) throw Error("the engine is closing");
    channels_.emplace(id, channel);
    inbox_.push_back(std::move(state));
  }
  wake_.notify_all();
  return id;
}

void EngineImpl::cancel(RequestId id) {
  {
    const std::lock_guard lock(mutex_);
    if (!channels_.contains(id)) return;
    cancels_.push_back(id);
  }
  wake_.notify_all();
}

void EngineImpl::abandon(RequestId id) {
  {
    const std::lock_guard lock(mutex_);
    const auto found = channels_.find(id);
    if (found == channels_.end()) return;
    found->second->closed = true;
    found->second->events.clear();
    found->second->head = 0;
    found->second->ready.notify_all();
    channels_.erase(found);
    cancels_.push_back(id);
  }
  wake_.notify_all();
}

// ---- the engine thread -----------------------------------------------------------------------------------------

void EngineImpl::serve() {
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || !inbox_.empty() || !cancels_.empty() || !loop_->idle(); });
      if (stopping_) break;
    }
    if (turn()) continue;
    // The scheduler has requests but no work for them now: rest rather than spin.
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, std::chrono::milliseconds(1),
                   [this] { return stopping_ || !inbox_.empty() || !cancels_.empty(); });
  }
  accept();
  loop_->cancel_all();
  deliver();
}

bool EngineImpl::turn() {
  const bool accepted = accept();
  const bool worked = loop_->step();
  deliver();
  return accepted || worked;
}

bool EngineImpl::accept() {
  {
    const std::lock_guard lock(mutex_);
    // Until the loop has counted them they wait.
    for (const auto& request : inbox_) stats_.waiting_requests += request->scores == nullptr ? 1 : 0;
    accepted_.swap(inbox_);
    cancelled_.swap(cancels_);
  }
  const bool any = !accepted_.empty() || !cancelled_.empty();
  for (std::unique_ptr<RequestState>& request : accepted_) loop_->admit(std::move(request));
  for (const RequestId id : cancelled_) loop_->cancel(id);
  accepted_.clear();
  cancelled_.clear();
  return any;
}

void EngineImpl::deliver() {
  std::vector<StepLoop::Outgoing>& outgoing = loop_->outgoing();
  std::unique_lock lock(mutex_);
  for (StepLoop::Outgoing& out : outgoing) {
    if (out.scored) {
      const auto job = score_jobs_.find(out.request);
      if (job == score_jobs_.end()) continue;
      ScoreJob& j = *job->second;
      j.rows_done += out.scored_rows;
      if (out.event.finish != Finish::kNone) {
        if (!out.event.error.empty()) j.error = out.event.error;
        --j.windows_left;
        score_jobs_.erase(job);
      }
      j.changed.notify_all();
      continue;
    }
    const auto channel = channels_.find(out.request);
    if (channel == channels_.end()) continue;
    if (channel->second->on_ready && channel->second->empty()) arrived_.push_back(channel->second);
    channel->second->events.push_back(std::move(out.event));
    channel->second->ready.notify_all();
  }
  outgoing.clear();
  stats_ = loop_->stats();
  lock.unlock();
  for (const std::shared_ptr<Channel>& channel : arrived_) channel->on_ready();
  arrived_.clear();
}

bool EngineImpl::drive() {
  const std::lock_guard stepping(step_mutex_);
  return turn();
}

bool EngineImpl::step() {
  if (options_.use_thread) throw Error("step(): the engine has its own thread (use_thread is true)");
  return drive();
}

// ---- events out ------------------------------------------------------------------------------------------------

std::optional<Event> EngineImpl::next(RequestId id, std::optional<std::chrono::milliseconds> timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout.value_or(std::chrono::milliseconds(0));
  std::unique_lock lock(mutex_);
  const auto found = channels_.find(id);
  const auto unknown = [&] {
    return Error({.what = "request " + std::to_string(id), .found = "an id that is unknown or has ended"});
  };
  if (found == channels_.end()) throw unknown();
  const std::shared_ptr<Channel> channel = found->second;  // another thread may take the last event meanwhile
  while (channel->empty()) {
    if (channel->closed) throw unknown();
    if (!options_.use_thread) {
      lock.unlock();
      const bool worked = drive();
      lock.lock();
      if (!channel->empty()) break;
      if (!worked || (timeout && std::chrono::steady_clock::now() >= deadline)) return std::nullopt;
      continue;
    }
    if (timeout && timeout->count() <= 0) return std::nullopt;
    ++waiters_;
    const auto ready = [&] { return !channel->empty() || channel->closed; };
    if (timeout) {
      channel->ready.wait_until(lock, deadline, ready);
    } else {
      channel->ready.wait(lock, ready);
    }
    leave_wait();
    if (!ready()) return std::nullopt;
  }
  Event event = std::move(channel->events[channel->head++]);
  if (channel->empty()) {
    channel->events.clear();
    channel->head = 0;
  }
  if (event.finish != Finish::kNone) {
    channel->closed = true;
    channels_.erase(id);
    channel->ready.notify_all();
  }
  return event;
}

void EngineImpl::leave_wait() {
  --waiters_;
  if (stopping_ && waiters_ == 0) vacant_.notify_all();
}

EngineStats EngineImpl::stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats s = stats_;
  for (const auto& request : inbox_) s.waiting_requests += request->scores == nullptr ? 1 : 0;
  return s;
}

// ---- text ------------------------------------------------------------------------------------------------------

const Tokenizer& EngineImpl::tokenizer() const {
  if (loaded_.tokenizer) return *loaded_.tokenizer;
  throw Error({.what = "text", .found = "a model of random weights", .expected = "a model with a tokenizer"});
}

std::vector<std::int32_t> EngineImpl::encode(std::string_view text, bool literal) const {
  return tokenizer().encode(text, {.literal = literal});
}

std::string EngineImpl::decode(std::span<const std::int32_t> ids, bool skip_special) const {
  return tokenizer().decode(ids, {.skip_special = skip_special});
}

std::string EngineImpl::render_chat(std::string_view request_json) const { return render_chat_json(request_json); }

std::string EngineImpl::parse_output(std::string_view text, std::string_view options_json) const {
  return parse_output_json(text, options_json);
}

}  // namespace glint
