#include "cache/kv_disk.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/clock.hpp"
#include "base/hash.hpp"

namespace glint {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kSuffix = ".kv";
constexpr std::string_view kTemporary = ".kv-tmp";
constexpr double kRetrySeconds = 60;
constexpr std::int64_t kNsInASecond = 1'000'000'000;

std::string hex(std::uint64_t v) {
  std::string out(16, '0');
  for (std::size_t i = 16; i-- > 0; v >>= 4) out[i] = "0123456789abcdef"[v & 15];
  return out;
}

std::uint64_t combine(std::uint64_t a, std::uint64_t b) {
  const std::uint64_t both[] = {a, b};
  return hash64(both, sizeof both);
}

std::uint64_t shape_hash(const KvFileShape& s) {
  const std::uint64_t all[] = {s.fingerprint, s.codec, s.page_tokens, s.n_layers, s.page_bytes};
  return hash64(all, sizeof all);
}

std::int64_t modified_ns(const std::string& path) {
  struct stat s {};
  if (::stat(path.c_str(), &s) != 0) return 0;
  return std::int64_t{s.st_mtim.tv_sec} * kNsInASecond + s.st_mtim.tv_nsec;
}

std::int64_t real_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace

KvDisk::KvDisk(KvDiskOptions options) : options_(std::move(options)) {
  open_dir();
  if (!readable_) return;
  scan();
  start(reads_, &KvDisk::do_read);
  if (writable_) start(writes_, &KvDisk::do_write);
}

KvDisk::~KvDisk() {
  {
    std::unique_lock lock(mutex_);
    done_ready_.wait_for(lock, std::chrono::seconds(kDrainSeconds), [this] { return writing_.empty() || !writable_; });
    stopping_ = true;
  }
  for (Lane* lane : {&reads_, &writes_}) {
    lane->ready.notify_all();
    if (lane->thread.joinable()) lane->thread.join();
  }
  if (lock_fd_ >= 0) ::close(lock_fd_);
}

void KvDisk::say(const std::string& what) const {
  if (options_.notice) options_.notice("cache directory " + options_.dir + ": " + what);
}

// ---- the directory ---------------------------------------------------------------------------------------------

void KvDisk::open_dir() {
  std::error_code ec;
  fs::create_directories(options_.dir, ec);
  if (!fs::is_directory(options_.dir, ec)) return say("no directory and none can be made; going without it");
  if (::access(options_.dir.c_str(), R_OK | X_OK) != 0) return say("cannot be read; going without it");
  readable_ = true;
  if (::access(options_.dir.c_str(), W_OK) != 0) return say("cannot be written; only what is there will be used");
  writable_ = lock_dir();
  readable_ = writable_;  // another process may delete what this one reads, which is harmless, but so is going without
  if (!writable_) say("in use by another process; going without it");
}

// The lock goes with the process, however it ends.
bool KvDisk::lock_dir() {
  lock_fd_ = ::open((options_.dir + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  return lock_fd_ >= 0 && ::flock(lock_fd_, LOCK_EX | LOCK_NB) == 0;
}

void KvDisk::scan() {
  std::error_code ec;
  int n_bad = 0;
  std::string first_bad;
  for (const fs::directory_entry& file : fs::directory_iterator(options_.dir, ec)) {
    const std::string path = file.path().string();
    if (path.ends_with(kTemporary)) {  // of a process that was killed
      if (writable_) fs::remove(path, ec);
      continue;
    }
    if (!path.ends_with(kSuffix)) continue;
    KvFileInfo info;
    std::string wrong = read_kv_file_info(path, &info);
    if (wrong.empty() && info.shape.page_tokens == 0) wrong = "a header that contradicts itself";
    if (!wrong.empty()) {
      if (n_bad++ == 0) first_bad = file.path().filename().string() + ": " + wrong;
      if (writable_) fs::remove(path, ec);
      continue;
    }
    std::uint64_t key = combine(shape_hash(info.shape), hash64(info.tokens.data(), info.tokens.size() * sizeof(int)));
    if (info.shape == options_.shape) {
      const std::vector<Block> parts = blocks(info.tokens, info.first_page + info.n_pages);
      if (parts.empty() || parts.back().first_page != info.first_page) continue;
      key = parts.back().key;
    }
    add(info, path, key);
    entries_[key].last_use = modified_ns(path);
    now_ = std::max(now_, entries_[key].last_use);
  }
  if (n_bad > 0) {
    say(std::to_string(n_bad) + (n_bad == 1 ? " file" : " files") + " damaged or foreign" +
        (writable_ ? " and deleted" : "") + " (" + first_bad + ")");
  }
  if (writable_) make_room(0);
  unlink_doomed();
}

std::uint64_t KvDisk::block_key(std::uint64_t before, std::span<const std::int32_t> tokens) const {
  return combine(before, hash64(tokens.data(), tokens.size_bytes()));
}

std::vector<KvDisk::Block> KvDisk::blocks(std::span<const std::int32_t> tokens, std::uint32_t n_pages) const {
  std::vector<Block> out;
  std::uint64_t key = shape_hash(options_.shape);
  const std::size_t page = options_.shape.page_tokens;
  for (std::uint32_t at = 0; at < n_pages; at += kBlockPages) {
    const std::uint32_t n = std::min(kBlockPages, n_pages - at);
    key = block_key(key, tokens.subspan(at * page, n * page));
    out.push_back({.first_page = at, .n_pages = n, .key = key});
  }
  return out;
}

std::vector<KvDisk::Block> KvDisk::find(std::span<const std::int32_t> tokens, std::uint32_t from_page) const {
  std::vector<Block> out;
  const std::size_t page = options_.shape.page_tokens;
  const auto n_pages = static_cast<std::uint32_t>(tokens.size() / page);
  std::uint64_t before = shape_hash(options_.shape);
  const std::lock_guard lock(mutex_);
  for (std::uint32_t at = 0; at < n_pages; at += kBlockPages) {
    std::uint32_t n = std::min(kBlockPages, n_pages - at);
    std::uint64_t key = 0;
    for (; n > 0; --n) {
      key = block_key(before, tokens.subspan(at * page, n * page));
      if (at + kBlockPages <= from_page || files_.contains(key)) break;
    }
    if (n == 0 || (at + kBlockPages > from_page && at + n <= from_page)) break;
    if (at + n > from_page) out.push_back({.first_page = at, .n_pages = n, .key = key});
    if (n < kBlockPages) break;
    before = key;
  }
  return out;
}

std::uint64_t KvDisk::key_before(std::span<const std::int32_t> tokens, std::uint32_t first_page) const {
  return first_page == 0 ? shape_hash(options_.shape) : blocks(tokens, first_page).back().key;
}

void KvDisk::add(const KvFileInfo& info, std::string path, std::uint64_t key) {
  Entry& e = entries_[key];
  e.path = std::move(path);
  e.bytes = info.file_bytes();
  total_bytes_ += e.bytes;
  if (info.shape != options_.shape) return;
  const std::uint64_t before = key_before(info.tokens, info.first_page);
  const std::size_t page = info.shape.page_tokens;
  for (std::uint32_t n = 1; n <= info.n_pages; ++n) {
    e.beginnings.push_back(block_key(before, std::span(info.tokens).subspan(info.first_page * page, n * page)));
    files_[e.beginnings.back()] = key;
  }
}

void KvDisk::remove(std::uint64_t key) {
  const auto it = entries_.find(key);
  if (it == entries_.end()) return;
  if (writable_) doomed_.push_back(it->second.path);
  total_bytes_ -= it->second.bytes;
  for (const std::uint64_t beginning : it->second.beginnings) {
    const auto file = files_.find(beginning);
    if (file != files_.end() && file->second == key) files_.erase(file);
  }
  entries_.erase(it);
}

void KvDisk::unlink_doomed() {
  std::vector<std::string> doomed;
  {
    const std::lock_guard lock(mutex_);
    doomed.swap(doomed_);
  }
  std::error_code ec;
  for (const std::string& path : doomed) fs::remove(path, ec);
}

bool KvDisk::make_room(std::uint64_t bytes) {
  const auto most = static_cast<std::uint64_t>(options_.max_bytes);
  if (bytes > most) return false;
  while (total_bytes_ + bytes > most) {
    const auto oldest = std::min_element(entries_.begin(), entries_.end(), [](const auto& a, const auto& b) {
      return a.second.last_use < b.second.last_use;
    });
    remove(oldest->first);
  }
  return true;
}

// The file's time remembers it beyond the process.
void KvDisk::touch(std::uint64_t key) {
  const auto it = entries_.find(key);
  if (it == entries_.end()) return;
  now_ = std::max(now_ + 1, real_ns());
  it->second.last_use = now_;
  const timespec times[] = {{.tv_sec = 0, .tv_nsec = UTIME_OMIT},
                            {.tv_sec = now_ / kNsInASecond, .tv_nsec = now_ % kNsInASecond}};
  if (writable_) ::utimensat(AT_FDCWD, it->second.path.c_str(), times, 0);
}

std::int64_t KvDisk::bytes() const {
  const std::lock_guard lock(mutex_);
  return static_cast<std::int64_t>(total_bytes_);
}

std::int64_t KvDisk::n_files() const {
  const std::lock_guard lock(mutex_);
  return static_cast<std::int64_t>(entries_.size());
}

// ---- jobs ------------------------------------------------------------------------------------------------------

void KvDisk::read(Job job) {
  {
    const std::lock_guard lock(mutex_);
    if (readable_) {
      reads_.jobs.push_back(std::move(job));
    } else {
      done_.push_back(std::move(job));
    }
  }
  reads_.ready.notify_one();
}

bool KvDisk::needs_no_write(const Block& block) {
  const std::lock_guard lock(mutex_);
  if (!writable_ || now_s() < write_again_s_) return true;
  if (const auto file = files_.find(block.key); file != files_.end()) {
    touch(file->second);
    return true;
  }
  return std::find(writing_.begin(), writing_.end(), block.key) != writing_.end();
}

bool KvDisk::write(Job job) {
  if (needs_no_write(job.block)) return false;
  {
    const std::lock_guard lock(mutex_);
    writing_.push_back(job.block.key);
    writes_.jobs.push_back(std::move(job));
  }
  writes_.ready.notify_one();
  return true;
}

std::vector<KvDisk::Job> KvDisk::take_done() {
  const std::lock_guard lock(mutex_);
  return std::exchange(done_, {});
}

void KvDisk::wait(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  done_ready_.wait_for(lock, timeout, [this] { return !done_.empty(); });
}

void KvDisk::come_back(Job job, bool ok) {
  job.ok = ok;
  {
    const std::lock_guard lock(mutex_);
    std::erase(writing_, job.block.key);
    done_.push_back(std::move(job));
  }
  done_ready_.notify_all();
}

void KvDisk::start(Lane& lane, bool (KvDisk::*work)(const Job&)) {
  lane.thread = std::thread([this, &lane, work] {
    for (;;) {
      std::unique_lock lock(mutex_);
      lane.ready.wait(lock, [&] { return stopping_ || !lane.jobs.empty(); });
      if (stopping_) return;
      Job job = std::move(lane.jobs.front());
      lane.jobs.pop_front();
      lock.unlock();
      const bool ok = (this->*work)(job);
      unlink_doomed();
      come_back(std::move(job), ok);
    }
  });
}

bool KvDisk::do_read(const Job& job) {
  std::string path;
  std::uint64_t file = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto it = files_.find(job.block.key);
    if (it == files_.end()) return false;
    file = it->second;
    path = entries_.at(file).path;
  }
  bool gone = false;
  const std::string wrong = read_kv_file(
      path,
      {.shape = options_.shape, .tokens = job.tokens, .first_page = job.block.first_page, .n_pages = job.block.n_pages},
      [&](std::uint32_t p, std::uint32_t l) {
        return job.pages[p] == nullptr ? nullptr : job.pages[p] + std::int64_t{l} * job.layer_stride;
      },
      &gone);
  const std::lock_guard lock(mutex_);
  if (wrong.empty()) {
    touch(file);
    return true;
  }
  remove(file);
  if (!gone) say(fs::path(path).filename().string() + " deleted: " + wrong);
  return false;
}

bool KvDisk::do_write(const Job& job) {
  const KvFileInfo info{
      .shape = options_.shape, .tokens = job.tokens, .first_page = job.block.first_page, .n_pages = job.block.n_pages};
  {
    const std::lock_guard lock(mutex_);
    if (now_s() < write_again_s_ || !make_room(info.file_bytes())) return false;
  }
  unlink_doomed();
  const std::string path = options_.dir + '/' + hex(job.block.key) + std::string(kSuffix);
  const std::string temporary = options_.dir + '/' + hex(job.block.key) + std::string(kTemporary);
  std::string wrong = write_kv_file(temporary, info, [&](std::uint32_t p, std::uint32_t l) {
    return job.pages[p] + std::int64_t{l} * job.layer_stride;
  });
  if (wrong.empty() && ::rename(temporary.c_str(), path.c_str()) != 0) wrong = std::strerror(errno);
  std::error_code ec;
  const std::lock_guard lock(mutex_);
  if (!wrong.empty()) {
    fs::remove(temporary, ec);
    write_again_s_ = now_s() + kRetrySeconds;
    if (!std::exchange(write_failure_said_, true))
      say("cannot write (" + wrong + "); going on without what is not there");
    return false;
  }
  // Shorter blocks with the same beginning have had their day.
  const std::uint32_t first = job.block.first_page;
  const std::uint64_t before = key_before(job.tokens, first);
  const std::size_t page = options_.shape.page_tokens;
  for (std::uint32_t n = 1; n < job.block.n_pages; ++n) {
    remove(block_key(before, std::span(job.tokens).subspan(first * page, n * page)));
  }
  add(info, path, job.block.key);
  touch(job.block.key);
  return true;
}

}  // namespace glint
