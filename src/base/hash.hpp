#pragma once
// The hash that runs are compared by: XXH3, 64 bits.

#include <cstddef>
#include <cstdint>
#include <string>

namespace glint {

std::uint64_t hash64(const void* data, std::size_t bytes);

struct FileHash {
  std::uint64_t hash = 0;  // hash64 of the bytes
  std::uint64_t bytes = 0;
};
// Reads the file through a small buffer: a mapped file would count as this process's memory, all of it. Throws Error
// when it cannot be read.
FileHash hash_file(const std::string& path);

}  // namespace glint
