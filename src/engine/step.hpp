#pragma once
// The step loop's body: plan → batch → forward → sample → commit. Owned by one thread, the engine's.
//
// Where the backend draws the tokens, the host is a step behind: it plans and launches the next step before it knows
// what came out of the last one, whose tokens the next one takes from the backend's memory. What may end a request then
// comes a step late, and the row it had in that step is for nothing. So a device never waits for the host, nor for what
// lies between the two.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/disk_tier.hpp"
#include "engine/request_state.hpp"
#include "engine/runtime.hpp"
#include "sampling/sample_row.hpp"
#include "sampling/sampler.hpp"
#include "scheduler/scheduler.hpp"

namespace glint {

struct StepLoopOptions {
  SchedulerOptions scheduler;
  std::vector<std::int32_t> eos_ids;
  bool prefix_cache = true;
  std::optional<KvDiskOptions> disk;  // the prefix cache's second tier
};

// A step that was launched, and its tokens not yet taken.
struct StepFlight {
  struct Item {
    StepItem step;
    std::int64_t logits_row = 0;  // its first
    bool drawn = false;           // by the backend
  };
  std::vector<Item> items;
  std::int64_t first_logits = 0;
  bool sampled = false;    // the backend has tokens for it
  bool committed = false;  // as if every request went on; a step behind it is on its way
};

class StepLoop {
 public:
  StepLoop(Runtime& runtime, StepLoopOptions options);

  // Whether a request could ever run. Thread-safe.
  Admission check(const RequestDescriptor& request) const { return scheduler_.check(request); }

  void admit(std::unique_ptr<RequestState> request);
  // Ends the request with kCancelled; unknown ids are ignored.
  void cancel(RequestId id);
  void cancel_all();

  // One step; false when there was nothing to do. Never throws: what goes wrong ends the requests concerned.
  bool step() noexcept;
  bool idle() const { return scheduler_.idle() && !flight_ && !(disk_ && disk_->busy()); }

  // What happened since the last call: an event a token, prefill progress, ends. The caller takes and clears them.
  struct Outgoing {
    RequestId request = 0;
    bool scored = false;  // a scored window has ended; event.error says how
    std::int64_t scored_rows = 0;
    Event event;
  };
  std::vector<Outgoing>& outgoing() { return outgoing_; }

  // running, waiting, steps, tokens, time, cache use. Engine thread only.
  EngineStats stats() const;
  const Scheduler& scheduler() const { return scheduler_; }
  // Steps that were launched before what came out of the last one was known.
  std::int64_t steps_ahead() const { return steps_ahead_; }

 private:
  RequestState& at(RequestId id);
  RequestState* find(RequestId id);
  bool start_step(double begin);
  void launch(const StepPlan& plan, double begin, std::int64_t first_logits, const StepFlight* before);
  // The logits of two steps are there at a time.
  std::int64_t half_of_logits() const { return runtime_.logits().n_rows() / 2; }
  bool may_look_ahead(const StepFlight& flight);
  void look_ahead(double begin);
  void collect();
  void take_all(StepFlight& flight);
  void build(StepFlight& flight, const StepFlight* before);
  void sample_on_backend(StepFlight& flight);
  SampleInput sample_input(RequestState& request, const StepItem& item);
  Sample sample(RequestState& request, const StepItem& item, std::int64_t logits_row);
  void take(const StepItem& item, std::int64_t logits_row, const std::int32_t* token, double now);
  void score_item(const StepItem& item, std::int64_t first_row);
  void report_progress(const StepItem& item);
  void fail(const StepFlight& flight, const std::string& error);
  void commit();
  void finish(RequestId id, Event event);
  void expire(const StepPlan& plan);
  void enqueue(RequestState& request);
  bool collect_loaded();
  void save_ended();

  Runtime& runtime_;
  Scheduler scheduler_;
  Sampler sampler_;
  std::vector<std::int32_t> eos_ids_;
  bool prefix_cache_;
  std::unordered_map<RequestId, std::unique_ptr<RequestState>> requests_;
  std::vector<std::unique_ptr<RequestState>> ended_;  // in this step: the scheduler reads their tokens in its commit
  std::vector<StepOutcome> outcomes_;
  std::vector<std::uint64_t> allowed_;  // scratch: what a constraint allows
  SampleBatch sample_batch_;
  std::optional<StepFlight> flight_, next_;  // next_: behind flight_, only within step()
  std::int64_t steps_ahead_ = 0;
  std::vector<Outgoing> outgoing_;
  EngineStats stats_;
  std::unique_ptr<DiskTier> disk_;
};

}  // namespace glint
