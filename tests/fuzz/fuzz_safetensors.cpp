// parse_safetensors on arbitrary files. A header that passes must keep its promises: the ranges cover the data once,
// have the size of their shapes, and are aligned.

#include <cstdlib>
#include <cstring>
#include <string>

#include "base/error.hpp"
#include "weights/safetensors.hpp"

namespace {

void require(bool promise) {
  if (!promise) std::abort();
}

void parse(std::span<const std::byte> file) {
  try {
    const glint::SafetensorsHeader header = glint::parse_safetensors(file, "fuzz.safetensors");
    std::uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof length);
    std::uint64_t covered = sizeof length + length;
    for (const glint::SafetensorsEntry& t : header.tensors) {
      require(t.begin == covered && t.end >= t.begin && t.end <= file.size());
      const glint::ConstView view{file.data() + t.begin, t.dtype, t.shape};
      require(view.bytes() == t.end - t.begin && t.begin % glint::dtype_bytes(t.dtype) == 0);
      covered = t.end;
    }
    require(covered == file.size());
  } catch (const glint::Error& e) { require(std::strlen(e.what()) > 0); }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  parse(std::as_bytes(std::span(data, size)));
  // The same bytes as a header with the right length before it and some data behind: reaches the layout checks often.
  if (size < 1) return 0;
  const std::uint64_t length = size - 1;
  std::string file(reinterpret_cast<const char*>(&length), sizeof length);
  file.append(reinterpret_cast<const char*>(data + 1), size - 1);
  file.append(data[0], '\0');
  parse(std::as_bytes(std::span(file)));
  return 0;
}
