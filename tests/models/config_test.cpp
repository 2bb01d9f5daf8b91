#include "models/glm_4_7_flash/config.hpp"

#include <gtest/gtest.h>

#include "base/file.hpp"
#include "models/glm_4_7_flash/model_weights.hpp"
#include "weights/temp_dir.hpp"

namespace glint {
namespace {

// The official file, model facts §1.1.
constexpr std::string_view kOfficial = R"({
  "architectures": ["Glm4MoeLiteForCausalLM"],
  "attention_bias": false,
  "attention_dropout": 0.0,
  "pad_token_id": 154820,
  "eos_token_id": [154820, 154827, 154829],
  "hidden_act": "silu",
  "hidden_size": 2048,
  "intermediate_size": 10240,
  "max_position_embeddings": 202752,
  "model_type": "glm4_moe_lite",
  "moe_intermediate_size": 1536,
  "topk_method": "noaux_tc",
  "norm_topk_prob": true,
  "num_attention_heads": 20,
  "n_group": 1,
  "topk_group": 1,
  "n_routed_experts": 64,
  "n_shared_experts": 1,
  "routed_scaling_factor": 1.8,
  "num_experts_per_tok": 4,
  "first_k_dense_replace": 1,
  "num_hidden_layers": 47,
  "num_key_value_heads": 20,
  "num_nextn_predict_layers": 1,
  "partial_rotary_factor": 1.0,
  "rms_norm_eps": 1e-05,
  "rope_scaling": null,
  "rope_theta": 1000000,
  "tie_word_embeddings": false,
  "dtype": "bfloat16",
  "transformers_version": "5.0.0rc0",
  "q_lora_rank": 768,
  "kv_lora_rank": 512,
  "qk_nope_head_dim": 192,
  "qk_rope_head_dim": 64,
  "v_head_dim": 256,
  "vocab_size": 154880
})";

// The official text with one piece replaced, which must be there.
std::string edited(const std::string& from, const std::string& to) {
  std::string text(kOfficial);
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}
std::string without(const std::string& line) { return edited("  " + line + ",\n", ""); }
std::string with(const std::string& fields) { return edited("{\n", "{\n" + fields + ",\n"); }

ModelConfig parse(std::string_view text) { return parse_config(text, "config.json"); }

template <typename... Parts>
void expect_refused(const std::string& text, const Parts&... parts) {
  expect_error([&] { parse(text); }, "config.json", parts...);
}

void expect_equal(const ModelConfig& a, const ModelConfig& b) {
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
  EXPECT_EQ(a.dtype, b.dtype);
}

TEST(Config, TheOfficialFile) { expect_equal(parse(kOfficial), real_config()); }

TEST(Config, TheFormThatTransformers5Saves) {
  // No top-level rope_theta; aliases and fields without meaning; layer types instead of first_k_dense_replace.
  std::string types = "\"dense\"";
  for (int i = 1; i < 47; ++i) types += ", \"sparse\"";
  std::string text = edited("\"rope_theta\": 1000000,",
                            "\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 1000000.0, "
                            "\"partial_rotary_factor\": 1.0}, \"head_dim\": 64, \"qk_head_dim\": 256, "
                            "\"rope_interleave\": true, \"bos_token_id\": 0, \"initializer_range\": 0.02, "
                            "\"pretraining_tp\": 1, \"use_cache\": true,");
  const auto replace = [&](const std::string& from, const std::string& to) {
    ASSERT_NE(text.find(from), std::string::npos) << from;
    text.replace(text.find(from), from.size(), to);
  };
  replace("\"first_k_dense_replace\": 1", "\"mlp_layer_types\": [" + types + "]");
  replace("\"dtype\"", "\"torch_dtype\"");
  replace("\"n_routed_experts\"", "\"num_local_experts\"");
  replace("  \"rope_scaling\": null,\n", "");
  replace("  \"partial_rotary_factor\": 1.0,\n", "");
  expect_equal(parse(text), real_config());
}

TEST(Config, AbsentFieldsHaveTheOfficialValue) {
  for (const char* line : {"\"n_group\": 1", "\"topk_group\": 1", "\"topk_method\": \"noaux_tc\"",
                           "\"norm_topk_prob\": true", "\"attention_bias\": false", "\"hidden_act\": \"silu\"",
                           "\"n_shared_experts\": 1", "\"routed_scaling_factor\": 1.8", "\"first_k_dense_replace\": 1",
                           "\"num_key_value_heads\": 20", "\"partial_rotary_factor\": 1.0", "\"rms_norm_eps\": 1e-05",
                           "\"rope_scaling\": null", "\"tie_word_embeddings\": false"}) {
    SCOPED_TRACE(line);
    expect_equal(parse(without(line)), real_config());
  }
  EXPECT_EQ(parse(without("\"num_nextn_predict_layers\": 1")).n_mtp_layers, 0);
  EXPECT_EQ(parse(without("\"pad_token_id\": 154820")).pad_id, -1);
  EXPECT_TRUE(parse(without("\"eos_token_id\": [154820, 154827, 154829]")).eos_ids.empty());
  EXPECT_EQ(parse(without("\"dtype\": \"bfloat16\"")).dtype, "");
}

