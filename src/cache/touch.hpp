#pragma once
// PageToucher: asks the system for the memory of a host's cache pages before a step writes to them.
//
// The pool of a KvStore is address space; its memory comes with the first write to it, 2 MB at a time, cleared by the
// thread that writes while the others wait for it. On a virtual machine whose host gives memory on demand a piece took
// 4 ms, a tenth of all time while 64 clients filled a cache (docs/experiments/2026-11-30-cpu-streams.md). This does
// it on a thread of its own, ahead of the pages in use.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include "cache/store.hpp"

namespace glint {

class PageToucher {
 public:
  // The store must outlive it, and its memory be the host's. Begins with the first `ahead_bytes` of pages.
  PageToucher(const KvStore& store, std::int64_t ahead_bytes);
  ~PageToucher();
  PageToucher(const PageToucher&) = delete;
  PageToucher& operator=(const PageToucher&) = delete;

  // Pages below `end` are in use. Once a quarter of ahead_bytes is left behind them, so many bytes are touched again.
  // From one thread; cheap.
  void used(PageId end);
  // Pages below it have been asked for. From any thread.
  PageId touched() const { return touched_.load(std::memory_order_acquire); }

 private:
  void run();
  bool touch(PageId begin, PageId end);

  const KvStore& store_;
  const std::int32_t ahead_;  // pages
  std::atomic<PageId> touched_{0};
  PageId next_;  // used() asks for more from here on; of the caller's thread
  std::mutex mutex_;
  std::condition_variable changed_;
  PageId wanted_;          // guarded by mutex_
  bool stopping_ = false;  // guarded by mutex_
  std::thread thread_;
};

}  // namespace glint
