#pragma once
// Writes the model as a GGUF file that llama.cpp loads (architecture deepseek2).

#include <string>

#include "models/glm_4_7_flash/model_weights.hpp"
#include "weights/gguf_writer.hpp"

namespace glint {

struct GgufExport {
  // Matrices; a row that is no multiple of the type's block becomes Q8_0, and if it is none of 32, F16. Norms, router
  // and correction bias are F32. With a block type kv_b is Q8_0: it is small and every score depends on it.
  GgufType type = GgufType::kBF16;
  GgufType head_type = GgufType::kBF16;  // output.weight and the MTP layer's eh_proj
  bool mtp = true;                       // with the MTP layer, if the model has one
};

// "f32", "f16", "bf16", "q8_0", "q4_0", "q4_k"; nothing for other names.
std::optional<GgufType> gguf_export_type(std::string_view name);

// All keys of model facts §4.3 but the tokenizer's, which the caller adds.
void add_gguf_config(GgufMetadataBuilder& metadata, const ModelConfig& config, const GgufExport& options);

// Streams the tensors of `model` (host memory, any format) to `path`: needs memory for a few rows a thread. kv_b is
// written in its split form.
void export_gguf(const std::string& path, const ModelWeights& model, const GgufMetadataBuilder& metadata,
                 const GgufExport& options, const LoadProgress& progress = {});

// The same for random weights of any shape, which are never held: pieces of a pool of encoded random values, of the
// scales that synthetic_weights has. A model of 17 GB needs a few MB of memory and the time to write it.
void export_synthetic_gguf(const std::string& path, const ModelConfig& config, std::uint64_t seed,
                           const GgufMetadataBuilder& metadata, const GgufExport& options,
                           const LoadProgress& progress = {});

}  // namespace glint
