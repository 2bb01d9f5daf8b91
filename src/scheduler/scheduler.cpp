#include "scheduler/scheduler.hpp"

#include <algorithm>
#include <string>

#include "base/check.hpp"

namespace glint {

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options),
      capacity_tokens_(std::int64_t{options.n_pages} * options.page_tokens),
      kv_(options.n_pages, options.page_tokens) {
  CHECK(options.chunk_tokens > 0 && options.max_running > 0 && options.max_context >= 0 && options.prompt_rows >= 0);
  if (options.max_context > 0) capacity_tokens_ = std::min(capacity_tokens_, options.max_context);
}

Admission Scheduler::check(const RequestDescriptor& request) const {
  const auto refuse = [](const char* what, std::int64_t found, const std::string& expected, const char* hint) {
    return Admission{
        .max_tokens = 0,
        .refusal = ErrorParts{.what = what, .found = std::to_string(found), .expected = expected, .hint = hint}};
  };
  if (request.prompt_tokens < 1) return refuse("prompt tokens", request.prompt_tokens, "at least 1", "");
  if (request.max_tokens < 0) return refuse("max_tokens", request.max_tokens, "0 or more", "");
  if (request.prompt_tokens >= capacity_tokens_) {
    return refuse("prompt tokens", request.prompt_tokens, "at most " + std::to_string(capacity_tokens_ - 1),
                  "a longer context needs a larger cache and max_context");
  }
  const std::int64_t room = capacity_tokens_ - request.prompt_tokens;
  return {.max_tokens = request.max_tokens == 0 ? room : std::min(room, request.max_tokens), .refusal = std::nullopt};
}

Admission Scheduler::admit(const RequestDescriptor& request) {
  Admission admission = check(request);
  if (admission.refusal) return admission;
  Request r;
  r.descriptor = request;
  r.arrival = next_arrival_++;
  r.n_tokens = request.prompt_tokens;
  r.limit = request.prompt_tokens + admission.max_tokens;
  const bool fresh = requests_.emplace(request.id, r).second;
  CHECK(fresh, "request " + std::to_string(request.id) + " is already here");
  insert_by_rank(waiting_, r);
  return admission;
}

std::int32_t Scheduler::pages_for(std::int64_t n_tokens) const {
  return static_cast<std::int32_t>((n_tokens + options_.page_tokens - 1) / options_.page_tokens);
}

const StepPlan& Scheduler::plan(std::int64_t now_us) {
  CHECK(!planned_, "the last plan was not committed");
  planned_ = true;
  ++step_;
  plan_.items.clear();
  plan_.n_rows = 0;
  plan_.n_logits = 0;
  plan_.started.clear();
  plan_.preempted.clear();
  plan_.expired.clear();
  kv_.advance();
  expire(now_us);
  start_waiting();
  catch_up();

  bool reads = false;
  for (const RequestId id : running_) reads |= !requests_.at(id).decoding();
  const std::int64_t budget = options_.chunk_tokens;
  std::int64_t kept = 0;  // r of the header
  if (reads) kept = budget > 1 ? std::max<std::int64_t>(1, budget / 8) : (last_prompt_step_ < step_ - 1 ? 1 : 0);
  if (kept > 0) last_prompt_step_ = step_;  // even if pages are short for it: the turn is over
  plan_decodes(budget - kept);
  std::int64_t left = budget - plan_.n_rows;
  if (options_.prompt_rows > 0 && plan_.n_rows > 0)
    left = std::min(left, std::max(options_.prompt_rows, plan_.n_rows / 2));
  plan_prompts(left);
  return plan_;
}

void Scheduler::expire(std::int64_t now_us) {
  for (const auto& [id, r] : requests_) {
    if (r.descriptor.deadline_us != 0 && now_us >= r.descriptor.deadline_us) plan_.expired.push_back(id);
  }
  for (const RequestId id : plan_.expired) forget(id);
}

// Beyond the pages that running requests hold or were promised (all their known tokens), one page for each of them must
// stay free, so that a newcomer is not preempted at once by their next tokens.
std::int64_t Scheduler::unpromised_pages() const {
  std::int64_t available = kv_.available_pages();
  for (const RequestId id : running_) {
    const Request& r = requests_.at(id);
    available -= kv_.pages_needed(*r.sequence, r.unread()) + 1;
  }
  return available;
}

