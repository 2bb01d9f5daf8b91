#include "cache/touch.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "base/check.hpp"
#include "base/clock.hpp"

namespace glint {
namespace {

#if defined(__linux__) && !defined(MADV_POPULATE_WRITE)
#define MADV_POPULATE_WRITE 23  // Linux 5.14; headers of the C library may be older than the system
#endif

constexpr std::int64_t kPieceBytes = 2 << 20;  // of a layer: a huge page
// A piece is followed by a rest of so many times as long, so that steps keep most of a core.
constexpr double kRest = 4;

// Memory for all of [data, data + bytes), whose contents stay; false: this system has no such call, or no memory.
bool populate(std::byte* data, std::int64_t bytes) {
#ifdef MADV_POPULATE_WRITE
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t begin = address / page * page;
  return ::madvise(data - (address - begin), static_cast<std::size_t>(bytes) + (address - begin),
                   MADV_POPULATE_WRITE) == 0;
#else
  return data == nullptr || bytes < 0;
#endif
}

}  // namespace

PageToucher::PageToucher(const KvStore& store, std::int64_t ahead_bytes)
    : store_(store),
      ahead_(static_cast<std::int32_t>(
          std::clamp<std::int64_t>(ahead_bytes / (store.page_bytes() * store.n_layers()), 1, store.n_pages()))),
      next_(ahead_ - ahead_ / 4),
      wanted_(ahead_) {
  CHECK(ahead_bytes > 0);
  thread_ = std::thread([this] { run(); });
}

PageToucher::~PageToucher() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void PageToucher::used(PageId end) {
  if (end < next_) return;  // enough is left
  const PageId wanted = end < store_.n_pages() - ahead_ ? end + ahead_ : store_.n_pages();
  next_ = wanted < store_.n_pages() ? wanted - ahead_ / 4 : store_.n_pages() + 1;
  {
    const std::lock_guard lock(mutex_);
    wanted_ = wanted;
  }
  changed_.notify_one();
}

bool PageToucher::touch(PageId begin, PageId end) {
  for (std::int64_t layer = 0; layer < store_.n_layers(); ++layer) {
    const double start = now_s();
    if (!populate(store_.page(layer, begin), (end - begin) * store_.page_bytes())) return false;
    std::unique_lock lock(mutex_);
    const auto rest = std::chrono::duration<double>((now_s() - start) * kRest);
    if (changed_.wait_for(lock, rest, [this] { return stopping_; })) return false;
  }
  return true;
}

void PageToucher::run() {
  const auto piece = static_cast<PageId>(std::max<std::int64_t>(1, kPieceBytes / store_.page_bytes()));
  for (PageId begin = 0; begin < store_.n_pages();) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || begin < wanted_; });
      if (stopping_) return;
    }
    const PageId end = std::min(begin + piece, store_.n_pages());
    if (!touch(begin, end)) return;  // the first write will ask for it
    touched_.store(end, std::memory_order_release);
    begin = end;
  }
}

}  // namespace glint