TEST(Config, PresentFieldsAreRead) {
  EXPECT_EQ(parse(edited("[154820, 154827, 154829]", "7")).eos_ids, (std::vector<std::int32_t>{7}));
  EXPECT_EQ(parse(edited("[154820, 154827, 154829]", "[7, 8, 7]")).eos_ids, (std::vector<std::int32_t>{7, 8}));
  EXPECT_EQ(parse(edited("\"n_routed_experts\": 64", "\"n_routed_experts\": 48")).n_experts, 48);
  EXPECT_EQ(parse(with("\"num_local_experts\": 64")).n_experts, 64);
  EXPECT_EQ(parse(edited("\"first_k_dense_replace\": 1", "\"first_k_dense_replace\": 3")).first_dense_layers, 3);
  EXPECT_EQ(parse(edited("1000000", "5e5")).rope_theta, 5e5F);
  EXPECT_FALSE(parse(edited("\"norm_topk_prob\": true", "\"norm_topk_prob\": false")).norm_topk);
  EXPECT_TRUE(parse(edited("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true")).tie_embeddings);
  EXPECT_EQ(parse(edited("\"n_shared_experts\": 1", "\"n_shared_experts\": 0")).n_shared_experts, 0);
  EXPECT_EQ(parse(with("\"scoring_func\": \"sigmoid\", \"moe_layer_freq\": 1")).hidden, 2048);
  EXPECT_EQ(parse(edited("\"rope_scaling\": null", "\"rope_scaling\": {\"type\": \"default\"}")).rope_theta, 1e6F);
}

TEST(Config, RefusesOtherModels) {
  expect_refused(edited("\"glm4_moe_lite\"", "\"glm4_moe\""), "model_type", "\"glm4_moe\"", "glm4_moe_lite");
  expect_refused(without("\"model_type\": \"glm4_moe_lite\""), "model_type", "nothing");
  expect_refused(edited("\"kv_lora_rank\": 512", "\"kv_lora_rank\": 256"), "kv_lora_rank", "256", "512");
  expect_refused(edited("\"qk_nope_head_dim\": 192", "\"qk_nope_head_dim\": 128"), "qk_nope_head_dim", "128", "192");
  expect_refused(edited("\"qk_rope_head_dim\": 64", "\"qk_rope_head_dim\": 32"), "qk_rope_head_dim", "32", "64");
  expect_refused(edited("\"v_head_dim\": 256", "\"v_head_dim\": 128"), "v_head_dim", "128", "256");
  expect_refused(without("\"v_head_dim\": 256"), "v_head_dim", "nothing", "256");
  expect_refused(with("\"qk_head_dim\": 128"), "qk_head_dim", "128");
  expect_refused(edited("\"num_key_value_heads\": 20", "\"num_key_value_heads\": 2"), "num_key_value_heads", "20");
}

TEST(Config, RefusesMathematicsThatGlintDoesNotHave) {
  expect_refused(edited("\"n_group\": 1", "\"n_group\": 8"), "n_group", "8", "group-limited");
  expect_refused(edited("\"topk_group\": 1", "\"topk_group\": 4"), "topk_group", "4");
  expect_refused(edited("noaux_tc", "greedy"), "topk_method", "greedy");
  expect_refused(with("\"scoring_func\": \"softmax\""), "scoring_func", "softmax", "sigmoid");
  expect_refused(with("\"moe_layer_freq\": 2"), "moe_layer_freq", "2");
  expect_refused(with("\"rope_interleave\": false"), "rope_interleave", "false");
  expect_refused(edited("\"silu\"", "\"gelu\""), "hidden_act", "gelu");
  expect_refused(edited("\"attention_bias\": false", "\"attention_bias\": true"), "attention_bias", "true");
  expect_refused(edited("\"rope_scaling\": null", "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4}"),
                 "rope_scaling.type", "yarn", "default");
  expect_refused(edited("\"rope_scaling\": null", "\"rope_scaling\": {\"factor\": 4}"), "rope_scaling", "null");
  expect_refused(with("\"rope_parameters\": {\"rope_type\": \"linear\"}"), "rope_parameters.rope_type", "linear");
  expect_refused(edited("\"partial_rotary_factor\": 1.0", "\"partial_rotary_factor\": 0.5"), "partial_rotary_factor");
  expect_refused(edited("\"num_nextn_predict_layers\": 1", "\"num_nextn_predict_layers\": 2"), "from 0 to 1");
}

