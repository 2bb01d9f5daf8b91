#pragma once
// An Ops that has memory and no arithmetic: what loading needs. Named "cuda…" it stands for a backend that cannot read
// host memory, so that the loader must upload everything.

#include <cstring>
#include <string>
#include <utility>

#include "ops/ops.hpp"

namespace glint {

class HostOps : public Ops {
 public:
  explicit HostOps(std::string name = "host") : name_(std::move(name)) {}

  std::string name() const override { return name_; }
  Buffer allocate(std::size_t bytes) override {
    allocated_bytes += bytes;
    return host_buffer(bytes);
  }
  void upload(void* dst, const void* src, std::size_t bytes) override {
    uploaded_bytes += bytes;
    std::memcpy(dst, src, bytes);
  }
  void download(void* dst, const void* src, std::size_t bytes) override { std::memcpy(dst, src, bytes); }
  void copy(void* dst, const void* src, std::size_t bytes) override { std::memcpy(dst, src, bytes); }
  void reserve(const OpLimits&) override {}
  bool supports(WeightFormat format) const override { return !only_bf16 || format == WeightFormat::kBF16; }
  bool supports(KvCodec) const override { return true; }

  void embed(const EmbedParams&) override { never(); }
  void rms_norm(const RmsNormParams&) override { never(); }
  void linear(const LinearParams&) override { never(); }
  void mla_project(const MlaProjectParams&) override { never(); }
  void mla_append(const MlaAppendParams&) override { never(); }
  void mla_attend(const MlaAttendParams&) override { never(); }
  void route(const RouteParams&) override { never(); }
  void moe(const MoeParams&) override { never(); }
  void mlp(const MlpParams&) override { never(); }
  void lm_head(const LmHeadParams&) override { never(); }
  void mtp_input(const MtpInputParams&) override { never(); }

  bool only_bf16 = false;
  std::size_t allocated_bytes = 0;
  std::size_t uploaded_bytes = 0;

 private:
  static void never() { CHECK(false, "HostOps computes nothing"); }
  std::string name_;
};

}  // namespace glint
