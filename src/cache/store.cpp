#include "cache/store.hpp"

#include <vector>

#include "base/check.hpp"

namespace glint {

KvStore::KvStore(Ops& ops, const KvStoreOptions& options)
    : ops_(ops), options_(options), page_bytes_(kPageTokens * kv_row_bytes(options.codec)) {
  CHECK(options.n_layers > 0 && options.n_pages > 0);
  CHECK(ops.supports(options.codec), ops.name());
  pool_ = ops.allocate(static_cast<std::size_t>(options.n_layers * options.n_pages * page_bytes_));
}

KvPages KvStore::layer(std::int64_t index) const {
  CHECK(index >= 0 && index < options_.n_layers, std::to_string(index));
  return {.base = static_cast<std::byte*>(pool_.data()) + index * options_.n_pages * page_bytes_,
          .page_stride_bytes = page_bytes_,
          .codec = options_.codec};
}

std::byte* KvStore::page(std::int64_t layer_index, PageId id) const {
  CHECK(id >= 0 && id < n_pages(), std::to_string(id));
  return static_cast<std::byte*>(layer(layer_index).base) + id * page_bytes_;
}

void KvStore::copy_page(PageCopy copy) {
  CHECK(copy.from >= 0 && copy.from < n_pages() && copy.to >= 0 && copy.to < n_pages());
  for (std::int64_t l = 0; l < options_.n_layers; ++l) {
    auto* base = static_cast<std::byte*>(layer(l).base);
    ops_.copy(base + copy.to * page_bytes_, base + copy.from * page_bytes_, static_cast<std::size_t>(page_bytes_));
  }
}

}  // namespace glint
