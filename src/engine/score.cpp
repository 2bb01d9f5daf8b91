// Engine::score: windows of given tokens as requests that sample nothing. The scheduler batches them with all else.

#include <algorithm>
#include <utility>

#include "base/clock.hpp"
#include "base/error.hpp"
#include "engine/engine_impl.hpp"

namespace glint {

std::vector<float> EngineImpl::score(std::span<const std::int32_t> ids, std::int64_t window,
                                     const std::function<void(std::int64_t, std::int64_t)>& on_progress) {
  check_ids(ids, "ids");
  if (window < 0) throw Error({.what = "window", .found = std::to_string(window), .expected = "0 or more"});
  if (ids.size() < 2) return {};
  const auto n_ids = static_cast<std::int64_t>(ids.size());
  if (window == 0 || window >= n_ids) window = n_ids - 1;
  admissible_tokens(window, 1);

  // Every window has one token, its first, that is not predicted.
  const std::int64_t n = n_ids - (n_ids + window) / (window + 1);
  std::vector<float> scores(static_cast<std::size_t>(n));
  ScoreJob job;
  enqueue_windows(ids, window, scores, job);
  try {
    await_windows(job, [&](std::int64_t done) {
      if (on_progress) on_progress(done, n);
    });
  } catch (...) {
    abandon_windows(job);  // the job and the scores are about to go
    throw;
  }
  if (!job.error.empty()) throw Error({.what = "scoring", .found = job.error});
  return scores;
}

void EngineImpl::enqueue_windows(std::span<const std::int32_t> ids, std::int64_t window, std::span<float> out,
                                 ScoreJob& job) {
  std::vector<std::unique_ptr<RequestState>> requests;
  const auto n_ids = static_cast<std::int64_t>(ids.size());
  float* scores = out.data();
  for (std::int64_t begin = 0; begin < n_ids - 1; begin += window + 1) {
    const std::int64_t rows = std::min(window, n_ids - 1 - begin);
    auto request = std::make_unique<RequestState>();
    request->id = next_id_.fetch_add(1);
    const auto first = ids.begin() + begin;
    request->tokens.assign(first, first + rows + 1);
    request->prompt_tokens = rows;
    request->max_tokens = 1;  // the last target: never in the cache, but it ends the request
    request->scores = scores;
    scores += rows;
    request->submitted_s = now_s();
    requests.push_back(std::move(request));
  }
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) throw Error("the engine is closing");
    job.windows_left = static_cast<std::int64_t>(requests.size());
    for (auto& request : requests) {
      score_jobs_.emplace(request->id, &job);
      inbox_.push_back(std::move(request));
    }
  }
  wake_.notify_all();
}

void EngineImpl::await_windows(ScoreJob& job, const std::function<void(std::int64_t)>& on_rows) {
  std::unique_lock lock(mutex_);
  std::int64_t reported = 0;
  while (job.windows_left > 0) {
    if (options_.use_thread) {
      ++waiters_;
      job.changed.wait(lock, [&] { return job.windows_left == 0 || job.rows_done != reported; });
      leave_wait();
    } else {
      lock.unlock();
      drive();
      lock.lock();
    }
    if (job.rows_done == reported) continue;
    reported = job.rows_done;
    lock.unlock();
    on_rows(reported);
    lock.lock();
  }
}

void EngineImpl::abandon_windows(ScoreJob& job) {
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, owner] : score_jobs_) {
      if (owner == &job) cancels_.push_back(id);
    }
  }
  wake_.notify_all();
  await_windows(job, [](std::int64_t) {});
}

}  // namespace glint
