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
// Later additions, last in the list: a case's place gives its seed.
void add_many_rows_cases(std::vector<Case>& list);
void add_prefill_cases(std::vector<Case>& list);
void add_many_rows_expert_cases(std::vector<Case>& list);
void add_narrow_group_cases(std::vector<Case>& list);
void add_absorbed_cases(std::vector<Case>& list);

constexpr OpTag kCaseTag{"case", 0};

constexpr WeightFormat kAllFormats[] = {WeightFormat::kF32, WeightFormat::kF16, WeightFormat::kBF16};

// How a case stores its weights: a plain format, or a block format with its groups.
struct Stored {
  QuantSpec spec;
  Stored(WeightFormat format) : spec{.format = format} {}  // NOLINT(google-explicit-constructor): one is the other
  Stored(const QuantSpec& s) : spec(s) {}                  // NOLINT(google-explicit-constructor)
};
// Every code layout, width of group, kind of scale and zero point that kernels tell apart.
inline const QuantSpec kBlockSpecs[] = {
    {WeightFormat::kI4, 128, 1, true, DType::kBF16},   {WeightFormat::kI4, 64, 1, true, DType::kF16},
    {WeightFormat::kI4, 256, 1, false, DType::kF32},   {WeightFormat::kI4, 32, 1, false, DType::kBF16},
    {WeightFormat::kI4, 16, 1, true, DType::kF32},     {WeightFormat::kI8, 0, 1, true, DType::kF32},
    {WeightFormat::kI8, 64, 1, false, DType::kBF16},   {WeightFormat::kI8, 32, 1, true, DType::kF16},
    {WeightFormat::kI8, 16, 1, false, DType::kF32},    {WeightFormat::kNF4, 64, 1, true, DType::kF32},
    {WeightFormat::kNF4, 32, 1, true, DType::kBF16},   {WeightFormat::kF4E2M1, 16, 1, true, DType::kF32},
    {WeightFormat::kF4E2M1, 32, 1, true, DType::kF16}, {WeightFormat::kF4E2M1, 64, 1, true, DType::kBF16},
    {WeightFormat::kF8E4M3, 0, 1, true, DType::kF32},  {WeightFormat::kF8E4M3, 128, 128, true, DType::kBF16},
};

inline std::string text(const Stored& s) {
  return s.spec.name() + (has_scales(s.spec.format) ? "-" + std::string(dtype_name(s.spec.scale_dtype)) : "");
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
