#pragma once
// Writes GGUF files of version 3 that the reader (and everybody's) accepts.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "weights/gguf.hpp"

namespace glint {

// Metadata to be written, in the order of the calls. Each key once.
class GgufMetadataBuilder {
 public:
  void add_u16(std::string_view key, std::uint16_t v);
  void add_u32(std::string_view key, std::uint32_t v);
  void add_i32(std::string_view key, std::int32_t v);
  void add_f32(std::string_view key, float v);
  void add_bool(std::string_view key, bool v);
  void add_text(std::string_view key, std::string_view v);
  void add_texts(std::string_view key, std::span<const std::string> v);
  void add_i32s(std::string_view key, std::span<const std::int32_t> v);

  std::uint64_t count() const { return count_; }
  const std::string& bytes() const { return bytes_; }

 private:
  void begin(std::string_view key, GgufKind kind);
  template <typename T>
  void put(T v);
  void put_text(std::string_view v);

  std::uint64_t count_ = 0;
  std::string bytes_;
};

struct GgufTensorInfo {
  std::string name;
  GgufType type = GgufType::kF32;
  Shape shape;  // outermost first
};

// Writes a file of known layout piece by piece, in any order of tensors, so that a model of any size needs little
// memory. The data goes to a temporary file beside `path`, which finish() renames; an unfinished writer leaves nothing
// behind. Space is reserved at once. Throws Error when the file cannot be made or written.
class GgufWriter {
 public:
  GgufWriter(const std::string& path, const GgufMetadataBuilder& metadata, const std::vector<GgufTensorInfo>& tensors);
  GgufWriter(const GgufWriter&) = delete;
  GgufWriter& operator=(const GgufWriter&) = delete;
  ~GgufWriter();

  // The next `bytes` bytes of tensor `name`.
  void append(std::string_view name, const void* data, std::size_t bytes);
  std::uint64_t data_bytes() const { return data_bytes_; }
  std::uint64_t file_bytes() const { return file_bytes_; }
  void finish();  // every tensor must be complete (CHECK)

 private:
  struct Place {
    std::uint64_t next = 0;
    std::uint64_t end = 0;
  };
  void write_at(std::uint64_t offset, const void* data, std::size_t bytes);
  [[noreturn]] void fail(const std::string& action) const;

  std::string path_;
  std::string temp_path_;
  int fd_ = -1;
  std::uint64_t file_bytes_ = 0;
  std::uint64_t data_bytes_ = 0;
  std::unordered_map<std::string, Place> places_;
};

}  // namespace glint
