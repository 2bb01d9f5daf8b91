#pragma once
// One forwarding base for all decorators: an Ops that runs every op of an inner Ops through Self::around.

#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "ops/ops.hpp"

namespace glint {

// Self derives from DecoratedOps<Self> and has
//   template <typename Params, typename Run> void around(std::string_view op, const Params& p, Run run);
// which calls run() exactly once to run the op. The inner Ops is borrowed or owned, by constructor.
template <typename Self>
class DecoratedOps : public Ops {
 public:
  explicit DecoratedOps(Ops& inner) : inner_(&inner) {}
  explicit DecoratedOps(std::unique_ptr<Ops> inner) : owned_(std::move(inner)), inner_(owned_.get()) {}

  Ops& inner() { return *inner_; }
  const Ops& inner() const { return *inner_; }

  std::string name() const override { return inner_->name(); }
  Buffer allocate(std::size_t bytes) override { return inner_->allocate(bytes); }
  void upload(void* dst, const void* src, std::size_t bytes) override { inner_->upload(dst, src, bytes); }
  void download(void* dst, const void* src, std::size_t bytes) override { inner_->download(dst, src, bytes); }
  void copy(void* dst, const void* src, std::size_t bytes) override { inner_->copy(dst, src, bytes); }
  void start_download(void* dst, const void* src, std::size_t bytes) override {
    inner_->start_download(dst, src, bytes);
  }
  void finish_download() override { inner_->finish_download(); }
  void synchronize() override { inner_->synchronize(); }
  void reserve(const OpLimits& limits) override { inner_->reserve(limits); }
  bool host_memory() const override { return inner_->host_memory(); }
  std::int64_t available_bytes() const override { return inner_->available_bytes(); }
  bool fill_from_pool(void* dst, std::int64_t n, const void* pool, std::int64_t pool_n, int element_bytes,
                      std::uint64_t stream) override {
    return inner_->fill_from_pool(dst, n, pool, pool_n, element_bytes, stream);
  }
  void start_timer() override { inner_->start_timer(); }
  double stop_timer() override { return inner_->stop_timer(); }
  bool supports(WeightFormat format) const override { return inner_->supports(format); }
  bool supports(KvCodec codec) const override { return inner_->supports(codec); }
  bool supports_absorbed(const QuantSpec& kv_b) const override { return inner_->supports_absorbed(kv_b); }

  void prepare_decoder(std::span<const LayerWeights> layers) override { inner_->prepare_decoder(layers); }

  void embed(const EmbedParams& p) final { forward("embed", p, &Ops::embed); }
  void rms_norm(const RmsNormParams& p) final { forward("rms_norm", p, &Ops::rms_norm); }
  void linear(const LinearParams& p) final { forward("linear", p, &Ops::linear); }
  void mla_project(const MlaProjectParams& p) final { forward("mla_project", p, &Ops::mla_project); }
  void mla_append(const MlaAppendParams& p) final { forward("mla_append", p, &Ops::mla_append); }
  void mla_attend(const MlaAttendParams& p) final { forward("mla_attend", p, &Ops::mla_attend); }
  void route(const RouteParams& p) final { forward("route", p, &Ops::route); }
  void moe(const MoeParams& p) final { forward("moe", p, &Ops::moe); }
  void mlp(const MlpParams& p) final { forward("mlp", p, &Ops::mlp); }
  void lm_head(const LmHeadParams& p) final { forward("lm_head", p, &Ops::lm_head); }
  void mtp_input(const MtpInputParams& p) final { forward("mtp_input", p, &Ops::mtp_input); }

 private:
  template <typename Params>
  void forward(std::string_view op, const Params& p, void (Ops::*method)(const Params&)) {
    static_cast<Self*>(this)->around(op, p, [&] { (inner_->*method)(p); });
  }

  std::unique_ptr<Ops> owned_;
  Ops* inner_;
};

}  // namespace glint
