// parse_config and the tensor names on arbitrary text. A config that passes must be safe to compute with.

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "base/error.hpp"
#include "models/glm_4_7_flash/memory_plan.hpp"

namespace {

void require(bool promise) {
  if (!promise) std::abort();
}

void check(const glint::ModelConfig& c) {
  require(c.hidden > 0 && c.n_layers > 0 && c.n_heads > 0 && c.vocab > 0 && c.max_positions > 0);
  require(c.top_k > 0 && c.top_k <= c.n_experts && c.first_dense_layers >= 0 && c.first_dense_layers <= c.n_layers);
  require(c.n_mtp_layers == 0 || c.n_mtp_layers == 1);
  require(std::isfinite(c.rope_theta) && std::isfinite(c.rms_eps) && c.rms_eps > 0 && std::isfinite(c.routed_scale));
  for (const std::int32_t id : c.eos_ids) require(id >= 0 && id < c.vocab);
  const glint::MemoryPlan plan = glint::plan_memory(c, {.context_tokens = c.max_positions});  // UBSan: no overflow
  require(plan.total_bytes > 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  static const glint::ModelConfig kReal = glint::real_config();
  if (const auto place = glint::find_place(text, kReal)) {
    require(glint::hf_name(*place->spec, place->layer, place->expert) == text);
  }
  try {
    check(glint::parse_config(text, "config.json"));
  } catch (const glint::Error& e) { require(std::strlen(e.what()) > 0); }
  return 0;
}