TEST(Config, RefusesContradictions) {
  expect_refused(with("\"rope_parameters\": {\"rope_theta\": 10000}"), "rope_parameters.rope_theta", "10000",
                 "1000000");
  expect_refused(with("\"num_local_experts\": 32"), "num_local_experts", "32", "64");
  expect_refused(with("\"mlp_layer_types\": [\"dense\"]"), "mlp_layer_types", "1 entries", "47");
  std::string types = "\"dense\", \"dense\"";
  for (int i = 2; i < 47; ++i) types += ", \"sparse\"";
  expect_refused(with("\"mlp_layer_types\": [" + types + "]"), "2 dense layers", "first_k_dense_replace");
  types.replace(types.rfind("\"sparse\""), 8, "\"dense\"");
  expect_refused(with("\"mlp_layer_types\": [" + types + "]"), "a dense layer after a sparse one");
  types.replace(types.rfind("\"dense\""), 7, "\"mixed\"");
  expect_refused(with("\"mlp_layer_types\": [" + types + "]"), "\"mixed\"");
}

TEST(Config, RefusesAbsurdSizes) {
  expect_refused(without("\"hidden_size\": 2048"), "hidden_size", "nothing");
  expect_refused(without("\"rope_theta\": 1000000"), "rope_theta", "nothing");
  expect_refused(without("\"n_routed_experts\": 64"), "n_routed_experts", "nothing");
  for (const char* bad :
       {"0", "-1", "1e3", "2048.0", "\"2048\"", "true", "[2048]", "{}", "9999999999", "18446744073709551615"}) {
    SCOPED_TRACE(bad);
    expect_refused(edited("\"hidden_size\": 2048", std::string("\"hidden_size\": ") + bad), "hidden_size", "from 1 to");
  }
  expect_refused(edited("\"num_experts_per_tok\": 4", "\"num_experts_per_tok\": 65"), "num_experts_per_tok",
                 "from 1 to 64");
  expect_refused(edited("\"first_k_dense_replace\": 1", "\"first_k_dense_replace\": 48"), "first_k_dense_replace",
                 "47");
  expect_refused(edited("\"routed_scaling_factor\": 1.8", "\"routed_scaling_factor\": 0"), "routed_scaling_factor");
  expect_refused(edited("1e-05", "1e999"), "rms_norm_eps");
  expect_refused(edited("\"rope_theta\": 1000000", "\"rope_theta\": -1"), "rope_theta");
  expect_refused(edited("[154820, 154827, 154829]", "[154880]"), "eos_token_id", "154880", "154879");
  expect_refused(edited("[154820, 154827, 154829]", "\"</s>\""), "eos_token_id", "</s>");
  expect_refused(edited("\"pad_token_id\": 154820", "\"pad_token_id\": 154880"), "pad_token_id");
}

TEST(Config, RefusesWhatIsNoConfig) {
  expect_refused("", "valid JSON");
  expect_refused("[]", "an object of fields");
  expect_refused("{}", "model_type");
  expect_refused(std::string(kOfficial).substr(0, 300), "valid JSON");
}

TEST(LoadConfig, MergesTheGenerationConfig) {
  const TempDir dir;
  expect_error([&] { load_config(dir.path()); }, dir / "config.json");
  dir.write("config.json", edited("[154820, 154827, 154829]", "154820"));
  EXPECT_EQ(load_config(dir.path()).eos_ids, (std::vector<std::int32_t>{154820}));
  dir.write("generation_config.json", R"({"eos_token_id": [154827, 154820, 154829], "temperature": 1.0})");
  EXPECT_EQ(load_config(dir.path()).eos_ids, (std::vector<std::int32_t>{154820, 154827, 154829}));
  dir.write("generation_config.json", R"({"eos_token_id": [-3]})");
  expect_error([&] { load_config(dir.path()); }, dir / "generation_config.json", "-3");
  dir.write("generation_config.json", "[");
  expect_error([&] { load_config(dir.path()); }, dir / "generation_config.json", "valid JSON");
}

TEST(LoadConfig, TheBundledModel) {
  const ModelConfig c = load_config("models/tiny");
  EXPECT_EQ(c.hidden, 256);
  EXPECT_EQ(c.n_layers, 7);
  EXPECT_EQ(c.n_mtp_layers, 1);
  EXPECT_EQ(c.n_cache_layers(), 7);
  EXPECT_EQ(c.eos_ids, (std::vector<std::int32_t>{8128, 8135, 8137}));
}

}  // namespace
}  // namespace glint
