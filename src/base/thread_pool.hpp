#pragma once
// Persistent workers for loops of independent items. Built for the step of a model: a few hundred loops of some tens
// of microseconds to milliseconds, on machines whose cores other processes may use too.
//
// Each thread has a share of the items, neighbours in ascending order, and takes from the end of another's when its own
// is done. An item is claimed before it runs, one at a time; in its own share on a line that no other thread has
// touched, where one word for all would go to and fro between cores with each item. The caller works too, and waits
// only for items that a worker has claimed: a worker that the kernel has not woken yet delays nobody. Waiting spins for
// a bounded time, then sleeps.

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace glint {

class ThreadPool {
 public:
  // `threads` counts the caller: 1 makes no worker. 0: one a core that this process may use.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // Runs fn(item, thread) for every item in [0, count), thread in [0, size()) with 0 the caller, and returns when all
  // are done. Two calls with the same `thread` never overlap. fn must not throw and must not call parallel_for of this
  // pool; one caller at a time.
  template <typename Fn>
  void parallel_for(std::int64_t count, const Fn& fn) {
    run(
        count,
        [](const void* context, std::int64_t item, int thread) { (*static_cast<const Fn*>(context))(item, thread); },
        &fn);
  }

 private:
  using Call = void (*)(const void* context, std::int64_t item, int thread);
  void run(std::int64_t count, Call call, const void* context);
  void work(int thread);
  bool take(int thread);
  bool all_done(std::uint32_t count) const;

  int size_ = 1;
  int spins_ = 0;  // polls before a wait sleeps; 0 when there are more threads than cores

  // Of a job, a thread's share. items: low half the next one, high half the end. done: how many this thread has
  // finished, written by it alone while a job runs.
  struct alignas(128) Share {  // two lines: the hardware fetches them in pairs
    std::atomic<std::uint64_t> items{0};
    alignas(64) std::atomic<std::uint32_t> done{0};
  };

  // The job. call_ and context_ are written before shares announce its items, and read only by who has claimed one of
  // them; they change only when every item is done.
  Call call_ = nullptr;
  const void* context_ = nullptr;
  std::unique_ptr<Share[]> shares_;
  alignas(64) std::atomic<std::uint32_t> epoch_{0};  // rises with every job: what idle workers wait on
  std::atomic<std::int32_t> asleep_{0};
  alignas(64) std::atomic<std::uint32_t> finished_{0};  // rises with every item that ends while the caller sleeps
  std::atomic<bool> caller_asleep_{false};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

// Cores that this process may run on.
int available_cores();

}  // namespace glint
