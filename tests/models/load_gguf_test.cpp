// GGUF models made from the bundled one by the exporter, and spoiled: the same logits, the same tokenizer, clear
// errors.

#include "models/glm_4_7_flash/load_gguf.hpp"

#include <gtest/gtest.h>

#include <functional>

#include "backends/reference/reference.hpp"
#include "base/file.hpp"
#include "engine/gguf_tokenizer.hpp"
#include "models/glm_4_7_flash/export_gguf.hpp"
#include "models/small_checkpoint.hpp"
#include "tensor/codec.hpp"

namespace glint::testing {
namespace {

constexpr const char* kTinyDir = "models/tiny";

std::unique_ptr<Ops> reference() { return make_reference_ops(); }

struct Made {
  TempDir dir;
  std::string path = dir / "m.gguf";
};

const ModelWeights& tiny() {
  static const std::unique_ptr<Ops> ops = reference();
  static const ModelWeights weights = load_weights(kTinyDir, *ops);
  return weights;
}

void export_tiny(const std::string& path, GgufType type, bool mtp = true) {
  GgufExport options{.type = type, .head_type = type, .mtp = mtp};
  GgufMetadataBuilder metadata;
  add_gguf_config(metadata, tiny().config, options);
  const std::string tokenizer = std::string(kTinyDir) + "/tokenizer.json";
  add_gguf_tokenizer(metadata, parse_tokenizer_json(read_file(tokenizer), tokenizer), tiny().config);
  export_gguf(path, tiny(), metadata, options);
}

void expect_same(const Weight& a, const Weight& b, const char* what) {
  ASSERT_EQ(a.rows, b.rows) << what;
  ASSERT_EQ(a.cols, b.cols) << what;
  std::vector<float> x(static_cast<std::size_t>(a.cols)), y(x.size());
  for (std::int64_t r = 0; r < a.rows; ++r) {
    decode_row(a, r, x.data());
    decode_row(b, r, y.data());
    ASSERT_EQ(x, y) << what << ", row " << r;
  }
}
void expect_same(const ConstView& a, const ConstView& b, const char* what) {
  ASSERT_EQ(a.shape, b.shape) << what;
  for (std::int64_t i = 0; i < a.shape.elements(); ++i) ASSERT_EQ(a.as<float>()[i], b.as<float>()[i]) << what;
}

// Every tensor of the table.
void expect_same(const ModelWeights& a, const ModelWeights& b) {
  const auto compare = [](const TensorSpec& spec, const BindTarget& x, const BindTarget& y) {
    const Slot s = spec.bind(x), t = spec.bind(y);
    const std::string name(spec.field);
    if (auto* const* w = std::get_if<Weight*>(&s)) expect_same(**w, *std::get<Weight*>(t), name.c_str());
    else expect_same(*std::get<ConstView*>(s), *std::get<ConstView*>(t), name.c_str());
  };
  auto& x = const_cast<ModelWeights&>(a);
  auto& y = const_cast<ModelWeights&>(b);
  ASSERT_EQ(x.layers.size(), y.layers.size());
  ASSERT_EQ(x.mtp == nullptr, y.mtp == nullptr);
  const auto n = static_cast<std::int64_t>(x.layers.size());
  for (const TensorSpec& spec : tensor_table()) {
    if (spec.scope == Scope::kFused) continue;
    if (spec.scope == Scope::kModel || spec.scope == Scope::kMtp) {
      if (spec.scope == Scope::kModel || x.mtp != nullptr)
        compare(spec, {.model = &x, .mtp = x.mtp.get()}, {.model = &y, .mtp = y.mtp.get()});
      continue;
    }
    for (std::int64_t l = 0; l < n + (x.mtp != nullptr ? 1 : 0); ++l) {
      const bool dense = l < n && a.config.is_dense(l);
      if (spec.scope == (dense ? Scope::kMoe : Scope::kDense) || (dense && spec.scope == Scope::kExpert)) continue;
      LayerWeights& p = l == n ? x.mtp->block : x.layers[static_cast<std::size_t>(l)];
      LayerWeights& q = l == n ? y.mtp->block : y.layers[static_cast<std::size_t>(l)];
      const std::size_t experts = spec.scope == Scope::kExpert ? p.experts.size() : 1;
      for (std::size_t e = 0; e < experts; ++e) {
        compare(spec, {.layer = &p, .expert = p.experts.empty() ? nullptr : &p.experts[e]},
                {.layer = &q, .expert = q.experts.empty() ? nullptr : &q.experts[e]});
      }
    }
  }
}

void expect_same_config(const ModelConfig& a, const ModelConfig& b) {
  EXPECT_EQ(a.hidden, b.hidden);
  EXPECT_EQ(a.n_layers, b.n_layers);
  EXPECT_EQ(a.n_mtp_layers, b.n_mtp_layers);
  EXPECT_EQ(a.n_heads, b.n_heads);
  EXPECT_EQ(a.q_lora, b.q_lora);
  EXPECT_EQ(a.dense_inner, b.dense_inner);
  EXPECT_EQ(a.expert_inner, b.expert_inner);
  EXPECT_EQ(a.n_experts, b.n_experts);
  EXPECT_EQ(a.n_shared_experts, b.n_shared_experts);
  EXPECT_EQ(a.top_k, b.top_k);
  EXPECT_EQ(a.first_dense_layers, b.first_dense_layers);
  EXPECT_EQ(a.norm_topk, b.norm_topk);
  EXPECT_EQ(a.routed_scale, b.routed_scale);
  EXPECT_EQ(a.rms_eps, b.rms_eps);
  EXPECT_EQ(a.rope_theta, b.rope_theta);
  EXPECT_EQ(a.vocab, b.vocab);
  EXPECT_EQ(a.max_positions, b.max_positions);
  EXPECT_EQ(a.tie_embeddings, b.tie_embeddings);
  EXPECT_EQ(a.eos_ids, b.eos_ids);
  EXPECT_EQ(a.pad_id, b.pad_id);
}

TEST(LoadGguf, ExportedFloatsComeBackExactly) {
  for (const GgufType type : {GgufType::kBF16, GgufType::kF32}) {
    const Made made;
    export_tiny(made.path, type);
    const std::unique_ptr<Ops> ops = reference();
    const ModelWeights loaded = load_gguf(made.path, *ops);
    expect_same_config(loaded.config, tiny().config);
    expect_same(loaded, tiny());
    EXPECT_EQ(loaded.mtp->embed.data == loaded.embed.data, tiny().mtp->embed.data == tiny().embed.data);
  }
}

TEST(LoadGguf, WithoutTheMtpLayer) {
  const Made made;
  export_tiny(made.path, GgufType::kBF16, /*mtp=*/false);
  const std::unique_ptr<Ops> ops = reference();
  const ModelWeights loaded = load_gguf(made.path, *ops);
  EXPECT_EQ(loaded.mtp, nullptr);
  EXPECT_EQ(loaded.config.n_mtp_layers, 0);
  EXPECT_EQ(loaded.config.n_layers, tiny().config.n_layers);
}

TEST(LoadGguf, ProgressEndsWithTheWholeFile) {
  const Made made;
  export_tiny(made.path, GgufType::kQ8_0);
  const std::unique_ptr<Ops> ops = reference();
  std::uint64_t last = 0, total = 0;
  load_gguf(made.path, *ops, [&](std::uint64_t done, std::uint64_t all) {
    EXPECT_GE(done, last);
    last = done;
    total = all;
  });
  EXPECT_EQ(last, total);
  EXPECT_EQ(total, GgufModel(made.path).data_bytes());
}

// The same logits whether the blocks were taken apart or decoded to floats.
TEST(LoadGguf, BlocksDecodeToWhatTheFileSays) {
  for (const GgufType type : {GgufType::kQ8_0, GgufType::kQ4_0}) {
    const Made made;
    export_tiny(made.path, type);
    const std::unique_ptr<Ops> ops = reference();
    const ModelWeights loaded = load_gguf(made.path, *ops);
    const GgufModel file(made.path);
    const GgufModel::Tensor& t = *file.find("blk.1.ffn_gate_exps.weight");
    ASSERT_EQ(t.entry->type, type);
    const std::int64_t inner = t.entry->shape[1], hidden = t.entry->shape[2];
    std::vector<float> want(static_cast<std::size_t>(t.entry->shape.elements())), row(static_cast<std::size_t>(hidden));
    decode_gguf(type, t.data(), t.entry->shape.elements(), want.data());
    for (std::int64_t e = 0; e < t.entry->shape[0]; ++e) {
      for (std::int64_t r = 0; r < inner; ++r) {
        decode_row(loaded.layers[1].experts[static_cast<std::size_t>(e)].gate, r, row.data());
        for (std::int64_t k = 0; k < hidden; ++k)
          ASSERT_EQ(row[static_cast<std::size_t>(k)], want[static_cast<std::size_t>((e * inner + r) * hidden + k)]);
      }
    }
    EXPECT_EQ(loaded.layers[1].kv_b.format, WeightFormat::kF16);  // absorbed: never codes
  }
}

TEST(LoadGguf, TokenizerIsTheCheckpoints) {
  const Made made;
  export_tiny(made.path, GgufType::kBF16);
  const GgufModel file(made.path);
  const Tokenizer got = gguf_tokenizer(file);
  const Tokenizer want = Tokenizer::from_file(std::string(kTinyDir) + "/tokenizer.json");
  EXPECT_EQ(got.vocab_size(), want.vocab_size());
  for (std::int32_t id = 0; id < want.vocab_size(); ++id) {
    ASSERT_EQ(got.token_bytes(id), want.token_bytes(id)) << id;
    ASSERT_EQ(got.is_special(id), want.is_special(id)) << id;
    ASSERT_EQ(got.is_added(id), want.is_added(id)) << id;
  }
  for (const std::string text :
       {"[gMASK]<sop><|user|>Hello, world! 1234567", "\xE7\x8E\x8B \xC3\xBC \xFF<think>\n\n  x",
        "<tool_call>f<arg_key>k</arg_key></tool_call>"}) {
    EXPECT_EQ(got.encode(text), want.encode(text)) << text;
  }
}

// ---- spoiled files ----

// A file of a small model, to be rebuilt with changes: metadata by key, tensors by name.
struct Draft {
  const ModelConfig config = small_config();
  std::map<std::string, std::function<void(GgufMetadataBuilder&)>> changed;  // instead of what add_gguf_config writes
  std::map<std::string, std::string> renamed;                                // tensor → new name; "" leaves it out
  std::map<std::string, Shape> reshaped;
};

// Copies values of a file's metadata, so that single keys can be left out.
void copy_value(GgufMetadataBuilder& to, const std::string& key, const GgufValue& v) {
  if (v.kind == GgufKind::kU32) to.add_u32(key, static_cast<std::uint32_t>(v.integer));
  if (v.kind == GgufKind::kF32) to.add_f32(key, static_cast<float>(v.number));
  if (v.kind == GgufKind::kBool) to.add_bool(key, v.integer != 0);
  if (v.kind == GgufKind::kString) to.add_text(key, v.text);
}

std::string build(const TempDir& dir, const Draft& draft) {
  const GgufExport options{.type = GgufType::kBF16, .head_type = GgufType::kBF16};
  GgufMetadataBuilder metadata;
  add_gguf_config(metadata, draft.config, options);
  const std::string path = dir / "model.gguf";
  static const TempDir plain_dir;  // one file for all drafts: random weights are drawn slowly under a sanitizer
  static const GgufModel file = [&] {
    const std::string plain = plain_dir / "plain.gguf";
    export_synthetic_gguf(plain, draft.config, 1, metadata, options);
    return GgufModel(plain);
  }();
  GgufMetadataBuilder changed;
  for (const GgufMetadata::Entry& e : file.metadata().entries()) {
    if (!draft.changed.contains(e.key)) copy_value(changed, e.key, e.value);
  }
  for (const auto& [key, add] : draft.changed) {
    if (add) add(changed);
  }
  std::vector<GgufTensorInfo> infos;
  std::vector<const GgufModel::Tensor*> sources;
  for (const GgufModel::Tensor& t : file.tensors()) {
    GgufTensorInfo info{t.entry->name, t.entry->type, t.entry->shape};
    if (const auto r = draft.renamed.find(info.name); r != draft.renamed.end()) info.name = r->second;
    if (const auto s = draft.reshaped.find(info.name); s != draft.reshaped.end()) info.shape = s->second;
    if (info.name.empty()) continue;
    infos.push_back(info);
    sources.push_back(&t);
  }
  GgufWriter writer(path, changed, infos);
  for (std::size_t i = 0; i < infos.size(); ++i) writer.append(infos[i].name, sources[i]->data(), sources[i]->bytes());
  writer.finish();
  return path;
}

ModelWeights load(const Draft& draft) {
  const TempDir dir;
  const std::string path = build(dir, draft);
  const std::unique_ptr<Ops> ops = reference();
  return load_gguf(path, *ops);
}

Draft with_u32(const std::string& key, std::uint32_t value) {
  Draft d;
  d.changed["deepseek2." + key] = [=](GgufMetadataBuilder& m) { m.add_u32("deepseek2." + key, value); };
  return d;
}
Draft without(const std::string& key) {
  Draft d;
  d.changed["deepseek2." + key] = nullptr;
  return d;
}

template <typename... Parts>
void refuses(const Draft& draft, const Parts&... parts) {
  expect_error([&] { load(draft); }, "model.gguf", parts...);
}

TEST(LoadGguf, SmallModelLoads) {
  const ModelWeights w = load({});
  EXPECT_EQ(w.config.n_layers, 3);
  EXPECT_NE(w.mtp, nullptr);
  EXPECT_EQ(w.layers[1].experts.size(), 6U);
}

TEST(LoadGguf, OldFilesLackGatingAndScale) {
  Draft d;
  for (const char* key : {"expert_gating_func", "expert_weights_scale", "expert_weights_norm", "expert_group_count"})
    d.changed[std::string("deepseek2.") + key] = nullptr;
  const ModelWeights w = load(d);
  EXPECT_EQ(w.config.routed_scale, 1.8F);
  EXPECT_TRUE(w.config.norm_topk);
  Draft zero;
  zero.changed["deepseek2.expert_weights_scale"] = [](GgufMetadataBuilder& m) {
    m.add_f32("deepseek2.expert_weights_scale", 0);
  };
  EXPECT_EQ(load(zero).config.routed_scale, 1.8F);
}

TEST(LoadGguf, PlainAttentionLengthsOfLegacyFiles) {
  Draft d = with_u32("attention.head_count_kv", 2);
  for (const auto& [key, value] : {std::pair{"attention.key_length", 256U}, {"attention.value_length", 256U}}) {
    const std::string k = std::string("deepseek2.") + key;
    d.changed[k] = [k, v = value](GgufMetadataBuilder& m) { m.add_u32(k, v); };
  }
  d.changed["deepseek2.attention.key_length_mla"] = nullptr;
  d.changed["deepseek2.attention.value_length_mla"] = nullptr;
  EXPECT_EQ(load(d).config.n_heads, 2);
  d.changed["deepseek2.attention.key_length"] = [](GgufMetadataBuilder& m) {
    m.add_u32("deepseek2.attention.key_length", 192);
  };
  refuses(d, "attention.key_length", "found 192, expected 256");
}

TEST(LoadGguf, RefusesWhatItCannotCompute) {
  Draft arch;
  arch.changed["general.architecture"] = [](GgufMetadataBuilder& m) { m.add_text("general.architecture", "llama"); };
  refuses(arch, "general.architecture", "\"llama\"", "\"deepseek2\"");
  refuses(with_u32("expert_gating_func", 1), "expert_gating_func", "1 (softmax)", "2 (sigmoid)");
  refuses(with_u32("expert_group_count", 8), "expert_group_count", "found 8", "group-limited");
  refuses(with_u32("attention.kv_lora_rank", 256), "kv_lora_rank", "found 256", "512");
  refuses(with_u32("attention.key_length_mla", 192), "key_length_mla", "found 192", "256");
  refuses(with_u32("attention.head_count_kv", 7), "head_count_kv", "found 7", "1 or 2");
  refuses(with_u32("rope.dimension_count", 32), "rope.dimension_count", "64");
  refuses(with_u32("expert_used_count", 7), "expert_used_count", "found 7", "1 to 6");
  refuses(with_u32("embedding_length", 0), "embedding_length", "found 0");
  refuses(with_u32("vocab_size", 127), "vocab_size", "found 127", "128, the rows of token_embd.weight");
  refuses(without("block_count"), "block_count", "found nothing");
  refuses(without("rope.freq_base"), "rope.freq_base", "found nothing");
  Draft scaled;
  scaled.changed["deepseek2.rope.scaling.type"] = [](GgufMetadataBuilder& m) {
    m.add_text("deepseek2.rope.scaling.type", "yarn");
  };
  refuses(scaled, "rope.scaling.type", "\"yarn\"");
  Draft scale;
  scale.changed["deepseek2.expert_weights_scale"] = [](GgufMetadataBuilder& m) {
    m.add_f32("deepseek2.expert_weights_scale", 1e9F);
  };
  refuses(scale, "expert_weights_scale");
}

TEST(LoadGguf, RefusesWrongTensors) {
  Draft missing;
  missing.renamed["blk.1.attn_v_b.weight"] = "";
  refuses(missing, "blk.1.attn_v_b.weight", "no such tensor", "[2, 256, 512]");
  Draft bias;
  bias.renamed["blk.2.exp_probs_b.bias"] = "";
  refuses(bias, "blk.2.exp_probs_b.bias", "no such tensor", "[6]");
  Draft unknown;
  unknown.renamed["blk.0.ffn_up.weight"] = "blk.0.ffn_upp.weight";
  refuses(unknown, "blk.0.ffn_up.weight", "no such tensor");
  Draft shape;
  shape.reshaped["blk.0.attn_q_a.weight"] = {64, 32};
  refuses(shape, "blk.0.attn_q_a.weight", "[64, 32]", "[32, 64]");
  Draft transposed;
  transposed.reshaped["blk.0.attn_k_b.weight"] = {2, 192, 512};
  refuses(transposed, "blk.0.attn_k_b.weight", "[2, 192, 512]", "[2, 512, 192]");
  Draft layers = with_u32("block_count", 3);  // two layers and the MTP layer; the file has three
  refuses(layers, "does not have");
}

TEST(LoadGguf, MtpPartsThatMayBeMissing) {
  Draft d;
  d.renamed["blk.3.nextn.shared_head_norm.weight"] = "";
  const ModelWeights w = load(d);
  EXPECT_EQ(w.mtp->head_norm.data, w.final_norm.data);
  d.renamed["blk.3.nextn.hnorm.weight"] = "";
  refuses(d, "blk.3.nextn.hnorm.weight", "no such tensor");
}

TEST(LoadGguf, RefusesValuesThatAreNotFinite) {
  const TempDir dir;
  const std::string path = build(dir, {});
  std::string bytes = read_file(path);
  const GgufModel file(path);
  const std::uint64_t at = file.find("blk.1.exp_probs_b.bias")->entry->begin;
  for (std::size_t i = 0; i < 4; ++i) bytes[at + i] = '\xff';
  const std::string bad = dir.write("bad.gguf", bytes);
  const std::unique_ptr<Ops> ops = reference();
  expect_error([&] { load_gguf(bad, *ops); }, "bad.gguf", "blk.1.exp_probs_b.bias", "NaN");
}

TEST(GgufTokenizer, RefusesOtherVocabularies) {
  const TempDir dir;
  const auto tokenizer = [&](const std::function<void(GgufMetadataBuilder&)>& add) {
    GgufMetadataBuilder m;
    add(m);
    GgufWriter(dir / "v.gguf", m, {}).finish();
    const GgufModel file(dir / "v.gguf");
    gguf_tokenizer(file);
  };
  const auto head = [](GgufMetadataBuilder& m, const char* model = "gpt2", const char* pre = "glm4") {
    m.add_text("tokenizer.ggml.model", model);
    m.add_text("tokenizer.ggml.pre", pre);
  };
  const auto body = [](GgufMetadataBuilder& m, const std::vector<std::string>& tokens, const std::vector<int>& types,
                       const std::vector<std::string>& merges) {
    m.add_texts("tokenizer.ggml.tokens", tokens);
    m.add_i32s("tokenizer.ggml.token_type", types);
    m.add_texts("tokenizer.ggml.merges", merges);
  };
  const auto fails = [&](const std::function<void(GgufMetadataBuilder&)>& add, const auto&... parts) {
    expect_error([&] { tokenizer(add); }, "v.gguf", "tokenizer.ggml", parts...);
  };
  fails([&](auto& m) { head(m, "llama"); }, "\"llama\"", "\"gpt2\"");
  fails([&](auto& m) { head(m, "gpt2", "qwen2"); }, "\"qwen2\"", "\"glm4\"");
  fails([&](auto& m) { head(m); }, "tokens", "found nothing");
  const auto with = [&](std::vector<std::string> tokens, std::vector<int> types, std::vector<std::string> merges) {
    return [=, &head, &body](GgufMetadataBuilder& m) {
      head(m);
      body(m, tokens, types, merges);
    };
  };
  fails(with({"a", "b"}, {1}, {}), "token_type", "1 types", "2, one a token");
  fails(with({"a", "a"}, {1, 1}, {}), "\"a\" for ids 0 and 1");
  fails(with({"a b"}, {1}, {}), "\"a b\"", "byte-level alphabet");
  fails(with({"a"}, {9}, {}), "token_type", "9 for token");
  fails(with({"a"}, {1}, {}), "no token for byte 0");
}

}  // namespace
}  // namespace glint::testing
