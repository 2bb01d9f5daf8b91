#include "cache/touch.hpp"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstring>
#include <thread>
#include <vector>

#include "backends/reference/reference.hpp"
#include "ops/kv_codec.hpp"

namespace glint {
namespace {

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

// Whether this system can be asked for memory at all.
bool can_be_asked() {
  const auto bytes = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const bool can = ::madvise(p, bytes, MADV_POPULATE_WRITE) == 0;
  ::munmap(p, bytes);
  return can;
}

class PageToucherTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!can_be_asked()) GTEST_SKIP() << "this system has no MADV_POPULATE_WRITE (Linux 5.14)";
  }
};

// Pages of one layer whose memory is there, all of it.
PageId resident(const KvStore& store, std::int64_t layer) {
  const auto system_page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  PageId n = 0;
  for (; n < store.n_pages(); ++n) {
    const auto begin = reinterpret_cast<std::uintptr_t>(store.page(layer, n)) / system_page * system_page;
    const auto end = reinterpret_cast<std::uintptr_t>(store.page(layer, n) + store.page_bytes());
    std::vector<unsigned char> there((end - begin + system_page - 1) / system_page);
    EXPECT_EQ(::mincore(reinterpret_cast<void*>(begin), end - begin, there.data()), 0);
    for (const unsigned char byte : there) {
      if ((byte & 1) == 0) return n;
    }
  }
  return n;
}

void await(const PageToucher& toucher, PageId end) {
  for (int i = 0; i < 6000 && toucher.touched() < end; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  ASSERT_GE(toucher.touched(), end);
}

constexpr std::int64_t kPages = 400;  // 29 MB a layer
KvStore make_store(Ops& ops) { return KvStore(ops, {.n_layers = 2, .n_pages = kPages, .codec = KvCodec::kF16}); }

TEST_F(PageToucherTest, AsksForMemoryAheadOfThePagesInUseAndNoFurther) {
  const auto ops = make_reference_ops();
  const KvStore store = make_store(*ops);
  if (resident(store, 0) > 0) GTEST_SKIP() << "this system gives a pool its memory at once";
  const std::int64_t ahead = 100;
  PageToucher toucher(store, ahead * 2 * store.page_bytes());
  ASSERT_NO_FATAL_FAILURE(await(toucher, ahead));
  for (int l = 0; l < 2; ++l) {
    EXPECT_GE(resident(store, l), toucher.touched()) << "layer " << l;
    EXPECT_LT(resident(store, l), 2 * ahead) << "layer " << l;  // a piece and a huge page more at most
  }
  toucher.used(ahead / 2);  // half of it is left: enough
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_LT(toucher.touched(), ahead + 60);
  toucher.used(ahead - 1);
  ASSERT_NO_FATAL_FAILURE(await(toucher, 2 * ahead - 1));
  for (int l = 0; l < 2; ++l) EXPECT_GE(resident(store, l), 2 * ahead - 1) << "layer " << l;
  toucher.used(kPages - 1);
  ASSERT_NO_FATAL_FAILURE(await(toucher, kPages));
  for (int l = 0; l < 2; ++l) EXPECT_EQ(resident(store, l), kPages) << "layer " << l;
}

TEST_F(PageToucherTest, LeavesWhatIsThereAndEndsInTheMiddle) {
  const auto ops = make_reference_ops();
  const KvStore store = make_store(*ops);
  std::memset(store.page(0, 0), 7, static_cast<std::size_t>(store.layer_bytes()));
  {
    PageToucher toucher(store, store.bytes());
    ASSERT_NO_FATAL_FAILURE(await(toucher, 1));
  }  // long before the last page, most likely
  const std::vector<std::byte> want(static_cast<std::size_t>(store.layer_bytes()), std::byte{7});
  EXPECT_EQ(std::memcmp(store.page(0, 0), want.data(), want.size()), 0);
}

TEST_F(PageToucherTest, IsContentWithAPoolThatIsSmallerThanWhatItMayTouch) {
  const auto ops = make_reference_ops();
  const KvStore store(*ops, {.n_layers = 1, .n_pages = 3, .codec = KvCodec::kInt4});
  PageToucher toucher(store, std::int64_t{1} << 30);
  toucher.used(1);
  toucher.used(3);
  ASSERT_NO_FATAL_FAILURE(await(toucher, 3));
}

}  // namespace
}  // namespace glint