void Scheduler::start_waiting() {
  std::int64_t available = unpromised_pages();
  std::size_t i = 0;
  while (i < waiting_.size() && i < kMaxOvertakes && available > 0 && n_running() < options_.max_running) {
    Request& r = requests_.at(waiting_[i]);
    Request& first = requests_.at(waiting_.front());
    const bool may_overtake = !first.preempted && first.overtaken < kMaxOvertakes;
    if (i > 0 && (!may_overtake || r.rank().priority != first.rank().priority)) return;
    std::int64_t need = pages_for(r.n_tokens);
    if (r.descriptor.tokens != nullptr) need -= kv_.match(r.first_tokens(r.n_tokens - 1)).used_pages;
    if (need > available) {
      ++i;
      continue;
    }
    available -= need + 1;
    if (i > 0) ++first.overtaken;
    waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(i));
    start(r);
    if (count_pass(r)) i = 0;
  }
}

void Scheduler::start(Request& r) {
  open(r);
  r.preempted = false;
  insert_by_rank(running_, r);
  plan_.started.push_back(r.descriptor.id);
}

template <typename Ids>
void Scheduler::insert_by_rank(Ids& ids, const Request& r) {
  const auto before = [&](RequestId other, const Request::Rank& rank) { return requests_.at(other).rank() < rank; };
  ids.insert(std::lower_bound(ids.begin(), ids.end(), r.rank(), before), r.descriptor.id);
}

// `r` got what others, who wait since before it came, did not: rows or pages. True: one of them has its turn now.
bool Scheduler::count_pass(const Request& r) {
  Request* passed = nullptr;  // the oldest
  for (auto it = waiting_.rbegin(); it != waiting_.rend(); ++it) {
    Request& other = requests_.at(*it);
    if (other.rank().priority <= r.rank().priority) break;  // and so are all before it
    if (other.arrival < r.arrival && (passed == nullptr || other.arrival < passed->arrival)) passed = &other;
  }
  if (passed == nullptr || ++n_passes_ < kPriorityTurns) return false;
  n_passes_ = 0;
  waiting_.erase(std::find(waiting_.begin(), waiting_.end(), passed->descriptor.id));
  passed->has_turn = true;
  insert_by_rank(waiting_, *passed);
  return true;
}

// ---- prefix cache ----------------------------------------------------------------------------------------------

void Scheduler::open(Request& r) {
  CHECK(r.descriptor.tokens == nullptr || static_cast<std::int64_t>(r.descriptor.tokens->size()) >= r.n_tokens);
  r.sequence = r.descriptor.tokens == nullptr ? kv_.open() : kv_.open(r.first_tokens(r.n_tokens - 1));
  const std::int64_t found = kv_.tokens(*r.sequence);
  count_cached(r, found - r.computed);
  r.computed = found;
}

void Scheduler::count_cached(Request& r, std::int64_t n_tokens) {
  if (r.read_again) return;  // what it had read itself is no news
  r.cached += n_tokens;
  n_cached_tokens_ += n_tokens;
}

// Whether n_rows more of `reader` fill the page that `other` needs next. Two that begin with the same tokens have read
// the same pages.
bool Scheduler::reads_for(const Request& reader, std::int64_t n_rows, const Request& other) const {
  if (reader.descriptor.tokens == nullptr || other.descriptor.tokens == nullptr) return false;
  const std::int64_t page = other.computed / options_.page_tokens;
  const std::int64_t begin = page * options_.page_tokens;
  const std::int64_t end = begin + options_.page_tokens;
  if (reader.computed < begin || reader.computed + n_rows < end || other.n_tokens <= end) return false;
  const auto pages = [&](const Request& r) { return kv_.pages(*r.sequence); };
  const auto before = static_cast<std::size_t>(page) - 1;
  if (page > 0 && pages(reader)[before] != pages(other)[before]) return false;
  const auto next = [&](const Request& r) {
    return r.first_tokens(end).last(static_cast<std::size_t>(options_.page_tokens));
  };
  return std::equal(next(reader).begin(), next(reader).end(), next(other).begin());
}

// Others may have read what a request still has before it.
void Scheduler::catch_up() {
  if (n_running() < 2) return;
  for (const RequestId id : running_) {
    Request& r = requests_.at(id);
    if (r.descriptor.tokens == nullptr || r.unread() <= options_.page_tokens) continue;
    if (kv_.match(r.first_tokens(r.n_tokens - 1)).tokens < r.computed + options_.page_tokens) continue;
    kv_.release(*r.sequence);
    open(r);
  }
}

