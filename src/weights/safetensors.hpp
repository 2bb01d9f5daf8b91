#pragma once
// safetensors files: [u64 header length][JSON header][data]. The reader maps the file and trusts nothing in it; the
// writer makes files that the reader (and everybody's) accepts. Tensor data is little-endian and never copied here.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/file.hpp"
#include "tensor/tensor.hpp"

namespace glint {

// Larger headers are refused unread. The official index of 9,703 tensors would need about 1.5 MB in one file.
inline constexpr std::uint64_t kMaxSafetensorsHeader = 100'000'000;

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  std::uint64_t begin = 0;  // bytes from the start of the file
  std::uint64_t end = 0;
};

using SafetensorsMetadata = std::vector<std::pair<std::string, std::string>>;

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;  // in the order of their data
  SafetensorsMetadata metadata;           // __metadata__
};

// Parses and checks the header of a whole file's bytes; `source` names the file in errors. Throws Error unless the
// tensors cover the data exactly (no overlap, gap or byte left over), every name is unique, every dtype is one that
// Glint has (dtype.hpp), bytes = shape × dtype, rank ≤ 4, and every tensor is aligned to its element size.
SafetensorsHeader parse_safetensors(std::span<const std::byte> file, std::string_view source);

// A mapped file. Views point into the mapping and live as long as this object (moving it keeps them valid).
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const std::vector<SafetensorsEntry>& tensors() const { return header_.tensors; }
  const SafetensorsMetadata& metadata() const { return header_.metadata; }
  const SafetensorsEntry* find(std::string_view name) const;  // null when absent
  ConstView view(const SafetensorsEntry& entry) const;
  ConstView get(std::string_view name) const;  // throws Error when absent
  const MappedFile& map() const { return file_; }

 private:
  MappedFile file_;
  SafetensorsHeader header_;
  std::unordered_map<std::string_view, std::size_t> by_name_;  // keys point into header_.tensors
};

struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
};

// Writes a file of known layout piece by piece, in any order (the quantiser never holds a whole model). The data goes
// to a temporary file beside `path`, which finish() renames: a reader sees the old file or the complete new one. A
// destroyed, unfinished writer leaves nothing behind. Space is reserved at once, so that a full disk fails early.
// Throws Error when the file cannot be made or written (disk full, no permission).
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::string& path, const std::vector<TensorInfo>& tensors,
                    const SafetensorsMetadata& metadata = {});
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;
  ~SafetensorsWriter();

  // The whole data of one tensor; each tensor exactly once.
  void write(std::string_view name, const void* data, std::size_t bytes);
  void finish();

 private:
  struct Slot {
    std::uint64_t begin = 0;
    std::uint64_t bytes = 0;
    bool written = false;
  };
  void write_at(std::uint64_t offset, const void* data, std::size_t bytes);
  [[noreturn]] void fail(const std::string& action) const;

  std::string path_;
  std::string temp_path_;
  int fd_ = -1;
  std::uint64_t file_bytes_ = 0;
  std::size_t left_ = 0;  // tensors not yet written
  std::unordered_map<std::string, Slot> slots_;
};

struct NamedTensor {
  std::string name;
  ConstView view;  // host memory
};

// The same in one call.
void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const SafetensorsMetadata& metadata = {});

}  // namespace glint
