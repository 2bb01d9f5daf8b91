#pragma once
// GGUF files (versions 2 and 3, little-endian): [magic][version][counts][metadata][tensor list][padding][data]. The
// reader maps the file and trusts nothing in it. Layout: the GGUF specification of ggml. Dimensions are listed
// innermost first there ("ne"); Glint's shapes are outermost first.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/file.hpp"
#include "tensor/tensor.hpp"
#include "weights/gguf_types.hpp"

namespace glint {

struct GgufTensor {
  std::string name;
  GgufType type = GgufType::kF32;
  Shape shape;              // outermost first: ne = [shape[rank-1], …, shape[0]]
  std::uint64_t begin = 0;  // bytes from the start of the file
  std::uint64_t end = 0;
};

// The types of metadata values, by their number in the file.
enum class GgufKind : std::uint8_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };
std::string_view gguf_kind_name(GgufKind kind);

// One metadata value. Strings and array elements point into the file.
struct GgufValue {
  GgufKind kind = GgufKind::kU32;
  std::int64_t integer = 0;               // integer kinds and bool; a u64 above the range of int64 becomes INT64_MAX
  double number = 0;                      // float kinds
  std::string_view text;                  // string
  GgufKind element = GgufKind::kU32;      // array: of what
  std::uint64_t count = 0;                // array: how many
  std::span<const std::byte> bytes{};     // array of numbers: count values, not aligned
  std::vector<std::string_view> texts{};  // array of strings
};

// Metadata by key. The getters return nothing for a missing key and throw Error (file, key, found, expected) for a
// value of another type or out of range.
class GgufMetadata {
 public:
  GgufMetadata() = default;
  GgufMetadata(GgufMetadata&&) = default;  // no copies: by_key_ points into entries_
  GgufMetadata& operator=(GgufMetadata&&) = default;

  struct Entry {
    std::string key;
    GgufValue value;
  };

  const std::vector<Entry>& entries() const { return entries_; }
  const std::string& source() const { return source_; }
  const GgufValue* find(std::string_view key) const;

  std::optional<std::int64_t> integer(std::string_view key, std::int64_t min, std::int64_t max) const;
  std::optional<double> number(std::string_view key, double min, double max) const;
  std::optional<bool> flag(std::string_view key) const;
  std::optional<std::string_view> text(std::string_view key) const;
  const std::vector<std::string_view>* texts(std::string_view key) const;         // null when missing
  std::optional<std::vector<std::int64_t>> integers(std::string_view key) const;  // an array of integers
  std::int64_t required_integer(std::string_view key, std::int64_t min, std::int64_t max) const;
  // "FILE: metadata KEY: found …, expected …"
  [[noreturn]] void refuse(std::string_view key, std::string found, std::string expected, std::string hint = {}) const;

 private:
  friend class GgufParser;
  std::string source_;
  std::vector<Entry> entries_;
  std::unordered_map<std::string_view, std::size_t>
      by_key_;  // keys point into entries_, which never grows after parsing
};

struct GgufHeader {
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;
  std::uint64_t data_begin = 0;
  GgufMetadata metadata;
  std::vector<GgufTensor> tensors;  // in the order of the file's list
};

// Parses and checks the header of a whole file's bytes; `source` names the file in errors. Throws Error unless magic,
// version, counts, lengths and value types are sound, keys and tensor names are unique, every tensor has 1 to 4
// dimensions whose product fits, whole blocks a row, a type of ggml's list, and an aligned place inside the data that
// no other tensor shares.
GgufHeader parse_gguf(std::span<const std::byte> file, std::string_view source);

// A model in one file, or in several ("NAME-00001-of-00003.gguf" …), mapped.
class GgufModel {
 public:
  // `path` names the file, or the first file of a split model, whose others lie beside it. Throws Error when a file is
  // damaged or missing, or when the files of a split model do not belong together.
  explicit GgufModel(const std::string& path);
  GgufModel(const GgufModel&) = delete;  // tensors point into files_
  GgufModel& operator=(const GgufModel&) = delete;

  struct Tensor {
    const MappedFile* file = nullptr;
    const GgufTensor* entry = nullptr;
    const std::byte* data() const { return file->bytes().data() + entry->begin; }
    std::uint64_t bytes() const { return entry->end - entry->begin; }
    // "DIR/model.gguf: tensor NAME", the subject of an Error.
    std::string what() const { return file->path() + ": tensor " + entry->name; }
    // Tells the kernel that these pages are done with: they stay in the page cache, not in this process.
    void drop_pages() const { file->drop_pages(data(), bytes()); }
  };

  const std::string& path() const { return path_; }
  const GgufMetadata& metadata() const { return headers_.front().metadata; }
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const Tensor* find(std::string_view name) const;  // null when absent
  std::uint64_t data_bytes() const { return data_bytes_; }
  std::size_t n_files() const { return files_.size(); }

 private:
  void open_parts();
  void list_tensors();

  std::string path_;
  std::vector<MappedFile> files_;
  std::vector<GgufHeader> headers_;  // one a file
  std::vector<Tensor> tensors_;
  std::unordered_map<std::string_view, std::size_t> by_name_;
  std::uint64_t data_bytes_ = 0;
};

// The GGUF model that `path` means: a file that ends in .gguf, or the only model among the .gguf files of a directory
// without safetensors (the first file of a split one). Nothing for any other path. Throws Error when a directory holds
// several GGUF models.
std::optional<std::string> find_gguf(const std::string& path);

}  // namespace glint
