#include "weights/safetensors.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cerrno>
#include <cstring>

#include "base/check.hpp"
#include "base/error.hpp"

namespace glint {

SafetensorsFile::SafetensorsFile(const std::string& path)
    : file_(path), header_(parse_safetensors(file_.bytes(), path)) {
  by_name_.reserve(header_.tensors.size());
  for (std::size_t i = 0; i < header_.tensors.size(); ++i) by_name_.emplace(header_.tensors[i].name, i);
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &header_.tensors[it->second];
}

ConstView SafetensorsFile::view(const SafetensorsEntry& entry) const {
  CHECK(entry.end <= file_.bytes().size(), entry.name + " is not of " + path());
  return {file_.bytes().data() + entry.begin, entry.dtype, entry.shape};
}

ConstView SafetensorsFile::get(std::string_view name) const {
  const SafetensorsEntry* entry = find(name);
  if (entry == nullptr)
    throw Error({.what = path(), .found = "no tensor " + std::string(name), .expected = "one of that name"});
  return view(*entry);
}

namespace {

constexpr std::uint64_t kAlign = 64;  // data begins at a cache line; spaces pad the header

struct Layout {
  std::string prefix_and_header;
  std::vector<std::uint64_t> begin;  // of tensors[i], bytes from the start of the file
  std::uint64_t file_bytes = 0;
};

std::uint64_t bytes_of(const TensorInfo& t) { return ConstView{nullptr, t.dtype, t.shape}.bytes(); }

// Wider elements first (the order of the reference implementation), so that every tensor is aligned without gaps.
Layout plan_layout(const std::vector<TensorInfo>& tensors, const SafetensorsMetadata& metadata) {
  std::vector<std::size_t> order(tensors.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return dtype_bytes(tensors[a].dtype) > dtype_bytes(tensors[b].dtype);
  });
  Layout layout;
  layout.begin.resize(tensors.size());
  boost::json::object header;
  if (!metadata.empty()) {
    boost::json::object m;
    for (const auto& [k, v] : metadata) m[k] = v;
    header["__metadata__"] = std::move(m);
  }
  std::uint64_t offset = 0;
  for (const std::size_t i : order) {
    const TensorInfo& t = tensors[i];
    CHECK(!header.contains(t.name), "two tensors named " + t.name);
    boost::json::array shape;
    for (int d = 0; d < t.shape.rank(); ++d) shape.push_back(t.shape[d]);
    layout.begin[i] = offset;
    offset += bytes_of(t);
    header[t.name] = {
        {"dtype", dtype_name(t.dtype)}, {"shape", std::move(shape)}, {"data_offsets", {layout.begin[i], offset}}};
  }
  std::string json = boost::json::serialize(header);
  json.append((kAlign - (json.size() + 8) % kAlign) % kAlign, ' ');
  const std::uint64_t length = json.size();
  layout.prefix_and_header.assign(reinterpret_cast<const char*>(&length), sizeof length);
  layout.prefix_and_header += json;
  for (std::uint64_t& b : layout.begin) b += layout.prefix_and_header.size();
  layout.file_bytes = layout.prefix_and_header.size() + offset;
  return layout;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::string& path, const std::vector<TensorInfo>& tensors,
                                     const SafetensorsMetadata& metadata)
    : path_(path), temp_path_(path + ".tmp." + std::to_string(::getpid())), left_(tensors.size()) {
  const Layout layout = plan_layout(tensors, metadata);
  file_bytes_ = layout.file_bytes;
  for (std::size_t i = 0; i < tensors.size(); ++i)
    slots_[tensors[i].name] = {.begin = layout.begin[i], .bytes = bytes_of(tensors[i])};
  fd_ = ::open(temp_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) fail("create");
  // EINVAL and EOPNOTSUPP: a filesystem that cannot reserve; then the writes themselves find a full disk.
  const int error = ::posix_fallocate(fd_, 0, static_cast<off_t>(file_bytes_));
  try {
    if (error != 0 && error != EINVAL && error != EOPNOTSUPP) {
      errno = error;
      fail("reserve");
    }
    write_at(0, layout.prefix_and_header.data(), layout.prefix_and_header.size());
  } catch (...) {  // a constructor that throws gets no destructor
    ::close(fd_);
    ::unlink(temp_path_.c_str());
    throw;
  }
}

SafetensorsWriter::~SafetensorsWriter() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temp_path_.c_str());
}

void SafetensorsWriter::fail(const std::string& action) const {
  const int error = errno;
  throw Error(
      {.what = path_,
       .found = "cannot " + action + " the file: " + std::strerror(error),
       .expected = "room for " + std::to_string(file_bytes_) + " bytes and permission to write",
       .hint = error == ENOSPC || error == EDQUOT || error == EFBIG ? "free some space or write elsewhere" : ""});
}

void SafetensorsWriter::write_at(std::uint64_t offset, const void* data, std::size_t bytes) {
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

void SafetensorsWriter::write(std::string_view name, const void* data, std::size_t bytes) {
  const auto it = slots_.find(std::string(name));
  CHECK(it != slots_.end(), "no tensor " + std::string(name) + " in the plan of " + path_);
  CHECK(!it->second.written && bytes == it->second.bytes, std::string(name) + ": " + std::to_string(bytes) + " bytes");
  write_at(it->second.begin, data, bytes);
  it->second.written = true;
  --left_;
}

void SafetensorsWriter::finish() {
  CHECK(fd_ >= 0 && left_ == 0, std::to_string(left_) + " tensors not written to " + path_);
  if (::fsync(fd_) != 0) fail("write");
  if (::rename(temp_path_.c_str(), path_.c_str()) != 0) fail("rename");
  ::close(fd_);
  fd_ = -1;
}

void write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                       const SafetensorsMetadata& metadata) {
  std::vector<TensorInfo> infos;
  infos.reserve(tensors.size());
  for (const NamedTensor& t : tensors) infos.push_back({t.name, t.view.dtype, t.view.shape});
  SafetensorsWriter writer(path, infos, metadata);
  for (const NamedTensor& t : tensors) writer.write(t.name, t.view.data, t.view.bytes());
  writer.finish();
}

}  // namespace glint
