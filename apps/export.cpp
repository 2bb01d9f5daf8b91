// glint export: writes the model, or random weights of its shape, as a GGUF file for other engines.

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include "backends/reference/reference.hpp"
#include "base/error.hpp"
#include "base/file.hpp"
#include "command.hpp"
#include "engine/gguf_tokenizer.hpp"
#include "model_dir.hpp"
#include "models/glm_4_7_flash/export_gguf.hpp"
#include "progress.hpp"
#include "text/tokenizer_json.hpp"

namespace glint::apps {
namespace {

struct ExportFlags {
  std::string model;
  std::string out;
  std::string type = "bf16";
  std::string head_type;
  std::string chat_template;
  std::int64_t synthetic_layers = 0;
  std::uint64_t seed = 1;
  bool no_mtp = false;
  bool force = false;
};

// A vocabulary for random weights: the 256 bytes, one merge, tokens that no text becomes, and the official control
// tokens at the official places, so that a chat's end is recognised.
TokenizerSpec placeholder_vocabulary(const ModelConfig& config) {
  constexpr std::int32_t kFirstAdded = 154820;  // model facts §5.3
  constexpr const char* kAdded[] = {"<|endoftext|>", "[MASK]",     "[gMASK]",  "[sMASK]",       "<sop>",
                                    "<eop>",         "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"};
  TokenizerSpec spec;
  for (std::int32_t b = 0; b < 256; ++b) {
    spec.tokens.push_back({std::string(1, static_cast<char>(b)), b});
    spec.byte_ids[static_cast<std::size_t>(b)] = b;
  }
  spec.tokens.push_back({"  ", 256});
  spec.merges.push_back({' ', ' ', 256});
  spec.ignore_merges = true;
  const std::int32_t end = std::min<std::int32_t>(kFirstAdded, static_cast<std::int32_t>(config.vocab));
  for (std::int32_t id = 257; id < end; ++id) spec.tokens.push_back({"token" + std::to_string(id), id});
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(std::size(kAdded)); ++i) {
    if (kFirstAdded + i < config.vocab)
      spec.added.push_back({.id = kFirstAdded + i, .content = kAdded[i], .special = true});
  }
  for (const AddedToken& t : spec.added) spec.tokens.push_back({t.content, t.id, /*searchable=*/false});
  return spec;
}

GgufType type_named(const std::string& flag, const std::string& name) {
  const auto type = gguf_export_type(name);
  if (!type) throw Error({.what = flag, .found = name, .expected = "f32, f16, bf16, q8_0, q4_0 or q4_k"});
  return *type;
}

// --chat-template, or chat_template.jinja of the model's directory, as other converters do.
void add_chat_template(GgufMetadataBuilder& metadata, const ExportFlags& flags, const std::string& dir) {
  std::string path = flags.chat_template;
  std::error_code ec;
  if (path.empty() && !dir.empty() && std::filesystem::exists(dir + "/chat_template.jinja", ec))
    path = dir + "/chat_template.jinja";
  if (!path.empty()) metadata.add_text("tokenizer.chat_template", read_file(path));
}

int run_export(const ExportFlags& flags) {
  GgufExport options;
  options.type = type_named("--type", flags.type);
  const bool four_bits = options.type == GgufType::kQ4_0 || options.type == GgufType::kQ4_K;
  options.head_type = !flags.head_type.empty() ? type_named("--head-type", flags.head_type)
                      : four_bits              ? GgufType::kQ8_0
                                               : options.type;
  options.mtp = !flags.no_mtp;
  std::error_code ec;
  if (std::filesystem::exists(flags.out, ec) && !flags.force) {
    throw Error({.what = flags.out, .found = "a file", .expected = "a new name", .hint = "--force overwrites it"});
  }
  ProgressBar bar("writing", Unit::kBytes, stderr_is_terminal());
  const LoadProgress progress = [&](std::uint64_t done, std::uint64_t total) { bar.update(done, total); };
  GgufMetadataBuilder metadata;
  if (flags.synthetic_layers > 0) {
    ModelConfig config = real_config();
    config.n_layers = flags.synthetic_layers;
    add_gguf_config(metadata, config, options);
    metadata.add_text("general.name", fmt::format("random weights, {} layers", config.n_layers));
    add_gguf_tokenizer(metadata, placeholder_vocabulary(config), config);
    add_chat_template(metadata, flags, "");
    export_synthetic_gguf(flags.out, config, flags.seed, metadata, options, progress);
  } else {
    const std::string dir = resolve_model_dir(flags.model);
    const std::unique_ptr<Ops> ops = make_reference_ops();
    const ModelWeights model = load_weights(dir, *ops);
    if (model.mtp == nullptr) options.mtp = false;
    add_gguf_config(metadata, model.config, options);
    metadata.add_text("general.name", std::filesystem::path(dir).filename().string());
    const std::string tokenizer = dir + "/tokenizer.json";
    add_gguf_tokenizer(metadata, parse_tokenizer_json(read_file(tokenizer), tokenizer), model.config);
    add_chat_template(metadata, flags, dir);
    export_gguf(flags.out, model, metadata, options, progress);
  }
  bar.clear();
  const auto bytes = static_cast<double>(std::filesystem::file_size(flags.out, ec));
  fmt::print("{}: {}\n", flags.out, human_bytes(bytes));
  return 0;
}

}  // namespace

void register_export(CLI::App& app, Run& run) {
  auto flags = std::make_shared<ExportFlags>();
  CLI::App* c = app.add_subcommand("export", "Write the model as a GGUF file (llama.cpp's deepseek2)");
  c->add_option("-m,--model", flags->model, "Checkpoint directory (default: $GLINT_MODEL, else the bundled model)");
  c->add_option("-o,--out", flags->out, "The GGUF file to write")->required();
  c->add_option("--type", flags->type, "Matrices: f32, f16, bf16, q8_0, q4_0 or q4_k")->capture_default_str();
  c->add_option("--head-type", flags->head_type, "lm_head and eh_proj (default: --type, or q8_0 if that has 4 bits)");
  c->add_option("--synthetic", flags->synthetic_layers,
                "Random weights of the real shape with this many layers instead")
      ->check(CLI::Range(1, 1024));
  c->add_option("--seed", flags->seed, "Of the random weights")->capture_default_str();
  c->add_option("--chat-template", flags->chat_template, "Jinja file to store (default: the model's, if it has one)");
  c->add_flag("--no-mtp", flags->no_mtp, "Leave the multi-token-prediction layer out");
  c->add_flag("--force", flags->force, "Overwrite an existing file");
  c->footer("glint export -o tiny.gguf --type q8_0\nglint export --synthetic 47 -o real-q4.gguf --type q4_0");
  c->callback([flags, &run] { run = [flags] { return run_export(*flags); }; });
}

}  // namespace glint::apps
