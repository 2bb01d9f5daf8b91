#pragma once
// The prefix cache's second tier in the engine: what a request's prompt has on disk is read into pages before the
// scheduler sees the request, and what a request leaves behind is written. Both go on beside the steps; the pages are
// pinned meanwhile. Engine thread only.

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "cache/kv_disk.hpp"
#include "cache/store.hpp"
#include "scheduler/scheduler.hpp"

namespace glint {

class DiskTier {
 public:
  // The store's memory must be the host's, and outlive it.
  DiskTier(Scheduler& scheduler, KvStore& store, KvDiskOptions options);
  // Writes what save() was given, for a few seconds at most.
  ~DiskTier();
  DiskTier(const DiskTier&) = delete;
  DiskTier& operator=(const DiskTier&) = delete;

  // True: pages of the prompt are being read, and the request has to wait for collect() to name it.
  bool load(RequestId request, std::span<const std::int32_t> prompt);
  // Writes what the tree holds of the tokens and the disk does not.
  void save(std::span<const std::int32_t> tokens);
  // Takes over what came back; the requests that need not wait any more.
  std::vector<RequestId> collect();
  void wait(std::chrono::milliseconds timeout) { disk_.wait(timeout); }

  bool busy() const { return !loads_.empty() || !saves_.empty(); }
  std::int64_t n_loading() const;
  std::int64_t loaded_tokens() const { return loaded_tokens_; }
  const KvDisk& disk() const { return disk_; }

 private:
  struct Load {
    std::vector<RequestId> requests;  // who waits for it
    SequenceId pin = 0;
    std::vector<std::int32_t> tokens;
    std::int64_t good_tokens = 0;  // in the cache from the first token on
    std::size_t left = 0;          // jobs
    bool failed = false;
  };
  struct Save {
    SequenceId pin = 0;
    std::int64_t n_pages = 0;
  };

  std::vector<std::byte*> page_bytes(SequenceId pin, const KvDisk::Block& block, std::int64_t from_page) const;
  std::int64_t most_saving_pages() const;
  void take_loaded(const KvDisk::Job& job, std::vector<RequestId>* ready);

  Scheduler& scheduler_;
  KvStore& store_;
  const std::int64_t page_tokens_;
  std::unordered_map<std::uint64_t, std::unique_ptr<Load>> loads_;
  std::unordered_map<std::uint64_t, std::uint64_t> load_of_job_;
  std::unordered_map<std::uint64_t, std::uint64_t> loading_;  // key of a block → its load
  std::unordered_map<std::uint64_t, Save> saves_;             // by job
  std::deque<std::vector<std::int32_t>> backlog_;             // to save() when fewer pages are pinned
  std::uint64_t next_id_ = 1;
  std::int64_t saving_pages_ = 0;
  std::int64_t loaded_tokens_ = 0;
  KvDisk disk_;  // last: its threads use the pages
};

}  // namespace glint
