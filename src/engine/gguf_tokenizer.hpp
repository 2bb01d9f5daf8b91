#pragma once
// The tokenizer inside a GGUF file.

#include "models/glm_4_7_flash/model_weights.hpp"
#include "text/tokenizer.hpp"
#include "text/tokenizer_json.hpp"
#include "weights/gguf_writer.hpp"

namespace glint {

// From tokenizer.ggml.{model, pre, tokens, token_type, merges}. Throws Error (file, key, found, expected) for anything
// but GLM's byte-level BPE: model "gpt2", pre "glm4".
Tokenizer gguf_tokenizer(const GgufModel& file);

// The same keys and the special ids: eos, eot and eom from the config's eos_ids (in this order, as the official ones
// are), bos [gMASK], the template's first token. Where merges may not be ignored, which GLM's own tokenizer never asks
// for, the key glint.tokenizer.ignore_merges says so.
void add_gguf_tokenizer(GgufMetadataBuilder& metadata, const TokenizerSpec& spec, const ModelConfig& config);

}  // namespace glint