// The last page is one of the tree that matches in part: the next row takes a copy of it.
bool Scheduler::shares_tail(const Request& r) const {
  return r.computed % options_.page_tokens != 0 && kv_.pages_needed(*r.sequence, 1) > 0;
}

void Scheduler::give_up_tail(Request& r) {
  const std::int64_t tail = r.computed % options_.page_tokens;
  count_cached(r, -tail);
  r.computed -= tail;
  kv_.truncate(*r.sequence, r.computed);
}

// Its last page will be a copy that nobody has made yet.
bool Scheduler::copy_pending(const Request& r) const {
  return planned_ && std::any_of(plan_.items.begin(), plan_.items.end(), [&](const StepItem& item) {
           return item.request == r.descriptor.id && item.copy.has_value();
         });
}

void Scheduler::keep(const Request& r, KvPlan::Keep what) {
  if (r.descriptor.tokens != nullptr && r.computed > 0) kv_.keep(*r.sequence, r.first_tokens(r.computed), what);
}

// The sequence ends; its pages stay for others as long as they are not needed.
void Scheduler::close(const Request& r) {
  keep(r, copy_pending(r) ? KvPlan::Keep::kPages : KvPlan::Keep::kTail);
  kv_.release(*r.sequence);
}

SequenceId Scheduler::pin(std::span<const std::int32_t> tokens, std::int32_t n_more) {
  const std::int64_t whole = kv_.match(tokens).tokens / options_.page_tokens * options_.page_tokens;
  const SequenceId sequence = kv_.open(tokens.first(static_cast<std::size_t>(whole)));
  ++n_pins_;
  const std::int64_t more = std::min<std::int64_t>(n_more, unpromised_pages());
  if (more > 0) {
    const bool extended = kv_.extend(sequence, more * options_.page_tokens, nullptr);
    CHECK(extended, std::to_string(more) + " pages");
  }
  return sequence;
}

void Scheduler::unpin(SequenceId sequence, std::span<const std::int32_t> tokens) {
  CHECK(n_pins_ > 0);
  --n_pins_;
  kv_.keep(sequence, tokens, KvPlan::Keep::kPages);
  kv_.release(sequence);
}

// ---- rows ------------------------------------------------------------------------------------------------------

// Those that waited longest come first, so that a budget below their number goes round.
void Scheduler::plan_decodes(std::int64_t budget) {
  std::vector<Request*> decodes;
  for (const RequestId id : running_) {
    Request& r = requests_.at(id);
    if (r.decoding()) decodes.push_back(&r);
  }
  std::stable_sort(decodes.begin(), decodes.end(),
                   [](const Request* a, const Request* b) { return a->last_step < b->last_step; });
  auto left = static_cast<std::int64_t>(decodes.size());
  for (Request* r : decodes) {
    if (budget == 0) return;
    --left;
    if (!r->sequence) continue;  // preempted meanwhile
    // Drafts take only rows that no other decode needs, and only tokens that may still be generated.
    const std::int64_t spare = std::max<std::int64_t>(0, budget - 1 - left);
    const std::int64_t useful = r->limit - r->n_tokens - 1;
    budget -= add_rows(*r, 1, std::min({r->n_drafts, spare, useful}));
  }
}

void Scheduler::plan_prompts(std::int64_t budget) {
  std::vector<Request*> readers;
  for (const RequestId id : running_) {
    Request& r = requests_.at(id);
    if (!r.decoding()) readers.push_back(&r);
  }
  if (readers.empty() || budget == 0) return;
  const auto chunk = [](const Request& r, std::int64_t rows) {
    const std::int64_t own = r.descriptor.max_chunk_tokens;
    rows = std::min(rows, r.unread());
    return own > 0 ? std::min(rows, own) : rows;
  };
  // The oldest: at least half, and all that the others leave.
  const std::int64_t oldest_share = chunk(*readers.front(), (budget + 1) / 2);
  std::int64_t rest = budget - oldest_share;
  std::stable_sort(readers.begin() + 1, readers.end(),
                   [](const Request* a, const Request* b) { return a->unread() < b->unread(); });
  std::vector<std::int64_t> rows(readers.size());
  rows[0] = oldest_share;
  for (std::size_t i = 1; i < readers.size() && rest > 0; ++i) {
    bool follows = false;  // somebody reads its next page in this step
    for (std::size_t j = 0; j < i && !follows; ++j)
      follows = rows[j] > 0 && reads_for(*readers[j], rows[j], *readers[i]);
    rows[i] = follows ? 0 : chunk(*readers[i], rest);
    rest -= rows[i];
  }
  rows[0] = chunk(*readers.front(), oldest_share + rest);
  for (std::size_t i = 0; i < readers.size(); ++i) {
    if (rows[i] > 0 && readers[i]->sequence) add_rows(*readers[i], rows[i], 0);
  }
}

