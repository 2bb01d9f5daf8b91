#pragma once
// Requests → batches. Pure policy: no ops, no threads, no clock (time is an argument). The same calls give the same
// plans. Owns the cache's books (KvPlan); the engine obeys.
//
// A step holds at most chunk_tokens rows (B). Decode rows come first; what is left of the budget reads prompts, in
// chunks. While a prompt is being read, r = max(1, B / 8) rows are kept for it (B = 1: prompts and decodes alternate).
//   Bound on stalls: of D decoding requests each gets its row in every ceil(D / (B - r))-th step or sooner (in every
//   step when D ≤ B - r; in every 2 D-th when B = 1), and no step has more than B rows, however long the prompts.
//   Preemption is the one exception.
// Where a step takes as long as it has rows (hosts), prompt_rows (P) keeps the gaps of those that decode even: beside D
// decode rows, prompts get max(P, D / 2) at most.
// Prompts: the oldest gets at least half of the rows left, the others share the rest, the fewest unread tokens first;
// so the oldest always advances and a short prompt never waits for a long one to be read. Admission: in order of
// arrival, when pages for all its tokens are free beyond those promised to running requests and one for each of them.
// When the first in the queue does not fit, later ones that do may overtake it kMaxOvertakes times. Preemption: when
// pages are short, the youngest running request gives its pages back, goes to the front of the queue and is read again
// later; nobody is admitted before it. The oldest running request is never preempted, so every request finishes.
// Priorities: the smaller number counts as older, whatever came first: it is admitted first, its prompt is read first,
// and it is preempted last. Every kPriorityTurns-th time that somebody who waits is passed by a later request of a
// better priority, the one of those passed that came first has its turn: it is older than all from then on. So nobody
// starves: with k older ones waiting, a request is passed at most kPriorityTurns · (k + 1) times.
// Prefix cache: a request that shows its tokens starts behind what the cache's tree holds of them (never the last one:
// its logits are wanted), does not read what another one reads in the same step but catches up with it in the next, and
// leaves its pages to the tree when it ends, is cancelled or preempted. Pages of the tree that nobody runs on count as
// free.

#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "base/error.hpp"
#include "cache/plan.hpp"

namespace glint {

using RequestId = std::int64_t;

inline constexpr int kMaxOvertakes = 32;  // also how far into the queue a step looks
inline constexpr int kPriorityTurns = 8;

struct SchedulerOptions {
  std::int32_t n_pages = 0;
  std::int32_t page_tokens = 64;
  std::int64_t chunk_tokens = 512;  // rows of a step at most
  std::int64_t prompt_rows = 0;     // of prompts in a step beside decodes (see above); 0: what the decodes leave
  int max_running = 64;             // requests that hold pages at the same time; more wait
  std::int64_t max_context = 0;     // prompt + generated tokens of a request; 0: what the cache holds
};

struct RequestDescriptor {
  RequestId id = 0;  // chosen by the caller, never used before
  std::int64_t prompt_tokens = 0;
  std::int64_t max_tokens = 0;        // generated tokens at most; 0: until the context is full
  std::int64_t max_chunk_tokens = 0;  // rows of a step at most; 0: no limit of its own
  std::int64_t deadline_us = 0;       // plan(now ≥ deadline) drops the request; 0: none
  std::int64_t priority = 0;          // the smaller goes first
  // The known tokens, kept by the caller until the request is forgotten; new ones are appended before their commit, or,
  // where the caller is a step behind, the last one before the next commit.
  // nullptr: the request neither uses nor feeds the prefix cache.
  const std::vector<std::int32_t>* tokens = nullptr;
};

struct Admission {
  std::int64_t max_tokens = 0;        // clipped to what fits
  std::optional<ErrorParts> refusal;  // the request can never run
};

// Rows of one request in a step: its tokens (prompt, generated, drafts) from `start`; KvPlan already holds their slots.
struct StepItem {
  RequestId request = 0;
  SequenceId sequence = 0;
  std::int64_t start = 0;        // position of the first row
  std::int64_t n_tokens = 0;     // rows, the drafts included
  std::int64_t n_drafts = 0;     // of them, the last ones are drafts to verify
  bool samples = false;          // the last 1 + n_drafts rows want logits
  bool prefill = false;          // reads the prompt (or reads again after preemption)
  std::optional<PageCopy> copy;  // to make before the step
  std::int64_t cached = 0;       // prompt tokens of the request that were found in the cache
};

struct StepPlan {
  std::vector<StepItem> items;
  std::int64_t n_rows = 0;
  std::int64_t n_logits = 0;
  std::vector<RequestId> started;    // left the queue: first time or again
  std::vector<RequestId> preempted;  // informative: their tokens will be read again
  std::vector<RequestId> expired;    // the deadline passed: forgotten, pages free

  bool empty() const { return items.empty(); }
};

// What came of an item that samples; items that do not sample need none unless the request ended.
struct StepOutcome {
  RequestId request = 0;
  std::int64_t n_sampled = 0;      // new tokens: 1 + accepted drafts (fewer if the request ended among them)
  bool finished = false;           // ended for any reason: pages go back at once; with n_sampled = 0 it failed
  std::int64_t n_next_drafts = 0;  // drafts that the next step should verify, if rows and pages allow
};

// Owned and mutated by the engine thread alone, except check(), which reads only the options.
class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  // Whether it could ever run, and max_tokens clipped. Thread-safe.
  Admission check(const RequestDescriptor& request) const;

