#include "base/file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <utility>

#include "base/error.hpp"

namespace glint {
namespace {

struct Fd {
  int fd;
  explicit Fd(const std::string& path) : fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd < 0) throw Error({.what = path, .found = std::strerror(errno), .expected = "a readable file"});
  }
  ~Fd() {
    if (fd >= 0) ::close(fd);
  }
};

std::size_t regular_size(int fd, const std::string& path) {
  struct stat st {};
  if (::fstat(fd, &st) != 0) throw Error({.what = path, .found = std::strerror(errno)});
  if (!S_ISREG(st.st_mode)) throw Error({.what = path, .found = "not a regular file", .expected = "a regular file"});
  return static_cast<std::size_t>(st.st_size);
}

}  // namespace

std::string read_file(const std::string& path) {
  const Fd file(path);
  std::string out(regular_size(file.fd, path), '\0');
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = ::read(file.fd, out.data() + done, out.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw Error({.what = path, .found = std::strerror(errno)});
    if (n == 0) break;
    done += static_cast<std::size_t>(n);
  }
  out.resize(done);
  return out;
}

void write_file(const std::string& path, const std::string& text) {
  const std::string temp = path + ".tmp";
  std::ofstream out(temp, std::ios::binary);
  out << text;
  out.close();
  std::error_code ec;
  if (out) std::filesystem::rename(temp, path, ec);
  if (!out || ec) throw Error({.what = path, .found = "cannot be written", .hint = "is the disk full?"});
}

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const Fd file(path);
  size_ = regular_size(file.fd, path);
  if (size_ == 0) return;
  void* p = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (p == MAP_FAILED)
    throw Error({.what = path, .found = std::strerror(errno), .expected = "a file that can be memory-mapped"});
  data_ = static_cast<const std::byte*>(p);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::prefetch(std::size_t offset, std::size_t length) const {
  if (data_ == nullptr || offset >= size_) return;
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t begin = offset / page * page;
  ::madvise(const_cast<std::byte*>(data_) + begin, std::min(length + (offset - begin), size_ - begin), MADV_WILLNEED);
}

void MappedFile::drop_pages(const void* data, std::size_t length) const {
  const std::size_t offset = reinterpret_cast<std::uintptr_t>(data) - reinterpret_cast<std::uintptr_t>(data_);
  if (data_ == nullptr || length == 0 || offset >= size_) return;  // data before the map: offset wraps round
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t begin = offset / page * page;  // a map begins at a page
  const std::size_t end = offset + std::min(length, size_ - offset);
  ::madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);  // advice: may fail
}

void MappedFile::swap(MappedFile& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
}

}  // namespace glint
