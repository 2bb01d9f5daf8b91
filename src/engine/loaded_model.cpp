#include "engine/loaded_model.hpp"

#include <algorithm>

#include "backends/cpu/cpu.hpp"
#ifdef GLINT_CUDA
#include "backends/cuda/cuda.hpp"
#endif
#include "backends/reference/reference.hpp"
#include "base/clock.hpp"
#include "base/error.hpp"
#include "engine/gguf_tokenizer.hpp"
#include "models/glm_4_7_flash/load_gguf.hpp"
#include "models/glm_4_7_flash/memory_plan.hpp"
#include "models/glm_4_7_flash/quantize.hpp"
#include "ops/kv_codec.hpp"

namespace glint {
namespace {

// The official checkpoint's padding rows (model facts §0); random weights of that shape have no tokenizer to ask.
constexpr std::int64_t kOfficialVocab = 154880;
constexpr std::int64_t kOfficialTokens = 154856;

std::unique_ptr<Ops> make_ops(const EngineOptions& options) {
  if (options.device == "cpu") return make_cpu_ops({.isa = options.isa, .threads = options.threads});
  if (options.device == "reference") return make_reference_ops();
#ifdef GLINT_CUDA
  if (options.device == "cuda") return make_cuda_ops({});
  throw Error({.what = "device", .found = '"' + options.device + '"', .expected = "cpu, cuda or reference"});
#else
  throw Error({.what = "device",
               .found = '"' + options.device + '"',
               .expected = "cpu or reference",
               .hint = options.device == "cuda" ? "this build has no CUDA: configure with -DGLINT_CUDA=ON" : ""});
#endif
}

std::int64_t count_parameters(const LoadedModel& model) {
  const ModelSize size = model_size(model.weights.config);
  // The size is that of an official checkpoint, whose MTP layer has an embedding and a head of its own.
  std::int64_t n = size.total.params;
  const ModelWeights& w = model.weights;
  if (w.config.n_mtp_layers > 0 && w.mtp == nullptr) n -= size.mtp.params;
  if (w.mtp != nullptr && w.mtp->embed.data == w.embed.data) n -= w.embed.rows * w.embed.cols;
  if (w.mtp != nullptr && w.mtp->head.data == w.lm_head.data) n -= w.lm_head.rows * w.lm_head.cols;
  if (w.lm_head.data == w.embed.data) n -= w.lm_head.rows * w.lm_head.cols;
  return n;
}

}  // namespace

KvCodec kv_codec(const EngineOptions& options) {
  // Of those with 16 bits the host reads INT16, which its attention multiplies as it lies
  // (docs/experiments/2026-11-30-cpu-int16-codec.md).
  if (options.kv == "auto") return options.device == "cuda" ? KvCodec::kBF16 : KvCodec::kInt16;
  if (const auto codec = kv_codec_from_name(options.kv)) return *codec;
  throw Error(
      {.what = "kv", .found = '"' + options.kv + '"', .expected = "auto, int16, f16, bf16, fp8, int8, int4 or f32"});
}

LoadedModel load_model(const EngineOptions& options) {
  LoadedModel model;
  const double begin = now_s();
  model.ops = make_ops(options);
  model.device_s = now_s() - begin;
  if (!model.ops->supports(kv_codec(options))) {
    throw Error({.what = "kv", .found = options.kv, .expected = "a cache format of " + model.ops->name()});
  }
  if (options.synthetic_layers > 0) {
    if (!options.model_dir.empty()) model.tokenizer = Tokenizer::from_file(options.model_dir + "/tokenizer.json");
    SyntheticOptions synthetic;
    synthetic.config = real_config();
    synthetic.config.n_layers = options.synthetic_layers;
    synthetic.weights = options.weights;
    model.weights = synthetic_weights(synthetic, *model.ops, options.on_load);
  } else {
    if (options.model_dir.empty()) throw Error({.what = "model_dir", .found = "nothing", .expected = "a directory"});
    std::string path = options.model_dir + "/tokenizer.json";
    if (const auto gguf = find_gguf(options.model_dir)) {
      const auto file = std::make_shared<const GgufModel>(*gguf);
      path = *gguf;
      model.tokenizer = gguf_tokenizer(*file);  // first: it fails fast
      model.weights = load_gguf(file, *model.ops, options.on_load);
    } else {
      model.weights = load_weights(options.model_dir, *model.ops, options.on_load);
      model.tokenizer = Tokenizer::from_file(path);
    }
    if (model.tokenizer->vocab_size() > model.weights.config.vocab) {
      throw Error({.what = path,
                   .found = std::to_string(model.tokenizer->vocab_size()) + " tokens",
                   .expected = "at most the model's vocabulary of " + std::to_string(model.weights.config.vocab)});
    }
    if (!options.weights.empty())
      quantize_in_memory(model.weights, QuantRecipe::parse(options.weights), *model.ops, options.on_load);
  }
  const std::int64_t vocab = model.weights.config.vocab;
  model.valid_vocab = model.tokenizer           ? model.tokenizer->vocab_size()
                      : vocab == kOfficialVocab ? kOfficialTokens
                                                : vocab;
  model.ops->synchronize();  // uploads have come
  model.load_s = now_s() - begin - model.device_s;
  return model;
}

ModelInfo describe(const EngineOptions& options, const LoadedModel& model) {
  const ModelConfig& c = model.weights.config;
  ModelInfo info;
  info.model_dir = options.model_dir;
  info.backend = model.ops->name();
  info.n_layers = c.n_layers;
  info.vocab = c.vocab;
  info.n_parameters = count_parameters(model);
  info.weight_bytes = static_cast<std::int64_t>(model.weights.total_bytes());
  info.active_bytes = static_cast<std::int64_t>(model.weights.active_bytes());
  info.cache_bytes_a_token = c.n_cache_layers() * kv_row_bytes(kv_codec(options));
  info.has_mtp = model.weights.mtp != nullptr;
  info.eos_ids = c.eos_ids;
  info.device_s = model.device_s;
  info.load_s = model.load_s;
  return info;
}

}  // namespace glint
