#include "weights/gguf.hpp"

#include <algorithm>
#include <filesystem>

#include "base/error.hpp"

namespace glint {
namespace {

namespace fs = std::filesystem;

// "…-00002-of-00003.gguf"
struct SplitName {
  std::string stem;  // all before "-00002"
  std::int64_t number = 0;
  std::int64_t count = 0;
};

std::optional<SplitName> split_name(const std::string& path) {
  constexpr std::size_t kTail = std::string_view("-00001-of-00003.gguf").size();
  if (path.size() <= kTail) return std::nullopt;
  const std::string tail = path.substr(path.size() - kTail);
  constexpr std::string_view shape = "-ddddd-of-ddddd.gguf";  // d: a digit
  for (std::size_t i = 0; i < kTail; ++i) {
    const bool digit = tail[i] >= '0' && tail[i] <= '9';
    if (shape[i] == 'd' ? !digit : tail[i] != shape[i]) return std::nullopt;
  }
  return SplitName{path.substr(0, path.size() - kTail), std::stoll(tail.substr(1, 5)), std::stoll(tail.substr(10, 5))};
}

std::string part_path(const SplitName& name, std::int64_t number) {
  const auto five = [](std::int64_t n) {
    const std::string s = std::to_string(n);
    return std::string(5 - std::min<std::size_t>(5, s.size()), '0') + s;
  };
  return name.stem + "-" + five(number) + "-of-" + five(name.count) + ".gguf";
}

constexpr std::int64_t kMaxParts = 65535;

}  // namespace

GgufModel::GgufModel(const std::string& path) : path_(path) {
  files_.emplace_back(path);
  headers_.push_back(parse_gguf(files_.back().bytes(), path));
  open_parts();
  list_tensors();
}

void GgufModel::open_parts() {
  const GgufMetadata& first = headers_.front().metadata;
  const std::int64_t count = first.integer("split.count", 0, kMaxParts).value_or(1);
  if (count <= 1) return;
  const std::optional<SplitName> name = split_name(path_);
  if (!name || name->count != count) {
    throw Error({.what = path_,
                 .found = "a file name without its part number",
                 .expected = "NAME-00001-of-" + std::to_string(count) + ".gguf, as split.count says"});
  }
  if (name->number != 1 || first.integer("split.no", 0, kMaxParts).value_or(0) != 0) {
    throw Error({.what = path_,
                 .found = "part " + std::to_string(name->number) + " of a split model",
                 .expected = "the first part, " + part_path(*name, 1)});
  }
  files_.reserve(static_cast<std::size_t>(count));
  for (std::int64_t i = 1; i < count; ++i) {
    const std::string path = part_path(*name, i + 1);
    files_.emplace_back(path);
    headers_.push_back(parse_gguf(files_.back().bytes(), path));
    const GgufMetadata& m = headers_.back().metadata;
    if (const std::int64_t no = m.required_integer("split.no", 0, kMaxParts); no != i)
      m.refuse("split.no", std::to_string(no), std::to_string(i) + ", as the file's name says");
    if (const std::int64_t n = m.required_integer("split.count", 0, kMaxParts); n != count)
      m.refuse("split.count", std::to_string(n), std::to_string(count) + ", as in " + path_);
  }
}

void GgufModel::list_tensors() {
  for (std::size_t f = 0; f < files_.size(); ++f) {
    for (const GgufTensor& t : headers_[f].tensors) {
      tensors_.push_back({&files_[f], &t});
      data_bytes_ += t.end - t.begin;
    }
  }
  by_name_.reserve(tensors_.size());
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    if (const auto [it, added] = by_name_.emplace(tensors_[i].entry->name, i); !added) {
      throw Error({.what = tensors_[i].what(),
                   .found = "a tensor that is also in " + tensors_[it->second].file->path(),
                   .expected = "each tensor in one file"});
    }
  }
  const GgufMetadata& m = metadata();
  const auto total = m.integer("split.tensors.count", 0, INT64_MAX);
  if (files_.size() > 1 && total && *total != static_cast<std::int64_t>(tensors_.size())) {
    m.refuse("split.tensors.count", std::to_string(*total),
             std::to_string(tensors_.size()) + ", the tensors in " + std::to_string(files_.size()) + " files");
  }
}

const GgufModel::Tensor* GgufModel::find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &tensors_[it->second];
}

std::optional<std::string> find_gguf(const std::string& path) {
  std::error_code ec;
  if (!fs::is_directory(path, ec)) return path.ends_with(".gguf") ? std::optional(path) : std::nullopt;
  for (const char* name : {"model.safetensors", "model.safetensors.index.json"}) {
    if (fs::exists(fs::path(path) / name, ec)) return std::nullopt;
  }
  std::vector<std::string> models;  // single files and first parts
  for (const fs::directory_entry& entry : fs::directory_iterator(path, ec)) {
    const std::string file = entry.path().string();
    if (!file.ends_with(".gguf") || entry.is_directory(ec)) continue;
    const std::optional<SplitName> split = split_name(file);
    if (!split || split->number == 1) models.push_back(file);
  }
  if (models.empty()) return std::nullopt;
  std::sort(models.begin(), models.end());
  if (models.size() > 1) {
    throw Error({.what = path,
                 .found = std::to_string(models.size()) + " GGUF models (" + models[0] + ", " + models[1] + " …)",
                 .expected = "one",
                 .hint = "name the file"});
  }
  return models[0];
}

}  // namespace glint
