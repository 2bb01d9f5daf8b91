#include "weights/gguf_writer.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/check.hpp"
#include "base/error.hpp"

namespace glint {
namespace {

constexpr std::uint64_t kAlign = 32;  // the format's default

template <typename T>
void append_number(std::string& out, T v) {
  out.append(reinterpret_cast<const char*>(&v), sizeof v);
}

std::uint64_t aligned(std::uint64_t n) { return (n + kAlign - 1) / kAlign * kAlign; }

std::uint64_t bytes_of(const GgufTensorInfo& t) {
  const GgufBlock block = *gguf_block(t.type);
  CHECK(t.shape.rank() > 0 && t.shape[t.shape.rank() - 1] % block.values == 0,
        t.name + " " + t.shape.to_string() + " as " + std::string(block.name));
  return static_cast<std::uint64_t>(t.shape.elements() / block.values * block.bytes);
}

}  // namespace

template <typename T>
void GgufMetadataBuilder::put(T v) {
  append_number(bytes_, v);
}
void GgufMetadataBuilder::put_text(std::string_view v) {
  put<std::uint64_t>(v.size());
  bytes_ += v;
}
void GgufMetadataBuilder::begin(std::string_view key, GgufKind kind) {
  put_text(key);
  put(static_cast<std::uint32_t>(kind));
  ++count_;
}
void GgufMetadataBuilder::add_u16(std::string_view key, std::uint16_t v) {
  begin(key, GgufKind::kU16);
  put(v);
}
void GgufMetadataBuilder::add_u32(std::string_view key, std::uint32_t v) {
  begin(key, GgufKind::kU32);
  put(v);
}
void GgufMetadataBuilder::add_i32(std::string_view key, std::int32_t v) {
  begin(key, GgufKind::kI32);
  put(v);
}
void GgufMetadataBuilder::add_f32(std::string_view key, float v) {
  begin(key, GgufKind::kF32);
  put(v);
}
void GgufMetadataBuilder::add_bool(std::string_view key, bool v) {
  begin(key, GgufKind::kBool);
  put(static_cast<std::uint8_t>(v ? 1 : 0));
}
void GgufMetadataBuilder::add_text(std::string_view key, std::string_view v) {
  begin(key, GgufKind::kString);
  put_text(v);
}
void GgufMetadataBuilder::add_texts(std::string_view key, std::span<const std::string> v) {
  begin(key, GgufKind::kArray);
  put(static_cast<std::uint32_t>(GgufKind::kString));
  put<std::uint64_t>(v.size());
  for (const std::string& s : v) put_text(s);
}
void GgufMetadataBuilder::add_i32s(std::string_view key, std::span<const std::int32_t> v) {
  begin(key, GgufKind::kArray);
  put(static_cast<std::uint32_t>(GgufKind::kI32));
  put<std::uint64_t>(v.size());
  for (const std::int32_t n : v) put(n);
}

GgufWriter::GgufWriter(const std::string& path, const GgufMetadataBuilder& metadata,
                       const std::vector<GgufTensorInfo>& tensors)
    : path_(path), temp_path_(path + ".tmp." + std::to_string(::getpid())) {
  std::string header = "GGUF";
  append_number<std::uint32_t>(header, 3);
  append_number<std::uint64_t>(header, tensors.size());
  append_number(header, metadata.count());
  header += metadata.bytes();
  std::uint64_t offset = 0;
  for (const GgufTensorInfo& t : tensors) {
    append_number<std::uint64_t>(header, t.name.size());
    header += t.name;
    append_number(header, static_cast<std::uint32_t>(t.shape.rank()));
    for (int d = t.shape.rank() - 1; d >= 0; --d) append_number(header, static_cast<std::uint64_t>(t.shape[d]));
    append_number(header, static_cast<std::uint32_t>(t.type));
    append_number(header, offset);
    const std::uint64_t bytes = bytes_of(t);
    CHECK(places_.emplace(t.name, Place{offset, offset + bytes}).second, "two tensors named " + t.name);
    data_bytes_ += bytes;
    offset = aligned(offset + bytes);
  }
  header.resize(aligned(header.size()), '\0');
  for (auto& [name, place] : places_) {
    place.next += header.size();
    place.end += header.size();
  }
  file_bytes_ = header.size() + offset;  // with the padding after the last tensor, which some readers want
  fd_ = ::open(temp_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) fail("create");
  try {
    // EINVAL and EOPNOTSUPP: a filesystem that cannot reserve; then the writes themselves find a full disk.
    errno = ::posix_fallocate(fd_, 0, static_cast<off_t>(file_bytes_));
    if (errno != 0 && errno != EINVAL && errno != EOPNOTSUPP) fail("reserve");
    write_at(0, header.data(), header.size());
    if (::ftruncate(fd_, static_cast<off_t>(file_bytes_)) != 0) fail("write");
  } catch (...) {  // a constructor that throws gets no destructor
    ::close(fd_);
    ::unlink(temp_path_.c_str());
    throw;
  }
}

GgufWriter::~GgufWriter() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temp_path_.c_str());
}

void GgufWriter::fail(const std::string& action) const {
  const int error = errno;
  throw Error(
      {.what = path_,
       .found = "cannot " + action + " the file: " + std::strerror(error),
       .expected = "room for " + std::to_string(file_bytes_) + " bytes and permission to write",
       .hint = error == ENOSPC || error == EDQUOT || error == EFBIG ? "free some space or write elsewhere" : ""});
}

void GgufWriter::write_at(std::uint64_t offset, const void* data, std::size_t bytes) {
  const auto* p = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::pwrite(fd_, p, bytes, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("write");
    p += n;
    offset += static_cast<std::uint64_t>(n);
    bytes -= static_cast<std::size_t>(n);
  }
}

void GgufWriter::append(std::string_view name, const void* data, std::size_t bytes) {
  const auto it = places_.find(std::string(name));
  CHECK(it != places_.end(), "no tensor " + std::string(name) + " in the plan of " + path_);
  Place& place = it->second;
  CHECK(bytes <= place.end - place.next, std::string(name) + ": " + std::to_string(bytes) + " bytes too many");
  write_at(place.next, data, bytes);
  place.next += bytes;
}

void GgufWriter::finish() {
  for (const auto& [name, place] : places_) CHECK(place.next == place.end, name + " is not complete");
  if (::fsync(fd_) != 0) fail("write");
  if (::rename(temp_path_.c_str(), path_.c_str()) != 0) fail("rename");
  ::close(fd_);
  fd_ = -1;
}

}  // namespace glint
