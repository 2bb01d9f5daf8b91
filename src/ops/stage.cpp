#include "ops/stage.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "ops/kv_codec.hpp"

namespace glint {
namespace {

constexpr std::size_t kGuardBytes = 256;
constexpr auto kPoison = std::byte{0xff};  // as F32, BF16, F16 or F8: NaN; as an index: negative
constexpr std::int64_t kSparePages = 2;
constexpr std::int64_t kInterleaved = 3;  // layers that share the pool in the scattered layout

std::byte* bytes_of(void* p) { return static_cast<std::byte*>(p); }

bool poisoned(const std::byte* p, std::size_t n) {
  return std::all_of(p, p + n, [](std::byte b) { return b == kPoison; });
}

DType dtype_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return DType::kF32;
    case WeightFormat::kF16:
      return DType::kF16;
    case WeightFormat::kBF16:
      return DType::kBF16;
    default:
      CHECK(false, "cases make no weights of format " + std::to_string(static_cast<int>(format)));
  }
}

}  // namespace

std::uint64_t Random::bits() {  // splitmix64
  std::uint64_t z = (state_ += 0x9e3779b97f4a7c15ULL);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

float Random::normal() {  // the sum of four uniform numbers has variance 1/3
  const std::uint64_t b = bits();
  const auto sum = (b & 0xffff) + ((b >> 16) & 0xffff) + ((b >> 32) & 0xffff) + (b >> 48);
  return (static_cast<float>(sum) * 0x1p-16F - 2.0F) * 1.7320508F;
}

std::vector<float> Random::normals(std::int64_t n, float scale) {
  std::vector<float> v(static_cast<std::size_t>(n));
  for (float& x : v) x = normal() * scale;
  return v;
}

std::vector<std::int32_t> Random::permutation(std::int32_t n) {
  std::vector<std::int32_t> v(static_cast<std::size_t>(n));
  for (std::int32_t i = 0; i < n; ++i) v[static_cast<std::size_t>(i)] = i;
  for (std::int32_t i = n - 1; i > 0; --i)
    std::swap(v[static_cast<std::size_t>(i)], v[static_cast<std::size_t>(below(i + 1))]);
  return v;
}

void* Stage::place(const void* host, std::size_t bytes) {
  std::vector<std::byte> image(bytes + kGuardBytes, kPoison);
  if (bytes > 0) std::memcpy(image.data(), host, bytes);
  buffers_.push_back(ops_->allocate(image.size()));
  ops_->upload(buffers_.back().data(), image.data(), image.size());
  return buffers_.back().data();
}

View Stage::input(const Shape& shape, const std::vector<float>& values) {
  CHECK(static_cast<std::int64_t>(values.size()) == shape.elements(), shape.to_string());
  return {array(values), DType::kF32, shape};
}

Weight Stage::weight(std::int64_t rows, std::int64_t cols, WeightFormat format) {
  const auto n = static_cast<std::size_t>(rows * cols);
  const float scale = 1.0F / std::sqrt(static_cast<float>(cols));
  const DType dtype = dtype_of(format);
  std::vector<std::byte> raw(n * dtype_bytes(dtype));
  for (std::size_t i = 0; i < n; ++i) {
    const float v = random.normal() * scale;
    if (format == WeightFormat::kBF16) {  // the common case without the call
      const BF16 b = to_bf16(v);
      std::memcpy(raw.data() + i * sizeof(b), &b, sizeof(b));
    } else {
      store_from_float(raw.data(), dtype, i, v);
    }
  }
  return {format, rows, cols, place(raw.data(), raw.size())};
}

Weight Stage::weight(std::int64_t rows, std::int64_t cols, const QuantSpec& spec) {
  if (!has_scales(spec.format)) return weight(rows, cols, spec.format);
  const std::vector<float> values = random.normals(rows * cols, 1.0F / std::sqrt(static_cast<float>(cols)));
  const QuantizedWeight q = quantize_rtn(spec, values.data(), rows, cols);
  Weight w = q.w;
  w.data = place(q.codes.data(), q.codes.bytes());
  w.scales = place(q.scales.data(), q.scales.bytes());
  if (w.mins != nullptr) w.mins = place(q.mins.data(), q.mins.bytes());
  return w;
}

ExpertWeights Stage::expert(std::int64_t inner, std::int64_t hidden, const QuantSpec& spec) {
  ExpertWeights w;
  w.gate = weight(inner, hidden, spec);
  w.up = weight(inner, hidden, spec);
  w.down = weight(hidden, inner, spec);
  return w;
}

PagePool Stage::pool(KvCodec codec, std::int64_t n, const std::vector<CachedRow>& rows) {
  const std::int64_t n_physical = n + kSparePages;
  const std::int64_t page_bytes = kPageTokens * kv_row_bytes(codec);
  const bool scattered = layout_ == Layout::kScattered;
  PagePool pool;
  // Drawn in both layouts, so that the data that follow are the same.
  pool.place = random.permutation(static_cast<std::int32_t>(n_physical));
  if (!scattered) std::sort(pool.place.begin(), pool.place.end());
  pool.pages.codec = codec;
  pool.pages.n_pages = static_cast<std::int32_t>(n_physical);
  pool.pages.page_stride_bytes = scattered ? page_bytes * kInterleaved : page_bytes;

  std::vector<std::byte> image(static_cast<std::size_t>(n_physical * pool.pages.page_stride_bytes), kPoison);
  const std::int64_t offset = scattered ? page_bytes : 0;  // the second of the interleaved layers
  for (const CachedRow& row : rows) {
    const std::int64_t page = pool.page(row.slot / kPageTokens);
    std::byte* to =
        image.data() + offset + page * pool.pages.page_stride_bytes + row.slot % kPageTokens * kv_row_bytes(codec);
    encode_kv_row(codec, row.values.data(), to);
  }
  pool.pages.base = bytes_of(place(image.data(), image.size())) + offset;
  return pool;
}

View Stage::output(const std::string& name, const Shape& shape, OutputKind kind) {
  const auto n = static_cast<std::size_t>(shape.elements());
  return in_out(name, shape, kind, std::vector<float>(n, std::numeric_limits<float>::quiet_NaN()));
}

View Stage::in_out(const std::string& name, const Shape& shape, OutputKind kind, const std::vector<float>& values) {
  const View v = input(shape, values);
  outputs_.push_back({name, kind, v});
  return v;
}

std::int32_t* Stage::output_ids(const std::string& name, const Shape& shape) {
  auto* ids = array(std::vector<std::int32_t>(static_cast<std::size_t>(shape.elements()), -7777));
  outputs_.push_back({name, OutputKind::kExact, {ids, DType::kI32, shape}});
  return ids;
}

void Stage::output_pool(const std::string& name, const PagePool& pool) {
  const std::size_t bytes = buffers_.back().bytes() - kGuardBytes;
  pools_.push_back({name, pool, bytes});
}

Output Stage::read(const Expected& e) {
  const std::size_t bytes = e.view.bytes();
  std::vector<std::byte> raw(bytes + kGuardBytes);
  ops_->download(raw.data(), e.view.data, raw.size());
  Output out{e.name, e.kind, e.view.shape, {}, {}};
  for (std::size_t i = 0; i < static_cast<std::size_t>(e.view.shape.elements()); ++i)
    out.values.push_back(load_as_float(raw.data(), e.view.dtype, i));
  if (!poisoned(raw.data() + bytes, kGuardBytes)) out.damage = "memory behind the output was written";
  return out;
}

// Every logical page as [pages, 64, 576]; whatever lies between pages and in the spare ones must still be poison.
Output Stage::read(const ExpectedPool& e) {
  const KvPages& pages = e.pool.pages;
  const std::int64_t row_bytes = kv_row_bytes(pages.codec);
  const std::int64_t n_physical = pages.n_pages;
  const auto n_pages = n_physical - kSparePages;
  std::vector<std::byte> raw(e.bytes);
  const std::int64_t offset = layout_ == Layout::kScattered ? kPageTokens * row_bytes : 0;
  ops_->download(raw.data(), bytes_of(pages.base) - offset, raw.size());
  Output out{e.name, OutputKind::kExact, {n_pages, kPageTokens, kKvRow}, {}, {}};
  for (std::int64_t slot = 0; slot < n_pages * kPageTokens; ++slot) {
    std::byte* row = raw.data() + offset + e.pool.page(slot / kPageTokens) * pages.page_stride_bytes +
                     slot % kPageTokens * row_bytes;
    float values[kKvRow];
    decode_kv_row(pages.codec, row, values);
    out.values.insert(out.values.end(), values, values + kKvRow);
    std::fill_n(row, row_bytes, kPoison);
  }
  if (!poisoned(raw.data(), raw.size())) out.damage = "memory outside this layer's pages was written";
  return out;
}

std::vector<Output> Stage::collect() {
  std::vector<Output> all;
  for (const Expected& e : outputs_) all.push_back(read(e));
  for (const ExpectedPool& e : pools_) all.push_back(read(e));
  return all;
}

}  // namespace glint
