#pragma once
// The body of the public Engine: who may touch what.
//   Engine thread (or, without one, whoever holds step_mutex_): loop_, runtime_.
//   mutex_: inbox_, cancels_, channels_, score_jobs_, stats_, stopping_, waiters_. Held for moves of pointers and
//   events only, never during a step.

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "engine/constraints.hpp"
#include "engine/loaded_model.hpp"
#include "engine/memory.hpp"
#include "engine/runtime.hpp"
#include "engine/step.hpp"
#include "glint/engine.hpp"

namespace glint {

class EngineImpl final : public Engine {
 public:
  explicit EngineImpl(const EngineOptions& options);
  ~EngineImpl() override;

  RequestId submit(Request request) override;
  std::optional<Event> next(RequestId id, std::optional<std::chrono::milliseconds> timeout) override;
  void cancel(RequestId id) override;
  void abandon(RequestId id) override;
  bool step() override;
  using Engine::score;
  std::vector<float> score(std::span<const std::int32_t> ids, std::int64_t window,
                           const std::function<void(std::int64_t, std::int64_t)>& on_progress) override;
  EngineStats stats() const override;
  const ModelInfo& info() const override { return info_; }
  std::vector<std::int32_t> encode(std::string_view text, bool literal) const override;
  std::string decode(std::span<const std::int32_t> ids, bool skip_special) const override;
  std::string render_chat(std::string_view request_json) const override;
  std::string parse_output(std::string_view text, std::string_view options_json) const override;

 private:
  // A request's events on their way to next(). Guarded by mutex_.
  struct Channel {
    std::vector<Event> events;
    std::size_t head = 0;  // events before it are taken
    bool closed = false;   // the last event is taken, or nobody will take it
    std::condition_variable ready;
    std::function<void()> on_ready;  // set once, before the channel is shared
    bool empty() const { return head == events.size(); }
  };
  // One call of score(). Guarded by mutex_.
  struct ScoreJob {
    std::int64_t rows_done = 0;
    std::int64_t windows_left = 0;
    std::string error;
    std::condition_variable changed;
  };

  std::unique_ptr<RequestState> make_request(Request request) const;
  void check_ids(std::span<const std::int32_t> ids, const char* what) const;
  std::int64_t admissible_tokens(std::int64_t prompt_tokens, std::int64_t max_tokens) const;
  const Tokenizer& tokenizer() const;

  void enqueue_windows(std::span<const std::int32_t> ids, std::int64_t window, std::span<float> out, ScoreJob& job);
  void await_windows(ScoreJob& job, const std::function<void(std::int64_t)>& on_rows);
  void abandon_windows(ScoreJob& job);

  // Engine thread, or step_mutex_ held.
  void serve();
  bool turn();
  bool accept();
  void deliver();
  // turn() by a caller's thread.
  bool drive();
  void leave_wait();

  const EngineOptions options_;
  LoadedModel loaded_;
  ModelInfo info_;
  std::unique_ptr<Constraints> constraints_;  // none: no tokenizer
  std::unique_ptr<Runtime> runtime_;
  std::unique_ptr<StepLoop> loop_;
  std::vector<std::unique_ptr<RequestState>> accepted_;  // scratch of accept()
  std::vector<RequestId> cancelled_;                     // scratch of accept()
  std::vector<std::shared_ptr<Channel>> arrived_;        // scratch of deliver()

  mutable std::mutex mutex_;
  std::condition_variable wake_;    // the engine thread: there is something in the inbox
  std::condition_variable vacant_;  // the destructor: nobody waits any more
  std::vector<std::unique_ptr<RequestState>> inbox_;
  std::vector<RequestId> cancels_;
  std::unordered_map<RequestId, std::shared_ptr<Channel>> channels_;
  std::unordered_map<RequestId, ScoreJob*> score_jobs_;  // by window
  EngineStats stats_;
  bool stopping_ = false;
  int waiters_ = 0;

  std::mutex step_mutex_;  // only without an engine thread
  std::atomic<RequestId> next_id_{1};
  std::thread thread_;  // last: runs while everything above exists
};

}  // namespace glint
