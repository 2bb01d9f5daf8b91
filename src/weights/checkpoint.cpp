#include "weights/checkpoint.hpp"

#include <cstring>
#include <filesystem>
#include <map>

#include "base/error.hpp"
#include "base/json.hpp"

namespace glint {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

bool is_there(const fs::path& path) {
  std::error_code ec;
  return fs::exists(path, ec);
}

// name → shard. Shards are plain file names: an index must not reach outside its directory.
std::map<std::string, std::string> read_index(const std::string& path) {
  const json::value document = json::parse_file(path);
  const json::value* map = document.is_object() ? document.get_object().if_contains("weight_map") : nullptr;
  if (map == nullptr || !map->is_object())
    throw Error({.what = path, .found = "no weight_map", .expected = "an object of tensor names and shard files"});
  std::map<std::string, std::string> shard_of;
  for (const auto& [name, shard] : map->get_object()) {
    const std::string file = shard.is_string() ? std::string(shard.get_string()) : "";
    if (file.empty() || file == "." || file == ".." || file.find_first_of(std::string_view("/\\\0", 3)) != file.npos) {
      throw Error({.what = path + ": tensor " + std::string(name),
                   .found = json::serialize(shard),
                   .expected = "the name of a file in the same directory"});
    }
    shard_of.emplace(name, file);
  }
  if (shard_of.empty()) throw Error({.what = path, .found = "an empty weight_map", .expected = "tensor names"});
  return shard_of;
}

}  // namespace

Checkpoint::Checkpoint(const std::string& dir) : dir_(dir) {
  const fs::path base(dir);
  if (!is_there(base)) throw Error({.what = dir, .found = "no such directory", .expected = "a model directory"});
  if (is_there(base / kSingle)) {
    files_.emplace_back((base / kSingle).string());
    list_tensors();
  } else if (is_there(base / kIndex)) {
    open_shards((base / kIndex).string());
  } else {
    throw Error(
        {.what = dir, .found = "no weights", .expected = std::string(kSingle) + ", or " + kIndex + " with its shards"});
  }
}

void Checkpoint::open_shards(const std::string& index_path) {
  const std::map<std::string, std::string> shard_of = read_index(index_path);
  std::map<std::string, std::size_t> tensors_in;  // shard → tensors that the index expects there
  for (const auto& [name, shard] : shard_of) ++tensors_in[shard];
  for (const auto& [shard, count] : tensors_in) {
    const std::string path = (fs::path(dir_) / shard).string();
    if (!is_there(path)) {
      throw Error({.what = path,
                   .found = "no such file",
                   .expected = "the shard of " + std::to_string(count) + " tensors",
                   .hint = "the download is incomplete"});
    }
    files_.emplace_back(path);
  }
  list_tensors();
  for (const auto& [name, shard] : shard_of) {
    const Tensor* t = find(name);
    const std::string expected = "it in " + shard + ", as " + kIndex + " says";
    if (t == nullptr) throw Error({.what = dir_ + ": tensor " + name, .found = "no such tensor", .expected = expected});
    if (fs::path(t->file->path()).filename() != shard)
      throw Error({.what = t->what(), .found = "the tensor here", .expected = expected});
  }
  for (const Tensor& t : tensors_) {
    if (!shard_of.contains(t.entry->name))
      throw Error(
          {.what = t.what(), .found = "a tensor that is not in " + std::string(kIndex), .expected = "its name there"});
  }
}

void Checkpoint::list_tensors() {
  for (const SafetensorsFile& file : files_) {
    for (const SafetensorsEntry& entry : file.tensors()) {
      const auto [it, added] = by_name_.emplace(entry.name, tensors_.size());
      if (!added) {
        throw Error({.what = dir_ + ": tensor " + entry.name,
                     .found = "it in " + tensors_[it->second].file->path() + " and in " + file.path(),
                     .expected = "one"});
      }
      tensors_.push_back({&file, &entry});
      data_bytes_ += entry.end - entry.begin;
    }
  }
}

const Checkpoint::Tensor* Checkpoint::find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &tensors_[it->second];
}

void Checkpoint::drop_pages(const void* data, std::size_t bytes) const {
  for (const SafetensorsFile& file : files_) file.map().drop_pages(data, bytes);
}

void Checkpoint::drop_pages() const {
  for (const SafetensorsFile& file : files_) file.map().drop_pages();
}

namespace {

// The exponent bits all set mean NaN or infinity in F32, F16 and BF16.
template <typename T, T kExponent>
std::uint64_t count_bits(const void* data, std::int64_t n) {
  const auto* p = static_cast<const T*>(data);
  std::uint64_t count = 0;
  for (std::int64_t i = 0; i < n; ++i) count += (p[i] & kExponent) == kExponent ? 1U : 0U;
  return count;
}

std::uint64_t count_f8_nan(const void* data, std::int64_t n) {
  const auto* p = static_cast<const std::uint8_t*>(data);
  std::uint64_t count = 0;
  for (std::int64_t i = 0; i < n; ++i) count += (p[i] & 0x7f) == 0x7f ? 1U : 0U;
  return count;
}

}  // namespace

std::uint64_t count_non_finite(const ConstView& view) {
  const std::int64_t n = view.shape.elements();
  switch (view.dtype) {
    case DType::kF32:
      return count_bits<std::uint32_t, 0x7f800000U>(view.data, n);
    case DType::kF16:
      return count_bits<std::uint16_t, 0x7c00U>(view.data, n);
    case DType::kBF16:
      return count_bits<std::uint16_t, 0x7f80U>(view.data, n);
    case DType::kF8E4M3:
      return count_f8_nan(view.data, n);
    default:
      return 0;
  }
}

}  // namespace glint
