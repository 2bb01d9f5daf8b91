#include "backends/reference/reference.hpp"

#include <cstring>

namespace glint {
namespace {

class ReferenceOps final : public Ops {
 public:
  std::string name() const override { return "reference"; }

  Buffer allocate(std::size_t bytes) override { return host_buffer(bytes); }
  void upload(void* dst, const void* host_src, std::size_t bytes) override {
    if (bytes > 0) std::memcpy(dst, host_src, bytes);
  }
  void download(void* host_dst, const void* src, std::size_t bytes) override {
    if (bytes > 0) std::memcpy(host_dst, src, bytes);
  }
  void copy(void* dst, const void* src, std::size_t bytes) override {
    if (bytes > 0) std::memcpy(dst, src, bytes);
  }
  void reserve(const OpLimits&) override {}  // ops take their own temporaries
  bool supports(WeightFormat) const override { return true; }
  bool supports(KvCodec) const override { return true; }
  bool supports_absorbed(const QuantSpec&) const override { return true; }

  void embed(const EmbedParams& p) override { reference::embed(p); }
  void rms_norm(const RmsNormParams& p) override { reference::rms_norm(p); }
  void linear(const LinearParams& p) override { reference::linear(p); }
  void mla_project(const MlaProjectParams& p) override { reference::mla_project(p); }
  void mla_append(const MlaAppendParams& p) override { reference::mla_append(p); }
  void mla_attend(const MlaAttendParams& p) override { reference::mla_attend(p); }
  void route(const RouteParams& p) override { reference::route(p); }
  void moe(const MoeParams& p) override { reference::moe(p); }
  void mlp(const MlpParams& p) override { reference::mlp(p); }
  void lm_head(const LmHeadParams& p) override { reference::lm_head(p); }
  void mtp_input(const MtpInputParams& p) override { reference::mtp_input(p); }
  bool sample(const SampleParams& p) override {
    reference::sample(p);
    return true;
  }
};

}  // namespace

std::unique_ptr<Ops> make_reference_ops() { return std::make_unique<ReferenceOps>(); }

}  // namespace glint