  // Puts the request into the queue, unless refused.
  Admission admit(const RequestDescriptor& request);

  // The next step. Every plan must be committed before the next one, an empty one too. The reference is valid until the
  // next call of plan().
  const StepPlan& plan(std::int64_t now_us);

  // The step was run. Outcomes of requests that were cancelled meanwhile are ignored.
  void commit(std::span<const StepOutcome> outcomes);

  // Forgets the request; its pages are free at once. Also between plan and commit (the pages are not given to others
  // before the next plan). Unknown ids are ignored.
  void cancel(RequestId id);
  // The same, and nothing of what it read stays in the prefix cache: it failed.
  void fail(RequestId id);

  // For the second tier of the prefix cache, which reads and fills pages outside of steps. A sequence that holds what
  // the tree has of the tokens, in whole pages, and n_more pages for those that follow (fewer if running requests need
  // them). Pages of it are not evicted until unpin(); a long time of many pins holds requests up.
  SequenceId pin(std::span<const std::int32_t> tokens, std::int32_t n_more);
  // Of the sequence's tokens, those given are in their pages now: the tree may have them.
  void unpin(SequenceId sequence, std::span<const std::int32_t> tokens);

  const KvPlan& kv() const { return kv_; }
  const SchedulerOptions& options() const { return options_; }
  std::int64_t n_running() const { return static_cast<std::int64_t>(running_.size()); }
  std::int64_t n_waiting() const { return static_cast<std::int64_t>(waiting_.size()); }
  bool idle() const { return requests_.empty(); }
  std::int64_t n_preemptions() const { return n_preemptions_; }
  std::int64_t n_cached_tokens() const { return n_cached_tokens_; }  // prompt tokens found in the cache

  // Empty when the invariants of scheduler and cache hold, else what is wrong.
  std::string check_integrity() const;

 private:
  struct Request {
    RequestDescriptor descriptor;
    std::int64_t arrival = 0;            // smaller is older
    std::int64_t n_tokens = 0;           // known: prompt + generated
    std::int64_t limit = 0;              // prompt + max_tokens
    std::int64_t computed = 0;           // tokens in the cache; < n_tokens between steps
    std::int64_t n_drafts = 0;           // asked for in the next step
    std::int64_t last_step = 0;          // when it last got rows
    std::optional<SequenceId> sequence;  // set while running
    int overtaken = 0;
    bool has_turn = false;    // goes before every priority
    bool preempted = false;   // waits to be read again
    bool read_again = false;  // was preempted once
    std::int64_t cached = 0;  // prompt tokens found in the cache

    // The order of the queue and of those that run: the smaller goes first.
    struct Rank {
      std::int64_t priority = 0;
      bool unread = false;
      std::int64_t arrival = 0;
      bool operator<(const Rank& other) const {
        return std::tie(priority, unread, arrival) < std::tie(other.priority, other.unread, other.arrival);
      }
    };
    Rank rank() const {
      constexpr std::int64_t kFirst = std::numeric_limits<std::int64_t>::min();
      return {.priority = has_turn ? kFirst : descriptor.priority, .unread = !preempted, .arrival = arrival};
    }
    bool decoding() const { return computed == n_tokens - 1 && computed > 0; }
    std::int64_t unread() const { return n_tokens - computed; }
    std::span<const std::int32_t> first_tokens(std::int64_t n) const {
      return std::span(*descriptor.tokens).first(static_cast<std::size_t>(n));
    }
  };

  void expire(std::int64_t now_us);
  void start_waiting();
  void start(Request& request);
  bool count_pass(const Request& request);
  template <typename Ids>
  void insert_by_rank(Ids& ids, const Request& request);
  void open(Request& request);
  void catch_up();
  bool reads_for(const Request& reader, std::int64_t n_rows, const Request& other) const;
  bool shares_tail(const Request& request) const;
  bool copy_pending(const Request& request) const;
  void give_up_tail(Request& request);
  void count_cached(Request& request, std::int64_t n_tokens);
  void keep(const Request& request, KvPlan::Keep what);
  void close(const Request& request);
  std::int64_t unpromised_pages() const;
  void plan_decodes(std::int64_t budget);
  void plan_prompts(std::int64_t budget);
  std::int64_t add_rows(Request& request, std::int64_t n_rows, std::int64_t n_drafts);
  bool make_room(const Request& request);
  void preempt(Request& request);
  void drop_item(RequestId id);
  void discard(Request& r);
  void forget(RequestId id);
  std::int32_t pages_for(std::int64_t n_tokens) const;

  SchedulerOptions options_;
  std::int64_t capacity_tokens_;  // of one request
  KvPlan kv_;
  std::map<RequestId, Request> requests_;
  std::vector<RequestId> running_;  // both by rank
  std::deque<RequestId> waiting_;
  StepPlan plan_;
  bool planned_ = false;  // a plan waits for its commit
  std::int64_t step_ = 0;
  std::int64_t next_arrival_ = 1;
  std::int64_t n_passes_ = 0;  // since the last turn that was given
  std::int64_t n_preemptions_ = 0;
  std::int64_t n_cached_tokens_ = 0;
  std::int64_t n_pins_ = 0;
  std::int64_t last_prompt_step_ = 0;  // the last step that read a prompt
};

}  // namespace glint
