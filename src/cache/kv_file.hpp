#pragma once
// A block of cache pages in a file. Self-describing: what computed it, which tokens it holds and how it is laid out,
// with checksums, so that a file that is cut off, damaged or foreign is never taken for another.
//
//   header (kv_file.cpp) | tokens, int32, from the sequence's first to the block's last | pages: [page][layer][page
//   bytes]
//
// Little-endian; files are not meant to travel. A file is written under a temporary name and renamed when complete.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace glint {

// What must be equal for a page's bytes to mean the same.
struct KvFileShape {
  std::uint64_t fingerprint = 0;  // of the model and of all options that change values
  std::uint32_t codec = 0;
  std::uint32_t page_tokens = 0;
  std::uint32_t n_layers = 0;
  std::uint64_t page_bytes = 0;  // of one layer

  bool operator==(const KvFileShape&) const = default;
};

struct KvFileInfo {
  KvFileShape shape;
  std::vector<std::int32_t> tokens;
  std::uint32_t first_page = 0;  // pages of the tokens before it are not in the file
  std::uint32_t n_pages = 0;

  std::uint64_t file_bytes() const;
};

// Where page `page` of the block (from 0) has its bytes of a layer. For reading it may be nullptr: not wanted.
using KvPiece = std::function<std::byte*(std::uint32_t page, std::uint32_t layer)>;

// Each returns what went wrong, or nothing.
// Header and tokens, checked; the file has the length that they say.
std::string read_kv_file_info(const std::string& path, KvFileInfo* info);
// The pages, if the file is that block or one that goes on after it. *gone: there is no such file any more.
std::string read_kv_file(const std::string& path, const KvFileInfo& expected, const KvPiece& piece, bool* gone);
std::string write_kv_file(const std::string& path, const KvFileInfo& info, const KvPiece& piece);

}  // namespace glint