// Gives the request n_rows of its known tokens and up to n_drafts more; returns the rows that it got. Short of pages, a
// decode loses its drafts and a prompt a part of its rows; when not even one row fits, younger requests are preempted
// for it. If there is none, a decode is preempted itself and a prompt waits with what it has read.
std::int64_t Scheduler::add_rows(Request& r, std::int64_t n_rows, std::int64_t n_drafts) {
  // Rows that free pages allow. A partly filled last page that is shared takes one page for its copy.
  const auto fits = [&] {
    const std::int64_t copies = shares_tail(r) ? 1 : 0;
    return (pages_for(r.computed) + kv_.available_pages() - copies) * options_.page_tokens - r.computed;
  };
  if (fits() <= 0 && shares_tail(r)) give_up_tail(r);
  const bool prefill = !r.decoding();
  if (fits() <= 0 && !make_room(r)) {
    if (!prefill) preempt(r);
    return 0;
  }
  n_rows = std::min(n_rows, fits());
  if (n_rows + n_drafts > fits()) n_drafts = 0;
  StepItem item{.request = r.descriptor.id,
                .sequence = *r.sequence,
                .start = r.computed,
                .n_tokens = n_rows + n_drafts,
                .n_drafts = n_drafts,
                .samples = r.computed + n_rows == r.n_tokens,
                .prefill = prefill,
                .copy = std::nullopt,
                .cached = r.cached};
  const bool extended = kv_.extend(*r.sequence, item.n_tokens, &item.copy);
  CHECK(extended, "request " + std::to_string(item.request));
  r.last_step = step_;
  if (prefill) last_prompt_step_ = step_;
  plan_.n_rows += item.n_tokens;
  if (item.samples) plan_.n_logits += 1 + n_drafts;
  plan_.items.push_back(item);
  return item.n_tokens;
}

// Preempts requests younger than `request`, the youngest first, until a page is free. False: none is, and none is
// younger.
bool Scheduler::make_room(const Request& request) {
  while (kv_.available_pages() == 0) {
    Request& youngest = requests_.at(running_.back());
    if (youngest.arrival == request.arrival) return false;
    preempt(youngest);
    count_pass(request);
  }
  return true;
}

void Scheduler::preempt(Request& r) {
  CHECK(r.sequence.has_value());
  const RequestId id = r.descriptor.id;
  close(r);
  drop_item(id);
  r.sequence.reset();
  r.computed = 0;
  r.n_drafts = 0;
  r.preempted = true;
  r.read_again = true;
  std::erase(running_, id);
  insert_by_rank(waiting_, r);
  plan_.preempted.push_back(id);
  ++n_preemptions_;
}

void Scheduler::drop_item(RequestId id) {
  const auto it =
      std::find_if(plan_.items.begin(), plan_.items.end(), [&](const StepItem& item) { return item.request == id; });
  if (it == plan_.items.end()) return;
  plan_.n_rows -= it->n_tokens;
  if (it->samples) plan_.n_logits -= 1 + it->n_drafts;
  plan_.items.erase(it);
}

