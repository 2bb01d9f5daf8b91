#include "cache/store.hpp"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <vector>

#include "backends/reference/reference.hpp"
#include "ops/kv_codec.hpp"

namespace glint {
namespace {

std::byte* page(const KvPages& pages, PageId id) {
  return static_cast<std::byte*>(pages.base) + id * pages.page_stride_bytes;
}

TEST(KvStore, LaysPagesOutByLayer) {
  const auto ops = make_reference_ops();
  for (const KvCodec codec : kKvCodecs) {
    const KvStore store(*ops, {.n_layers = 3, .n_pages = 5, .codec = codec});
    const std::int64_t page_bytes = kPageTokens * kv_row_bytes(codec);
    EXPECT_EQ(store.bytes(), 3 * 5 * page_bytes);
    EXPECT_EQ(KvStore::token_bytes(3, codec) * kPageTokens * 5, store.bytes());
    for (int l = 0; l < 3; ++l) {
      const KvPages pages = store.layer(l);
      EXPECT_EQ(pages.codec, codec);
      EXPECT_EQ(pages.page_stride_bytes, page_bytes);
      EXPECT_EQ(page(pages, 0), page(store.layer(0), 0) + l * 5 * page_bytes);
    }
  }
}

TEST(KvStore, CopyPageCopiesThatPageInEveryLayerAndNothingElse) {
  const auto ops = make_reference_ops();
  KvStore store(*ops, {.n_layers = 3, .n_pages = 4, .codec = KvCodec::kBF16});
  const auto page_bytes = static_cast<std::size_t>(kPageTokens * kv_row_bytes(KvCodec::kBF16));
  for (int l = 0; l < 3; ++l) {
    for (PageId p = 0; p < 4; ++p) std::memset(page(store.layer(l), p), 16 * l + p + 1, page_bytes);
  }
  store.copy_page({.from = 1, .to = 3});
  for (int l = 0; l < 3; ++l) {
    for (PageId p = 0; p < 4; ++p) {
      const std::vector<std::byte> want(page_bytes, static_cast<std::byte>(16 * l + (p == 3 ? 1 : p) + 1));
      EXPECT_EQ(std::memcmp(page(store.layer(l), p), want.data(), page_bytes), 0) << "layer " << l << " page " << p;
    }
  }
}

TEST(KvStoreDeathTest, RefusesPagesThatDoNotExist) {
  const auto ops = make_reference_ops();
  KvStore store(*ops, {.n_layers = 1, .n_pages = 2, .codec = KvCodec::kBF16});
  EXPECT_DEATH(store.copy_page({.from = 0, .to = 2}), "copy\\.(from|to)");
  EXPECT_DEATH(store.copy_page({.from = -1, .to = 1}), "copy\\.(from|to)");
}

}  // namespace
}  // namespace glint
