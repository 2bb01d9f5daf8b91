#pragma once
// Files: read whole, written whole, or mapped read-only.

#include <cstddef>
#include <span>
#include <string>

namespace glint {

// The whole file. Throws Error when it cannot be opened or read.
std::string read_file(const std::string& path);

// Writes path.tmp and renames it, so that readers see the old file or the whole new one. Throws Error when that fails.
void write_file(const std::string& path, const std::string& text);

// A read-only memory map of a whole file; unmapped by the destructor. An empty file maps to an empty span.
class MappedFile {
 public:
  MappedFile() = default;
  // Throws Error when the file cannot be opened, is not a regular file, or cannot be mapped.
  explicit MappedFile(const std::string& path);
  MappedFile(MappedFile&& other) noexcept { swap(other); }
  MappedFile& operator=(MappedFile&& other) noexcept {
    swap(other);
    return *this;
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }
  // Asks the kernel to read [offset, offset+length) ahead; advice only.
  void prefetch(std::size_t offset, std::size_t length) const;
  // Gives up the memory of the pages that hold a part of the file, or of all of it: they stop counting as this
  // process's and come back from the file when they are read again. A part outside the map is nothing.
  void drop_pages(const void* data, std::size_t length) const;
  void drop_pages() const { drop_pages(data_, size_); }

 private:
  void swap(MappedFile& other) noexcept;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::string path_;
};

}  // namespace glint
