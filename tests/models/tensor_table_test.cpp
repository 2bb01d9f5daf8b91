// The table against the published totals, and the plan that follows from it.

#include "models/glm_4_7_flash/tensor_table.hpp"

#include <gtest/gtest.h>

#include <set>

#include "models/glm_4_7_flash/memory_plan.hpp"
#include "weights/checkpoint.hpp"

namespace glint {
namespace {

TEST(TensorTable, MatchesTheOfficialTotals) {  // model facts §1.4
  const ModelSize size = model_size(real_config());
  EXPECT_EQ(size.total.params, 31'221'488'576);
  EXPECT_EQ(size.total.bytes, 62'442'983'168);
  EXPECT_EQ(size.total.tensors, 9'703);
  EXPECT_EQ(size.mtp.params, 1'278'094'656);
  EXPECT_EQ(size.total.params - size.mtp.params, 29'943'393'920);
  EXPECT_NEAR(static_cast<double>(size.active_params), 3.26e9, 0.005e9);
  EXPECT_EQ(size.roles[static_cast<std::size_t>(Role::kAttention)].params / 48, 21'757'952);  // and the norms' 1,280
}

TEST(TensorTable, KnowsEveryNameOfTheBundledModel) {
  const ModelConfig config = load_config("models/tiny");
  const Checkpoint checkpoint("models/tiny");
  std::set<std::string> names;
  for (const Checkpoint::Tensor& t : checkpoint.tensors()) {
    const auto place = find_place(t.entry->name, config);
    ASSERT_TRUE(place) << t.entry->name;
    EXPECT_EQ(place->spec->shape(config), t.entry->shape) << t.entry->name;
    EXPECT_EQ(place->spec->stored, t.entry->dtype) << t.entry->name;
    EXPECT_EQ(hf_name(*place->spec, place->layer, place->expert), t.entry->name);
    names.insert(t.entry->name);
  }
  // The whole model but for the MTP layer's own embedding and head.
  EXPECT_EQ(static_cast<std::int64_t>(names.size()), model_size(config).total.tensors - 2);
}

TEST(TensorTable, FieldsAndNamesAreUnique) {
  std::set<std::string> hf;
  for (const TensorSpec& spec : tensor_table()) {
    const bool expert = spec.scope == Scope::kExpert;
    EXPECT_TRUE(hf.insert(std::string(expert ? "expert." : "") + std::string(spec.hf_name) +
                          (spec.scope == Scope::kModel ? "" : ".layer"))
                    .second)
        << spec.hf_name;
    EXPECT_EQ(spec.bind == nullptr, spec.scope == Scope::kFused) << spec.field;
    EXPECT_EQ(spec.quantisable, spec.rank > 1 && spec.role != Role::kRouter) << spec.field;
  }
}

TEST(TensorTable, FindPlaceKnowsLayersAndExperts) {
  const ModelConfig c = real_config();
  const auto place = find_place("model.layers.46.mlp.experts.63.down_proj.weight", c);
  ASSERT_TRUE(place);
  EXPECT_EQ(place->layer, 46);
  EXPECT_EQ(place->expert, 63);
  EXPECT_EQ(place->spec->field, "layers.experts.down");
  EXPECT_TRUE(find_place("model.layers.47.mlp.experts.gate_up_proj", c));
  EXPECT_EQ(find_place("lm_head.weight", c)->layer, -1);
  for (const char* name :
       {"", "model.layers.", "model.layers.1", "model.layers.x.input_layernorm.weight",
        "model.layers.-1.input_layernorm.weight", "model.layers.48.input_layernorm.weight",
        "model.layers.99999999999999999999.input_layernorm.weight", "model.layers.1.mlp.experts.64.down_proj.weight",
        "model.layers.0.mlp.experts.0.down_proj.weight", "model.layers.1.mlp.experts..down_proj.weight",
        "model.layers.46.enorm.weight", "input_layernorm.weight", "model.layers.1.lm_head.weight"}) {
    EXPECT_FALSE(find_place(name, c)) << name;
  }
}

TEST(MemoryPlan, RealModelAtFullContext) {
  ModelConfig c = real_config();
  const MemoryPlan plan = plan_memory(c, {.context_tokens = 202752});
  EXPECT_EQ(plan.weight_bytes, 62'442'983'168);
  EXPECT_EQ(plan.cache_bytes_per_token, 47 * 1152);
  EXPECT_EQ(plan.cache_bytes, 202752LL * 47 * 1152);
  EXPECT_EQ(plan.total_bytes, plan.weight_bytes + plan.cache_bytes + plan.workspace_bytes);
  EXPECT_GT(plan.workspace_bytes, 512 * 4 * c.hidden);
  c.n_mtp_layers = 0;
  EXPECT_EQ(plan_memory(c, {.context_tokens = 1}).cache_bytes, 64 * 54144) << "a page of 64 tokens";
  EXPECT_EQ(plan_memory(c, {.context_tokens = 65, .n_sequences = 3, .codec = KvCodec::kF32}).cache_bytes,
            3 * 128 * 2 * 54144);
  EXPECT_EQ(plan_memory(c, {.context_tokens = 1, .weight_bytes = 7}).weight_bytes, 7);
}

}  // namespace
}  // namespace glint
