#pragma once
// The parts of the case list, for cases.cpp.

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ops/cases.hpp"
#include "ops/kv_codec.hpp"

namespace glint {

void add_dense_cases(std::vector<Case>& list);      // embed, rms_norm, linear, lm_head, mtp_input
void add_attention_cases(std::vector<Case>& list);  // mla_project, mla_append, mla_attend
void add_expert_cases(std::vector<Case>& list);     // route, moe, mlp

constexpr OpTag kCaseTag{"case", 0};

constexpr WeightFormat kAllFormats[] = {WeightFormat::kF32, WeightFormat::kF16, WeightFormat::kBF16};

inline std::string text(WeightFormat f) {
  return f == WeightFormat::kF32 ? "f32" : f == WeightFormat::kF16 ? "f16" : "bf16";
}
inline std::string text(KvCodec c) { return std::string(kv_codec_name(c)); }
inline std::string text(const char* name, std::int64_t value) {
  return std::string(name) + "=" + std::to_string(value);
}

// "op/part/part".
inline std::string case_name(const std::string& op, const std::vector<std::string>& parts) {
  std::string name = op;
  for (const std::string& p : parts) name += "/" + p;
  return name;
}

}  // namespace glint
