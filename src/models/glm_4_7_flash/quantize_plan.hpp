#pragma once
// The tensors of a loaded model in the order in which they are quantised and written.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "models/glm_4_7_flash/quant_recipe.hpp"
#include "weights/checkpoint.hpp"

namespace glint {

struct ModelTensor {
  const TensorSpec* spec = nullptr;
  std::int64_t layer = -1;
  std::int64_t expert = -1;
  Weight* weight = nullptr;   // a matrix …
  ConstView* view = nullptr;  // … or a vector or router

  std::string name() const { return hf_name(*spec, layer, expert); }
  std::string base() const;  // the name without ".weight"
};

// Embedding, final norm and head; then each layer's tensors; then the MTP layer's. What the MTP layer shares with the
// model is listed once.
std::vector<ModelTensor> list_tensors(ModelWeights& model);

// The matrix as floats, decoded by several threads.
class ThreadPool;
std::vector<float> weight_values(const Weight& w, ThreadPool& pool);

// Tells the kernel that a mapped range will not be read again: keeps the resident size of a 62 GB input small.
void release_pages(const void* data, std::size_t bytes);

// config.json's quantization_config for those tensors and the recipe; empty when nothing is quantised.
std::string describe_recipe(const std::vector<ModelTensor>& tensors, const QuantRecipe& recipe,
                            const ModelConfig& config);

}  // namespace glint
