#pragma once
// KvDisk: the second tier of the prefix cache, a directory of kv_file blocks that survives the process. Two threads of
// its own read and write; nobody waits for them. Whatever is wrong with the directory or a file in it costs hits and
// one notice, never a failure.
//
// A block is up to kBlockPages pages that begin at a multiple of it; the last block of a sequence is shorter and gives
// way to a longer one with the same beginning. So a prompt of 20,000 tokens is 20 files (of 52 MB each with the real
// model). The directory belongs to one process at a time (a lock file); a second one goes without it. Files of other
// models in it are left alone, and count: the one that was not used for the longest time goes first when max_bytes are
// reached.

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "cache/kv_file.hpp"

namespace glint {

struct KvDiskOptions {
  std::string dir;
  std::int64_t max_bytes = 0;
  KvFileShape shape;
  std::function<void(const std::string&)> notice;  // something is wrong; from any thread; may be empty
};

class KvDisk {
 public:
  static constexpr std::uint32_t kBlockPages = 16;
  static constexpr std::uint32_t kLeastPages = 2;  // shorter blocks are not worth a file

  // Makes the directory if need be and reads the headers in it.
  explicit KvDisk(KvDiskOptions options);
  // Writes what is queued, for kDrainSeconds at most.
  ~KvDisk();
  KvDisk(const KvDisk&) = delete;
  KvDisk& operator=(const KvDisk&) = delete;

  struct Block {
    std::uint32_t first_page = 0;
    std::uint32_t n_pages = 0;
    std::uint64_t key = 0;
  };
  // The blocks that the tokens' first n_pages pages divide into.
  std::vector<Block> blocks(std::span<const std::int32_t> tokens, std::uint32_t n_pages) const;
  // Blocks on disk that hold the tokens' pages from from_page on, without a gap; the first may begin before it.
  std::vector<Block> find(std::span<const std::int32_t> tokens, std::uint32_t from_page) const;

  // A block to read into, or to write from, memory that stays as it is until the job comes back. pages[p]: the bytes of
  // the first layer, nullptr: not wanted; layer_stride bytes further those of the next.
  struct Job {
    std::uint64_t id = 0;
    Block block;
    std::vector<std::int32_t> tokens;  // from the sequence's first to the block's last
    std::vector<std::byte*> pages;
    std::int64_t layer_stride = 0;
    bool ok = false;  // set when it comes back
  };
  void read(Job job);
  // Whether the block is there or on its way, or cannot be written now; one that is there counts as used.
  bool needs_no_write(const Block& block);
  // False: not taken, since needs_no_write().
  bool write(Job job);

  // Jobs that came back, in any order.
  std::vector<Job> take_done();
  // Waits until a job has come back, at most so long.
  void wait(std::chrono::milliseconds timeout);

  std::int64_t bytes() const;
  std::int64_t n_files() const;

 private:
  static constexpr int kDrainSeconds = 10;
  struct Entry {
    std::string path;
    std::uint64_t bytes = 0;
    std::int64_t last_use = 0;
    std::vector<std::uint64_t> beginnings;  // its keys in files_
  };

  std::uint64_t block_key(std::uint64_t before, std::span<const std::int32_t> tokens) const;
  void open_dir();
  void scan();
  bool lock_dir();
  // A thread and the jobs that wait for it.
  struct Lane {
    std::deque<Job> jobs;
    std::condition_variable ready;
    std::thread thread;
  };
  void start(Lane& lane, bool (KvDisk::*work)(const Job&));
  bool do_read(const Job& job);
  bool do_write(const Job& job);
  bool make_room(std::uint64_t bytes);  // mutex held
  std::uint64_t key_before(std::span<const std::int32_t> tokens, std::uint32_t first_page) const;
  void add(const KvFileInfo& info, std::string path, std::uint64_t key);  // mutex held
  void remove(std::uint64_t key);  // mutex held; the file goes with unlink_doomed()
  void unlink_doomed();            // mutex not held: it may take a while
  void touch(std::uint64_t key);   // mutex held
  void come_back(Job job, bool ok);
  void say(const std::string& what) const;

  const KvDiskOptions options_;
  bool readable_ = false;
  bool writable_ = false;
  int lock_fd_ = -1;

  mutable std::mutex mutex_;
  std::condition_variable done_ready_;
  std::unordered_map<std::uint64_t, Entry> entries_;
  // Key of the first n pages of a block, for every n → the entry that holds them: a prompt may end or go on differently
  // in the middle of a block. Of several that share a beginning it is the last one.
  std::unordered_map<std::uint64_t, std::uint64_t> files_;
  std::vector<std::string> doomed_;  // files to delete
  std::uint64_t total_bytes_ = 0;
  std::int64_t now_ = 0;
  Lane reads_, writes_;
  std::vector<std::uint64_t> writing_;  // keys of the blocks that wait to be written and of the one under way
  std::vector<Job> done_;
  double write_again_s_ = 0;  // after a failure: not before
  bool write_failure_said_ = false;
  bool stopping_ = false;
};

}  // namespace glint
