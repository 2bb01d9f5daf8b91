#pragma once
// KvStore: the cache's bytes on the backend. It obeys KvPlan and knows nothing of sequences.

#include <cstdint>

#include "cache/plan.hpp"
#include "ops/ops.hpp"

namespace glint {

struct KvStoreOptions {
  std::int64_t n_layers = 0;  // whose rows it holds
  std::int32_t n_pages = 0;
  KvCodec codec = KvCodec::kBF16;
};

// Layout: [layer][page][row], so that a layer's pages are one region; a page holds kPageTokens rows of
// kv_row_bytes(codec).
class KvStore {
 public:
  // Allocates the pool once. Throws Error when memory is short.
  KvStore(Ops& ops, const KvStoreOptions& options);

  KvPages layer(std::int64_t index) const;
  // A page's bytes of one layer, and the distance from there to the next layer's.
  std::byte* page(std::int64_t layer_index, PageId id) const;
  std::int64_t layer_bytes() const { return options_.n_pages * page_bytes_; }
  std::int64_t page_bytes() const { return page_bytes_; }
  std::int64_t n_layers() const { return options_.n_layers; }
  std::int32_t n_pages() const { return options_.n_pages; }
  KvCodec codec() const { return options_.codec; }
  std::int64_t bytes() const { return static_cast<std::int64_t>(pool_.bytes()); }
  // Bytes a token takes over all layers.
  static std::int64_t token_bytes(std::int64_t n_layers, KvCodec codec) { return n_layers * kv_row_bytes(codec); }

  // Copies one page in every layer. Host backends only copy at once; a device orders it before later ops.
  void copy_page(PageCopy copy);

 private:
  Ops& ops_;
  KvStoreOptions options_;
  std::int64_t page_bytes_;
  Buffer pool_;
};

}  // namespace glint