void Scheduler::commit(std::span<const StepOutcome> outcomes) {
  CHECK(planned_, "commit without a plan");
  planned_ = false;
  std::map<RequestId, const StepOutcome*> by_id;
  for (const StepOutcome& outcome : outcomes) {
    const bool once = by_id.emplace(outcome.request, &outcome).second;
    CHECK(once, "two outcomes of request " + std::to_string(outcome.request));
  }
  for (const StepItem& item : plan_.items) {
    const auto it = requests_.find(item.request);
    if (it == requests_.end()) continue;  // cancelled
    Request& r = it->second;
    const auto found = by_id.find(item.request);
    const StepOutcome* outcome = found == by_id.end() ? nullptr : found->second;
    if (outcome != nullptr && outcome->finished) {
      if (outcome->n_sampled > 0) {
        r.computed = r.n_tokens + outcome->n_sampled - 1;
      } else {
        discard(r);
      }
      forget(item.request);
      continue;
    }
    if (!item.samples) {
      r.computed += item.n_tokens;
      keep(r, KvPlan::Keep::kPages);
      continue;
    }
    const std::string name = "request " + std::to_string(item.request);
    CHECK(outcome != nullptr, name + " sampled but has no outcome");
    CHECK(outcome->n_sampled >= 1 && outcome->n_sampled <= 1 + item.n_drafts, name);
    // The cache now holds the known tokens and the drafts; of these the accepted ones stay. The last new token is in no
    // cache yet.
    r.computed = r.n_tokens + outcome->n_sampled - 1;
    r.n_tokens += outcome->n_sampled;
    CHECK(r.n_tokens < r.limit, name + " reached its limit but was not finished");
    kv_.truncate(item.sequence, r.computed);
    r.n_drafts = std::max<std::int64_t>(0, outcome->n_next_drafts);
    if (item.prefill) keep(r, KvPlan::Keep::kPages);
  }
}

void Scheduler::cancel(RequestId id) {
  if (requests_.contains(id)) forget(id);
}

void Scheduler::fail(RequestId id) {
  const auto it = requests_.find(id);
  if (it == requests_.end()) return;
  discard(it->second);
  forget(id);
}

// Of its tokens the last one may not be known yet.
void Scheduler::discard(Request& r) {
  const std::vector<std::int32_t>* tokens = r.descriptor.tokens;
  if (tokens != nullptr) kv_.discard(r.first_tokens(std::min(r.n_tokens, static_cast<std::int64_t>(tokens->size()))));
  r.computed = 0;
}

void Scheduler::forget(RequestId id) {
  const auto it = requests_.find(id);
  CHECK(it != requests_.end(), "request " + std::to_string(id));
  if (it->second.sequence) {
    close(it->second);
    std::erase(running_, id);
  } else {
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), id));
  }
  requests_.erase(it);
}

std::string Scheduler::check_integrity() const {
  if (std::string wrong = kv_.check_integrity(); !wrong.empty()) return "cache: " + wrong;
  if (requests_.size() != running_.size() + waiting_.size()) return "a request is neither running nor waiting";
  if (kv_.n_sequences() != n_running() + n_pins_) return "the cache holds a sequence that nobody runs";
  if (n_running() > options_.max_running) return std::to_string(n_running()) + " requests run";
  if (plan_.n_rows > options_.chunk_tokens) return std::to_string(plan_.n_rows) + " rows in a step";
  std::map<RequestId, std::int64_t> planned;
  if (planned_) {
    for (const StepItem& item : plan_.items) planned[item.request] += item.n_tokens;
  }
  for (const RequestId id : running_) {
    const auto it = requests_.find(id);
    const std::string name = "running request " + std::to_string(id);
    if (it == requests_.end()) return name + " is unknown";
    const Request& r = it->second;
    if (!r.sequence) return name + " has no sequence";
    if (r.computed < 0 || r.computed >= r.n_tokens || r.n_tokens >= r.limit) {
      return name + ": " + std::to_string(r.computed) + " of " + std::to_string(r.n_tokens) +
             " tokens computed, limit " + std::to_string(r.limit);
    }
    if (kv_.tokens(*r.sequence) != r.computed + planned[id]) {
      return name + ": the cache holds " + std::to_string(kv_.tokens(*r.sequence)) + " tokens, " +
             std::to_string(r.computed) + " are computed and " + std::to_string(planned[id]) + " planned";
    }
  }
  for (const RequestId id : waiting_) {
    const auto it = requests_.find(id);
    if (it == requests_.end()) return "waiting request " + std::to_string(id) + " is unknown";
    if (it->second.sequence || it->second.computed != 0)
      return "waiting request " + std::to_string(id) + " holds pages";
  }
  const auto before = [&](RequestId a, RequestId b) { return requests_.at(a).rank() < requests_.at(b).rank(); };
  if (!std::is_sorted(running_.begin(), running_.end(), before)) return "running requests are out of order";
  if (!std::is_sorted(waiting_.begin(), waiting_.end(), before)) return "waiting requests are out of order";
  return {};
}

}  // namespace glint
