#pragma once
// Which matrix becomes which format. A recipe is a preset and overrides; docs/quantisation.md has the measurements
// behind the presets.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "models/glm_4_7_flash/tensor_table.hpp"
#include "tensor/codec.hpp"

namespace glint {

class QuantRecipe {
 public:
  // "q4", "int4", "q8", "nf4", "fp8". Throws Error for other names.
  static QuantRecipe preset(std::string_view name);
  // A preset by the name of its format, as --weights has it: "int4", "q4", "int8", "nf4", "fp8", "bf16" (keeps all), or
  // one with overrides: "int4:experts=int4-g32,head=bf16". Throws Error.
  static QuantRecipe parse(std::string_view text);

  // "KEY=SPEC". A key is a role (embed, head, attention, dense_mlp, experts, shared, eh_proj), a field of the tensor
  // table (q_a, q_b, kv_a, kv_b, o, experts.down, shared.gate …) or "mtp", everything of the MTP layer, also as
  // "mtp.KEY".
  // "@FIRST-LAST" behind a key limits it to those layers: "experts@1-3=int8". SPEC: parse_quant_spec, or "bf16": keep.
  // Later rules win. Throws Error for an unknown key or spec.
  void set(std::string_view rule);

  // None: the matrix is kept as it is. Never for tensors that the table says are not quantisable.
  std::optional<QuantSpec> spec(const TensorSpec& tensor, std::int64_t layer, const ModelConfig& config) const;

  // One line with every rule, for fingerprints and reports.
  std::string text() const;

 private:
  struct Rule {
    std::string key;
    bool mtp = false;  // only in the MTP layer
    std::int64_t first_layer = -1;
    std::int64_t last_layer = -1;  // -1: everywhere
    QuantSpec spec;                // kBF16: keep
    std::string spec_text;
  };
  std::vector<Rule> rules_;
};

// What a checkpoint of this config takes after the recipe, scales counted; what the recipe keeps is counted as the
// official checkpoint stores it. The MTP layer's own embedding and head, which repeat the main ones, are left out.
struct RecipeSize {
  std::int64_t params = 0;
  double bytes = 0;
  double active_bytes = 0;  // that one decoded token reads, the head too; kv_b as `ops` has it, maybe widened to BF16
  double bits() const { return 8 * bytes / static_cast<double>(params); }
};
RecipeSize recipe_size(const QuantRecipe& recipe, const ModelConfig& config, const Ops& ops);

// The keys of QuantRecipe::set.
std::span<const std::string_view> quant_keys();

}  // namespace glint
