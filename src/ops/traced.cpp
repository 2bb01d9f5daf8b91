#include "ops/traced.hpp"

namespace glint {

std::vector<NamedView> outputs(const EmbedParams& p) { return {{"out", p.out}}; }

std::vector<NamedView> outputs(const RmsNormParams& p) {
  std::vector<NamedView> views;
  if (p.delta) views.push_back({"hidden", p.hidden});
  if (p.out) views.push_back({"out", p.out});
  return views;
}

std::vector<NamedView> outputs(const LinearParams& p) { return {{"out", p.out}}; }
std::vector<NamedView> outputs(const MlaProjectParams& p) { return {{"q", p.q}, {"kv", p.kv}}; }
std::vector<NamedView> outputs(const MlaAppendParams&) { return {}; }
std::vector<NamedView> outputs(const MlaAttendParams& p) { return {{"out", p.out}}; }

std::vector<NamedView> outputs(const RouteParams& p) {
  const Shape shape{p.x.shape[0], p.top_k};
  return {{"ids", {p.ids, DType::kI32, shape}}, {"weights", {p.weights, DType::kF32, shape}}};
}

std::vector<NamedView> outputs(const MoeParams& p) { return {{"out", p.out}}; }
std::vector<NamedView> outputs(const MlpParams& p) { return {{"out", p.out}}; }
std::vector<NamedView> outputs(const LmHeadParams& p) { return {{"logits", p.logits}}; }
std::vector<NamedView> outputs(const MtpInputParams& p) { return {{"out", p.out}}; }

void Traced::emit(const OpTag& tag, const NamedView& out) {
  const auto n = static_cast<std::size_t>(out.view.shape.elements());
  std::vector<std::byte> raw(out.view.bytes());
  inner().download(raw.data(), out.view.data, raw.size());
  std::vector<float> values(n);
  for (std::size_t i = 0; i < n; ++i) values[i] = load_as_float(raw.data(), out.view.dtype, i);
  sink_(tag, out.name, {values.data(), DType::kF32, out.view.shape});
}

}  // namespace glint
