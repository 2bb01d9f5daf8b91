#include "models/glm_4_7_flash/synthetic_blocks.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <vector>

namespace glint {
namespace {

constexpr std::size_t kAlign = 256;

std::size_t aligned(std::int64_t bytes) { return (static_cast<std::size_t>(bytes) + kAlign - 1) / kAlign * kAlign; }

std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

constexpr std::int64_t kPoolRows = 64;
constexpr std::int64_t kPoolCols = 1024;
constexpr std::size_t kPiece = 64;  // bytes copied at once

// A small matrix of normal values quantised by the format's plain rule, whose codes are what larger ones are cut from,
// and its mean scale. One a format: built when first needed.
struct CodePool {
  std::vector<std::uint8_t> codes;
  float scale = 0;
  float min = 0;
};

CodePool make_pool(const QuantSpec& spec) {
  std::vector<float> values(kPoolRows * kPoolCols);
  std::uint64_t state = 1;
  for (float& v : values) {
    const std::uint64_t b = mix(state++);
    v = -2.0F;  // the sum of four uniforms, about normal
    for (int i = 0; i < 4; ++i) v += static_cast<float>((b >> (16 * i)) & 0xffffU) * (1.0F / 65536.0F);
    v *= 1.7320508F;
  }
  const QuantizedWeight q = quantize_rtn(spec, values.data(), kPoolRows, kPoolCols);
  CodePool pool;
  const auto* codes = static_cast<const std::uint8_t*>(q.codes.data());
  pool.codes.assign(codes, codes + kPoolRows * q.w.row_bytes());
  const auto n = static_cast<std::size_t>((kPoolRows + spec.group_rows - 1) / spec.group_rows * q.w.groups_a_row());
  for (std::size_t i = 0; i < n; ++i) {
    pool.scale += load_as_float(q.w.scales, spec.scale_dtype, i) / static_cast<float>(n);
    if (q.w.mins != nullptr) pool.min += load_as_float(q.w.mins, spec.scale_dtype, i) / static_cast<float>(n);
  }
  return pool;
}

const CodePool& pool_of(const QuantSpec& spec) {
  // One a thread: cheaper than a lock, and a pool is 64 K codes.
  struct Entry {
    std::string name;
    CodePool pool;
  };
  thread_local std::vector<Entry> entries;
  const std::string name = spec.name();
  for (const Entry& e : entries) {
    if (e.name == name) return e.pool;
  }
  entries.push_back({name, make_pool(spec)});
  return entries.back().pool;
}

void fill_scales(void* out, DType dtype, std::int64_t n, float mean, std::uint64_t stream) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float u = static_cast<float>(mix(stream + static_cast<std::uint64_t>(i)) >> 40) * 0x1p-24F;
    store_from_float(out, dtype, static_cast<std::size_t>(i), mean * (0.8F + 0.4F * u));
  }
}

}  // namespace

BlockLayout block_layout(const QuantSpec& spec, std::int64_t rows, std::int64_t cols) {
  const Weight w = block_weight(spec, rows, cols, nullptr);
  const std::int64_t scales = (rows + w.group_rows - 1) / w.group_rows * w.groups_a_row() *
                              static_cast<std::int64_t>(dtype_bytes(w.scale_dtype));
  BlockLayout l;
  l.scales = aligned(rows * w.row_bytes());
  l.mins = l.scales + aligned(scales);
  l.bytes = l.mins + (spec.symmetric ? 0 : aligned(scales));
  return l;
}

Weight block_weight(const QuantSpec& spec, std::int64_t rows, std::int64_t cols, const void* base) {
  Weight w{.format = spec.format,
           .rows = rows,
           .cols = cols,
           .scale_dtype = spec.scale_dtype,
           .group = spec.group == 0 ? cols : std::min(spec.group, cols),
           .group_rows = spec.group_rows};
  if (base == nullptr) return w;
  const BlockLayout l = block_layout(spec, rows, cols);
  const auto* bytes = static_cast<const std::byte*>(base);
  w.data = bytes;
  w.scales = bytes + l.scales;
  if (l.mins < l.bytes) w.mins = bytes + l.mins;
  return w;
}

void fill_block(const QuantSpec& spec, std::int64_t rows, std::int64_t cols, float deviation, std::uint64_t stream,
                void* base) {
  const CodePool& pool = pool_of(spec);
  const BlockLayout l = block_layout(spec, rows, cols);
  const Weight w = block_weight(spec, rows, cols, base);
  auto* bytes = static_cast<std::byte*>(base);
  const auto n = static_cast<std::size_t>(rows * w.row_bytes());
  const std::size_t places = pool.codes.size() - kPiece;
  for (std::size_t i = 0; i < n; i += kPiece)
    std::memcpy(bytes + i, pool.codes.data() + mix(stream + i) % places, std::min(kPiece, n - i));
  const std::int64_t scales = (rows + w.group_rows - 1) / w.group_rows * w.groups_a_row();
  fill_scales(bytes + l.scales, spec.scale_dtype, scales, pool.scale * deviation, mix(stream));
  if (l.mins < l.bytes) {
    // The same factor for scale and min, so that the values stay centred.
    fill_scales(bytes + l.mins, spec.scale_dtype, scales, pool.min * deviation, mix(stream));
  }
}

}  // namespace glint
