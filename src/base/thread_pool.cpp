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

constexpr std::uint64_t pack(std::int64_t next, std::int64_t end) {
  return static_cast<std::uint64_t>(end) << 32 | static_cast<std::uint64_t>(next);
}

// Claims the first of `items` or, for another thread's, the last; -1: none is left.
std::int64_t claim(std::atomic<std::uint64_t>& items, bool own) {
  std::uint64_t now = items.load(std::memory_order_acquire);
  while (true) {
    const std::uint64_t next = now & kLowHalf, end = now >> 32;
    if (next >= end) return -1;
    const std::uint64_t then = own ? now + 1 : now - (kLowHalf + 1);
    if (items.compare_exchange_weak(now, then, std::memory_order_acq_rel, std::memory_order_acquire)) {
      return static_cast<std::int64_t>(own ? next : end - 1);
    }
  }
}

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
  shares_ = std::make_unique<Share[]>(static_cast<std::size_t>(size_));
  workers_.reserve(static_cast<std::size_t>(size_ - 1));
  for (int i = 1; i < size_; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& t : workers_) t.join();
}

// Runs one item; false when none is left.
bool ThreadPool::take(int thread) {
  std::int64_t item = claim(shares_[static_cast<std::size_t>(thread)].items, true);
  for (int i = 1; item < 0 && i < size_; ++i)
    item = claim(shares_[static_cast<std::size_t>((thread + i) % size_)].items, false);
  if (item < 0) return false;
  // The claim keeps the job open, so its fields are those of this job, even if this thread slept through others.
  call_(context_, item, thread);
  std::atomic<std::uint32_t>& done = shares_[static_cast<std::size_t>(thread)].done;
  done.store(done.load(std::memory_order_relaxed) + 1);
  if (thread != 0 && caller_asleep_.load()) {
    finished_.fetch_add(1);
    finished_.notify_one();
  }
  return true;
}

bool ThreadPool::all_done(std::uint32_t count) const {
  std::uint32_t done = 0;
  for (int t = 0; t < size_; ++t) done += shares_[static_cast<std::size_t>(t)].done.load();
  return done == count;
}

void ThreadPool::run(std::int64_t count, Call call, const void* context) {
  CHECK(count >= 0 && count < 0x7fffffff);
  if (size_ == 1 || count <= 1) {
    for (std::int64_t i = 0; i < count; ++i) call(context, i, 0);
    return;
  }
  call_ = call;
  context_ = context;
  for (int t = 0; t < size_; ++t) shares_[static_cast<std::size_t>(t)].done.store(0, std::memory_order_relaxed);
  // Rounded up: the caller's share has an item if there is one.
  const auto begin = [&](std::int64_t t) { return (count * t + size_ - 1) / size_; };
  for (int t = 0; t < size_; ++t) {
    shares_[static_cast<std::size_t>(t)].items.store(pack(begin(t), begin(t + 1)), std::memory_order_release);
  }
  epoch_.fetch_add(1);
  if (asleep_.load() > 0) epoch_.notify_all();

  while (take(0)) {}
  const auto all = static_cast<std::uint32_t>(count);
  for (int i = 0; i < spins_; ++i) {
    if (all_done(all)) return;
    relax();
  }
  caller_asleep_.store(true);
  for (std::uint32_t now = finished_.load(); !all_done(all); now = finished_.load()) finished_.wait(now);
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
    while (take(thread)) {}
  }
}

}  // namespace glint
