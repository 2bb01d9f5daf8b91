#include "base/thread_pool.hpp"

#include <sched.h>

#include <algorithm>

#include "base/check.hpp"

namespace glint {
namespace {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// A pause takes 10 to 40 ns: about 20 to 40 µs of polling, a few times what a sleep and a wake-up cost. Loops of one
// layer follow each other within that; between steps the workers sleep.
constexpr int kSpins = 1000;

constexpr std::uint64_t kLowHalf = 0xffffffffU;

}  // namespace

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

ThreadPool::ThreadPool(int threads) {
  const int cores = available_cores();
  size_ = threads > 0 ? threads : cores;
  spins_ = size_ <= cores ? kSpins : 0;
  workers_.reserve(static_cast<std::size_t>(size_ - 1));
  for (int i = 1; i < size_; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& t : workers_) t.join();
}

// Claims one item and runs it; false when none is left.
bool ThreadPool::run_one(int thread) {
  std::uint64_t job = job_.load(std::memory_order_acquire);
  do {
    if ((job & kLowHalf) >= job >> 32) return false;
  } while (!job_.compare_exchange_weak(job, job + 1, std::memory_order_acq_rel, std::memory_order_acquire));
  // The claim keeps the job open, so its fields are those of this job, even if this thread slept through others.
  call_(context_, static_cast<std::int64_t>(job & kLowHalf), thread);
  const std::uint32_t finished = done_.fetch_add(1) + 1;
  if (thread != 0 && finished == job >> 32 && caller_asleep_.load()) done_.notify_one();
  return true;
}

void ThreadPool::run(std::int64_t count, Call call, const void* context) {
  CHECK(count >= 0 && count < 0x7fffffff);
  if (size_ == 1 || count <= 1) {
    for (std::int64_t i = 0; i < count; ++i) call(context, i, 0);
    return;
  }
  call_ = call;
  context_ = context;
  done_.store(0, std::memory_order_relaxed);
  job_.store(static_cast<std::uint64_t>(count) << 32, std::memory_order_release);
  epoch_.fetch_add(1);
  if (asleep_.load() > 0) epoch_.notify_all();

  while (run_one(0)) {}
  const auto all = static_cast<std::uint32_t>(count);
  for (int i = 0; i < spins_; ++i) {
    if (done_.load(std::memory_order_acquire) == all) return;
    relax();
  }
  caller_asleep_.store(true);
  for (std::uint32_t now = done_.load(); now != all; now = done_.load()) done_.wait(now);
  caller_asleep_.store(false);
}

void ThreadPool::work(int thread) {
  std::uint32_t seen = 0;
  while (true) {
    std::uint32_t now = epoch_.load(std::memory_order_acquire);
    for (int i = 0; now == seen && i < spins_; ++i) {
      relax();
      now = epoch_.load(std::memory_order_acquire);
    }
    if (now == seen) {
      asleep_.fetch_add(1);
      epoch_.wait(seen);  // looks again before it sleeps: a job announced meanwhile is not missed
      asleep_.fetch_sub(1);
      now = epoch_.load(std::memory_order_acquire);
    }
    seen = now;
    if (stop_.load()) return;
    while (run_one(thread)) {}
  }
}

}  // namespace glint
