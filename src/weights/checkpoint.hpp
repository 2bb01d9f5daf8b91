#pragma once
// A checkpoint directory: model.safetensors, or model.safetensors.index.json and the shards that it names.

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "weights/safetensors.hpp"

namespace glint {

class Checkpoint {
 public:
  struct Tensor {
    const SafetensorsFile* file = nullptr;
    const SafetensorsEntry* entry = nullptr;
    ConstView view() const { return file->view(*entry); }
    // "DIR/model-00001-of-00048.safetensors: tensor NAME", the subject of an Error.
    std::string what() const { return file->path() + ": tensor " + entry->name; }
  };

  // Maps every file. A single file wins over an index. The index is used for names only (its total_size is wrong in
  // the official checkpoint, model facts §4.1). Throws Error when nothing is there, a shard is missing or damaged, or
  // a tensor is in another shard than the index says, in two shards, or in none.
  explicit Checkpoint(const std::string& dir);
  Checkpoint(const Checkpoint&) = delete;  // tensors point into files_
  Checkpoint& operator=(const Checkpoint&) = delete;

  const std::string& dir() const { return dir_; }
  const std::vector<SafetensorsFile>& files() const { return files_; }
  // In the order of files and of the data in them.
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const Tensor* find(std::string_view name) const;  // null when absent
  std::uint64_t data_bytes() const { return data_bytes_; }

  // For who reads a model once: MappedFile::drop_pages of a range, if it lies in one of the files, or of every file.
  void drop_pages(const void* data, std::size_t bytes) const;
  void drop_pages() const;

 private:
  void open_shards(const std::string& index_path);
  void list_tensors();

  std::string dir_;
  std::vector<SafetensorsFile> files_;
  std::vector<Tensor> tensors_;
  std::unordered_map<std::string_view, std::size_t> by_name_;
  std::uint64_t data_bytes_ = 0;
};

// How many elements of a float tensor are NaN or infinite; 0 for integer types.
std::uint64_t count_non_finite(const ConstView& view);

}  // namespace glint
