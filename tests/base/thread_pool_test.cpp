#include "base/thread_pool.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace glint {
namespace {

TEST(ThreadPool, EveryItemRunsOnceWhateverTheCounts) {
  for (const int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (const std::int64_t count : {0, 1, 2, 5, 100, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(count));
      pool.parallel_for(count, [&](std::int64_t i, int) { runs[static_cast<std::size_t>(i)].fetch_add(1); });
      for (const auto& r : runs) ASSERT_EQ(r.load(), 1);
    }
  }
}

// What an item writes without any lock is visible to the caller, and no thread number is in use twice at once.
TEST(ThreadPool, ResultsAreVisibleAndThreadNumbersAreExclusive) {
  ThreadPool pool(4);
  std::vector<std::int64_t> sums(4);
  std::vector<std::atomic<int>> busy(4);
  std::vector<std::int64_t> values(64);
  for (int round = 0; round < 2000; ++round) {
    pool.parallel_for(64, [&](std::int64_t i, int thread) {
      const auto t = static_cast<std::size_t>(thread);
      ASSERT_EQ(busy[t].fetch_add(1), 0);
      sums[t] += i;
      values[static_cast<std::size_t>(i)] = i + round;
      busy[t].fetch_sub(1);
    });
    for (std::int64_t i = 0; i < 64; ++i) ASSERT_EQ(values[static_cast<std::size_t>(i)], i + round);
  }
  EXPECT_EQ(sums[0] + sums[1] + sums[2] + sums[3], 2000 * (63 * 64 / 2));
}

TEST(ThreadPool, WorkersThatSleepAreWoken) {
  ThreadPool pool(2);
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // longer than a worker polls
    // Each item waits for the other one: only two threads can finish this.
    std::atomic<int> arrived{0};
    pool.parallel_for(2, [&](std::int64_t, int) {
      arrived.fetch_add(1);
      while (arrived.load() < 2) std::this_thread::yield();
    });
  }
}

TEST(ThreadPool, PoolsLiveSideBySideAndDieIdle) {
  for (int round = 0; round < 50; ++round) {
    ThreadPool a(3);
    ThreadPool b(2);
    std::atomic<std::int64_t> n{0};
    std::thread other([&] { b.parallel_for(30, [&](std::int64_t, int) { n.fetch_add(1); }); });
    a.parallel_for(30, [&](std::int64_t, int) { n.fetch_add(1); });
    other.join();
    EXPECT_EQ(n.load(), 60);
  }
}

TEST(ThreadPool, ZeroMeansTheCoresOfThisProcess) {
  ThreadPool pool(0);
  EXPECT_EQ(pool.size(), available_cores());
  EXPECT_GE(available_cores(), 1);
}

}  // namespace
}  // namespace glint
