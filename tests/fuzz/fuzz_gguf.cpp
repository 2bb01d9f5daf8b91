// parse_gguf on arbitrary files. A header that passes must keep its promises: tensors lie inside the file, aligned,
// apart from each other, with the bytes of their shapes; every value can be asked for as every type; blocks of any
// content can be decoded and taken apart.

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/error.hpp"
#include "weights/gguf.hpp"

namespace {

void require(bool promise) {
  if (!promise) std::abort();
}

template <typename F>
void ask(const F& f) {
  try {
    f();
  } catch (const glint::Error& e) { require(std::strlen(e.what()) > 0); }
}

void ask_everything(const glint::GgufMetadata& m) {
  for (const glint::GgufMetadata::Entry& e : m.entries()) {
    require(m.find(e.key) == &e.value);
    ask([&] { (void)m.integer(e.key, -5, 1000); });
    ask([&] { (void)m.number(e.key, -5, 1000); });
    ask([&] { (void)m.flag(e.key); });
    ask([&] { (void)m.text(e.key); });
    ask([&] { (void)m.texts(e.key); });
    ask([&] { (void)m.integers(e.key); });
  }
}

void decode(const glint::GgufTensor& t, const std::byte* file) {
  constexpr std::int64_t kMost = 4096;  // values; a row at a time would be slow for nothing
  const glint::GgufBlock block = *glint::gguf_block(t.type);
  const std::int64_t n = std::min(kMost, t.shape.elements()) / block.values * block.values;
  if (!glint::gguf_readable(t.type) || n == 0) return;
  std::vector<float> values(static_cast<std::size_t>(n));
  glint::decode_gguf(t.type, file + t.begin, n, values.data());
  if (!glint::has_scales(glint::gguf_target(t.type).format)) return;
  std::vector<std::byte> codes(static_cast<std::size_t>(n));
  std::vector<std::uint16_t> scales(static_cast<std::size_t>(n)), mins(scales.size());
  (void)glint::repack_gguf(t.type, file + t.begin, 1, n, {codes.data(), scales.data(), mins.data()});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  try {
    const glint::GgufHeader header = glint::parse_gguf(file, "fuzz.gguf");
    std::vector<std::pair<std::uint64_t, std::uint64_t>> places;
    for (const glint::GgufTensor& t : header.tensors) {
      const glint::GgufBlock block = *glint::gguf_block(t.type);
      require(t.begin >= header.data_begin && t.end <= size && t.begin % header.alignment == 0);
      require(static_cast<std::uint64_t>(t.shape.elements() / block.values * block.bytes) == t.end - t.begin);
      require(t.shape[t.shape.rank() - 1] % block.values == 0);
      places.emplace_back(t.begin, t.end);
      decode(t, file.data());
    }
    std::sort(places.begin(), places.end());
    for (std::size_t i = 1; i < places.size(); ++i) require(places[i - 1].second <= places[i].first);
    ask_everything(header.metadata);
  } catch (const glint::Error& e) { require(std::strlen(e.what()) > 0); }
  return 0;
}
