#include "engine/gguf_tokenizer.hpp"

#include <algorithm>
#include <iterator>

#include "text/gguf_vocab.hpp"

namespace glint {
namespace {

constexpr std::string_view kIgnoreMerges = "glint.tokenizer.ignore_merges";

void must_be(const GgufMetadata& m, std::string_view key, std::string_view value) {
  const auto v = m.text(key);
  if (v != value) {
    m.refuse(key, v ? '"' + std::string(*v) + '"' : "nothing", '"' + std::string(value) + '"',
             "GLM-4.7-Flash has GLM-4's byte-level BPE");
  }
}

}  // namespace

Tokenizer gguf_tokenizer(const GgufModel& file) {
  const GgufMetadata& m = file.metadata();
  must_be(m, "tokenizer.ggml.model", "gpt2");
  must_be(m, "tokenizer.ggml.pre", "glm4");
  const auto texts = [&](std::string_view key) {
    const auto* v = m.texts(key);
    if (v == nullptr) m.refuse(key, "nothing", "an array of strings");
    return *v;
  };
  GgufVocabView vocab;
  vocab.tokens = texts("tokenizer.ggml.tokens");
  vocab.merges = texts("tokenizer.ggml.merges");
  auto types = m.integers("tokenizer.ggml.token_type");
  if (!types) m.refuse("tokenizer.ggml.token_type", "nothing", "an array of integers");
  vocab.types = std::move(*types);
  vocab.ignore_merges = m.flag(kIgnoreMerges).value_or(true);
  return Tokenizer::from_spec(spec_from_gguf(vocab, m.source()));
}

void add_gguf_tokenizer(GgufMetadataBuilder& metadata, const TokenizerSpec& spec, const ModelConfig& config) {
  const GgufVocab vocab = gguf_from_spec(spec, config.vocab);
  metadata.add_text("tokenizer.ggml.model", "gpt2");
  metadata.add_text("tokenizer.ggml.pre", "glm4");
  metadata.add_texts("tokenizer.ggml.tokens", vocab.tokens);
  metadata.add_i32s("tokenizer.ggml.token_type", vocab.types);
  metadata.add_texts("tokenizer.ggml.merges", vocab.merges);
  const char* const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                              "tokenizer.ggml.eom_token_id"};
  for (std::size_t i = 0; i < std::min(std::size(keys), config.eos_ids.size()); ++i)
    metadata.add_u32(keys[i], static_cast<std::uint32_t>(config.eos_ids[i]));
  if (config.pad_id >= 0)
    metadata.add_u32("tokenizer.ggml.padding_token_id", static_cast<std::uint32_t>(config.pad_id));
  for (const AddedToken& t : spec.added) {
    if (t.content == "[gMASK]") metadata.add_u32("tokenizer.ggml.bos_token_id", static_cast<std::uint32_t>(t.id));
  }
  metadata.add_bool("tokenizer.ggml.add_bos_token", false);  // [gMASK]<sop> comes from the chat template
  if (!spec.ignore_merges) metadata.add_bool(kIgnoreMerges, false);
}

}  // namespace glint
