#include "base/hash.hpp"

#define XXH_INLINE_ALL  // header only: nothing to link
#include <xxhash.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <vector>

#include "base/error.hpp"

namespace glint {

std::uint64_t hash64(const void* data, std::size_t bytes) { return XXH3_64bits(data, bytes); }

FileHash hash_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw Error({.what = path, .found = std::strerror(errno), .expected = "a readable file"});
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  std::vector<char> buffer(std::size_t{1} << 20);
  FileHash out;
  while (in) {
    in.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    const auto n = static_cast<std::size_t>(in.gcount());
    XXH3_64bits_update(&state, buffer.data(), n);
    out.bytes += n;
  }
  if (in.bad()) throw Error({.what = path, .found = "it cannot be read to its end"});
  out.hash = XXH3_64bits_digest(&state);
  return out;
}

}  // namespace glint
