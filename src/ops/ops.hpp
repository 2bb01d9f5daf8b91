#pragma once
// The one list of operations. backends/reference gives each its meaning; the others must agree with it (ops/cases.hpp).

#include <string>
#include <string_view>

#include "ops/params.hpp"
#include "ops/sample.hpp"
#include "tensor/codec.hpp"

namespace glint {

// The largest sizes a step will use; a backend sizes its workspace by them once, so that no op allocates.
struct OpLimits {
  std::int64_t max_rows = 0;     // T
  std::int64_t max_logits = 0;   // R
  std::int64_t max_context = 0;  // cached tokens a sequence
  std::int64_t hidden = 0;
  std::int64_t n_heads = 0;
  std::int64_t q_lora = 0;
  std::int64_t dense_inner = 0;   // inner size of the dense MLP
  std::int64_t expert_inner = 0;  // inner size of an expert
  std::int64_t n_experts = 0;
  std::int64_t top_k = 0;
  std::int64_t vocab = 0;
};

// Ops run in call order. None allocates, blocks on the outside or reads the environment. The caller guarantees the
// shapes that params.hpp states (the Checked decorator verifies them); dtypes and formats only within supports().
class Ops {
 public:
  virtual ~Ops() = default;

  // "reference", "cpu (avx2)", "cuda (sm_90)" …
  virtual std::string name() const = 0;

  // Memory. Host backends use host memory; upload/download are then copies. allocate() is zeroed; it throws Error when
  // memory is short and is never called in a step.
  virtual Buffer allocate(std::size_t bytes) = 0;
  virtual void upload(void* dst, const void* host_src, std::size_t bytes) = 0;
  virtual void download(void* host_dst, const void* src, std::size_t bytes) = 0;  // waits for the ops before it
  virtual void copy(void* dst, const void* src, std::size_t bytes) = 0;           // within the backend's memory
  // A download in two halves: the first asks for what the ops before it leave, the second waits for that and for no op
  // behind it. At most kFetches of kFetchBytes are under way; the second half is of the oldest.
  static constexpr std::size_t kFetchBytes = std::size_t{16} << 10;
  static constexpr int kFetches = 2;
  virtual void start_download(void* host_dst, const void* src, std::size_t bytes) { download(host_dst, src, bytes); }
  virtual void finish_download() {}
  virtual void synchronize() {}
  virtual void reserve(const OpLimits& limits) = 0;

  // Whether params' arrays (ids, offsets, tables) and outputs can be read on the host.
  virtual bool host_memory() const { return true; }
  // Bytes that allocate() can still give, -1 where that is the host's memory.
  virtual std::int64_t available_bytes() const { return -1; }
  // Random weights made in the backend's memory: n values of element_bytes, in pieces of 64 from hashed places of a
  // pool (synthetic.cpp says how). False: this backend does not; the caller makes and uploads them.
  virtual bool fill_from_pool(void* /*dst*/, std::int64_t /*n*/, const void* /*pool*/, std::int64_t /*pool_n*/,
                              int /*element_bytes*/, std::uint64_t /*stream*/) {
    return false;
  }

  // Seconds of the backend's own time between the two calls; negative: not offered, the wall clock has to do.
  virtual void start_timer() {}
  virtual double stop_timer() { return -1; }

  // True if this backend reads weights of that format / pages of that codec.
  virtual bool supports(WeightFormat format) const = 0;
  virtual bool supports(KvCodec codec) const = 0;
  // True if mla_attend reads a kv_b that is stored so: attention reads it along both its axes, and the format alone
  // does not tell whether a backend can. What is refused here is widened to BF16 at load.
  virtual bool supports_absorbed(const QuantSpec& kv_b) const {
    return !has_scales(kv_b.format) && supports(kv_b.format);
  }

  virtual void embed(const EmbedParams& p) = 0;
  virtual void rms_norm(const RmsNormParams& p) = 0;
  virtual void linear(const LinearParams& p) = 0;
  virtual void mla_project(const MlaProjectParams& p) = 0;
  virtual void mla_append(const MlaAppendParams& p) = 0;
  virtual void mla_attend(const MlaAttendParams& p) = 0;
  virtual void route(const RouteParams& p) = 0;
  virtual void moe(const MoeParams& p) = 0;
  virtual void mlp(const MlpParams& p) = 0;
  virtual void lm_head(const LmHeadParams& p) = 0;
  virtual void mtp_input(const MtpInputParams& p) = 0;

  // All decoder layers in one, where a backend has that for few rows and these layers. Otherwise (and in decorators,
  // which want to see the ops) false: nothing was done, and the caller goes op by op. The layers are made known once,
  // outside a step, and stay where they are.
  virtual void prepare_decoder(std::span<const LayerWeights> /*layers*/) {}
  virtual bool decoder(const DecoderParams& /*p*/) { return false; }

  // Tokens of rows of logits, where a backend's logits are far from the host. Otherwise, and in decorators, false:
  // nothing was done, and the caller samples on the host.
  virtual bool sample(const SampleParams& /*p*/) { return false; }
};

}  // namespace glint
