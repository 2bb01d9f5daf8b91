#include "base/hash.hpp"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "base/error.hpp"

namespace glint {
namespace {

// Lengths round the buffer's (1 MiB): what is read in pieces hashes as a whole.
TEST(Hash, AFilesIsThatOfItsBytes) {
  const std::string path = testing::TempDir() + "glint_hash_" + std::to_string(::getpid());
  for (const std::size_t n : {0U, 1U, 1000U, 1U << 20, (1U << 20) + 1, 5U << 19}) {
    std::string bytes(n, '\0');
    for (std::size_t i = 0; i < n; ++i) bytes[i] = static_cast<char>(i * 2654435761U >> 24);
    std::ofstream(path, std::ios::binary) << bytes;
    const FileHash found = hash_file(path);
    EXPECT_EQ(found.bytes, n);
    EXPECT_EQ(found.hash, hash64(bytes.data(), n)) << n;
  }
  std::remove(path.c_str());
  EXPECT_THROW(hash_file(path), Error);
}

}  // namespace
}  // namespace glint
