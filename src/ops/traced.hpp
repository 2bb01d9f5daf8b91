#pragma once
// Traced: hands every output of every op to a sink, as F32 on the host.

#include <functional>
#include <string_view>
#include <vector>

#include "ops/decorated.hpp"

namespace glint {

struct NamedView {
  std::string_view name;  // the member of the params struct
  ConstView view;
};

// The tensors that an op writes. The pages of mla_append are not among them: what goes into them is mla_project's kv.
std::vector<NamedView> outputs(const EmbedParams& p);
std::vector<NamedView> outputs(const RmsNormParams& p);
std::vector<NamedView> outputs(const LinearParams& p);
std::vector<NamedView> outputs(const MlaProjectParams& p);
std::vector<NamedView> outputs(const MlaAppendParams& p);
std::vector<NamedView> outputs(const MlaAttendParams& p);
std::vector<NamedView> outputs(const RouteParams& p);
std::vector<NamedView> outputs(const MoeParams& p);
std::vector<NamedView> outputs(const MlpParams& p);
std::vector<NamedView> outputs(const LmHeadParams& p);
std::vector<NamedView> outputs(const MtpInputParams& p);

// tensor: a host F32 view, valid only within the call; integer outputs (router ids) arrive as their values.
using TraceSink = std::function<void(const OpTag& tag, std::string_view tensor_name, const ConstView& tensor)>;

class Traced final : public DecoratedOps<Traced> {
 public:
  Traced(Ops& inner, TraceSink sink) : DecoratedOps(inner), sink_(std::move(sink)) {}
  Traced(std::unique_ptr<Ops> inner, TraceSink sink) : DecoratedOps(std::move(inner)), sink_(std::move(sink)) {}

  template <typename Params, typename Run>
  void around(std::string_view, const Params& p, Run run) {
    run();
    for (const NamedView& out : outputs(p)) emit(p.tag, out);
  }

 private:
  void emit(const OpTag& tag, const NamedView& out);

  TraceSink sink_;
};

}  // namespace glint
