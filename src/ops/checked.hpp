#pragma once
// Checked: refuses an op whose params break the contract of params.hpp, before the op runs. For tests and debug builds.

#include <string_view>

#include "ops/decorated.hpp"

namespace glint {

// What a backend's params look like. A device backend's arrays (ids, slots, tables) cannot be read on the host: then
// only shapes, types and pointers are checked.
struct CheckPolicy {
  bool arrays_on_host = true;
  DType activation = DType::kF32;  // of every activation but logits, which are F32
  const Ops* backend = nullptr;    // if given, every weight format and page codec must be one that it supports
};

// Each throws Error that names the op, its tag and layer, the tensor, and found against expected:
//   "linear attn.o (layer 3): w dim 1 (in): found 255, expected 256 as in x".
void validate(const EmbedParams& p, const CheckPolicy& policy = {});
void validate(const RmsNormParams& p, const CheckPolicy& policy = {});
void validate(const LinearParams& p, const CheckPolicy& policy = {});
void validate(const MlaProjectParams& p, const CheckPolicy& policy = {});
void validate(const MlaAppendParams& p, const CheckPolicy& policy = {});
void validate(const MlaAttendParams& p, const CheckPolicy& policy = {});
void validate(const RouteParams& p, const CheckPolicy& policy = {});
void validate(const MoeParams& p, const CheckPolicy& policy = {});
void validate(const MlpParams& p, const CheckPolicy& policy = {});
void validate(const LmHeadParams& p, const CheckPolicy& policy = {});
void validate(const MtpInputParams& p, const CheckPolicy& policy = {});

class Checked final : public DecoratedOps<Checked> {
 public:
  explicit Checked(Ops& inner, CheckPolicy policy = {}) : DecoratedOps(inner), policy_(policy) {
    policy_.backend = &this->inner();
  }
  explicit Checked(std::unique_ptr<Ops> inner, CheckPolicy policy = {})
      : DecoratedOps(std::move(inner)), policy_(policy) {
    policy_.backend = &this->inner();
  }

  template <typename Params, typename Run>
  void around(std::string_view, const Params& p, Run run) {
    validate(p, policy_);
    run();
  }

 private:
  CheckPolicy policy_;
};

}  // namespace glint
