#pragma once
// The backend's Ops: picks a kernel for each product by its shape, and strings kernels together on one stream. Nothing
// here reads device memory: grids follow from the sizes that the host knows.

#include <optional>

#include "backends/cuda/decode_step.hpp"
#include "backends/cuda/device.hpp"
#include "backends/cuda/gemm.hpp"
#include "backends/cuda/mla.hpp"

namespace glint::cuda {

class CudaOps final : public Ops {
 public:
  explicit CudaOps(const CudaOptions& options);
  ~CudaOps() override;
  CudaOps(const CudaOps&) = delete;
  CudaOps& operator=(const CudaOps&) = delete;

  std::string name() const override;
  Buffer allocate(std::size_t bytes) override { return device_.allocate(bytes); }
  void upload(void* dst, const void* host_src, std::size_t bytes) override {
    settle();
    device_.upload(dst, host_src, bytes);
  }
  void download(void* host_dst, const void* src, std::size_t bytes) override {
    settle();
    device_.download(host_dst, src, bytes);
  }
  void start_download(void* host_dst, const void* src, std::size_t bytes) override {
    settle();
    device_.start_download(host_dst, src, bytes);
  }
  void finish_download() override { device_.finish_download(); }
  void copy(void* dst, const void* src, std::size_t bytes) override;
  void synchronize() override {
    settle();
    device_.synchronize();
  }
  void reserve(const OpLimits& limits) override;
  bool supports(WeightFormat format) const override { return has_kernels(format); }
  bool supports(KvCodec codec) const override { return codec != KvCodec::kF16 && codec != KvCodec::kInt16; }

  bool host_memory() const override { return false; }
  std::int64_t available_bytes() const override;
  bool fill_from_pool(void* dst, std::int64_t n, const void* pool, std::int64_t pool_n, int element_bytes,
                      std::uint64_t stream) override;

  void start_timer() override;
  double stop_timer() override;

  void embed(const EmbedParams& p) override;
  void rms_norm(const RmsNormParams& p) override;
  void linear(const LinearParams& p) override;
  void mla_project(const MlaProjectParams& p) override;
  void mla_append(const MlaAppendParams& p) override;
  void mla_attend(const MlaAttendParams& p) override;
  void route(const RouteParams& p) override;
  void moe(const MoeParams& p) override;
  void mlp(const MlpParams& p) override;
  void lm_head(const LmHeadParams& p) override;
  void mtp_input(const MtpInputParams& p) override;
  void prepare_decoder(std::span<const LayerWeights> layers) override;
  bool decoder(const DecoderParams& p) override;
  bool sample(const SampleParams& p) override;

 private:
  // Up to so many rows, dense products go through the skinny kernel.
  static constexpr std::int64_t kSkinnyRows = 16;
  // The same for experts, which soon have several rows each.
  static constexpr std::int64_t kSkinnyExpertRows = 8;
  // From so many rows on, experts in codes go through the kernel that decodes them in the product: 2 to 6 % faster than
  // the wide kernels then, 11 to 15 % at 2,047 rows; at 1,024 between 1 % slower and 3 % faster (H200).
  static constexpr std::int64_t kCodesRows = 1280;
  // From so many rows on, Hopper decodes codes of other matrices to BF16 in the workspace and multiplies as if they had
  // been that; so it does with experts that the kernel above does not read.
  static constexpr std::int64_t kWidenRows = 2048;
  // For that: gate and up of the dense layer, or of seven experts at a time.
  static constexpr std::int64_t kWidenBytes = std::int64_t{96} << 20;
  // Up to so many rows, BF16 matrices go through the wide kernels (at 256 the tiled ones are faster, H100), and INT4
  // where it is widened then. Other codes go through them for any number of rows that is not widened, since the tiled
  // kernels decode them one by one.
  static constexpr std::int64_t kWideBf16Rows = 128, kWideWgmmaBf16Rows = 512, kWideInt4Rows = kWidenRows - 1;
  std::int64_t most_wide_rows(const MatShape& w) const;
  // Up to so many rows, experts of formats that the wide kernels do not read go through the skinny one.
  static constexpr std::int64_t kSkinnyMoeRows = 128;
  // Rows at once where gated products of odd shapes need fp32 buffers.
  static constexpr std::int64_t kPartRows = 256;
  // The same where x and h have two parts: twice the bytes.
  static constexpr std::int64_t kTwoPartRows = 1024;

  const Launch& begin();  // every op starts here, but those that touch nothing handed on
  // Attention's neighbours hand their output on in BF16, in halves_: what reads it next wants that. The F32 that an op
  // promised is made when anyone else comes, from the same numbers.
  struct Handed {
    float* out = nullptr;  // null: nothing
    std::int64_t n = 0;
    bool is(const void* data, std::int64_t count) const { return out != nullptr && out == data && n == count; }
  };
  void settle();
  const Launch& begin_beside();  // of an op that touches nothing handed on

  static bool aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

  struct Product {
    Mat w;
    Act x;
    float* out = nullptr;
    std::int64_t out_stride = 0;
    std::int64_t rows = 0;
    std::int64_t valid = 0;
    const float2* angles = nullptr;  // of a query's heads, which are wanted in BF16; gemm_products() only
  };
  void product(const Product& p, Scratch& scratch);
  bool skinny_takes(const Mat& w, const Act& x, std::int64_t rows) const;
  bool wide_takes(const Mat& w, std::int64_t rows) const;
  // BF16 rows of x, dense, as the wide kernels of a format read them; with two parts [high | low].
  Act reordered(const Act& x, std::int64_t rows, const MatShape& w, Scratch& scratch, int parts = 1);
  // BF16 rows of x, dense, as the tiled kernels read them.
  Act packed(const Act& x, std::int64_t rows, std::int64_t cols, Scratch& scratch);
  // Whether gemm.hpp's kernels may read such a matrix for so many rows, with the room left.
  bool gemm_reads(const Mat& w, std::int64_t rows, const Scratch& scratch) const;
  // W itself, or its codes decoded into the workspace.
  const void* as_bf16(const Mat& w, Scratch& scratch);
  // One matrix, or two over the same x. False: nothing was done.
  bool gemm_products(const Product& a, const Product* b, Scratch& scratch);
  bool gemm_gated(const ExpertWeights& w, const Act& x, float* out, std::int64_t rows, Scratch& scratch);
  // out = down(silu(gate x) ⊙ up x).
  void gated(const ExpertWeights& w, const Act& x, float* out, std::int64_t rows, Scratch& scratch);
  void gated_in_parts(const Mat& gate, const Mat& up, const Mat& down, const Act& x, float* out, std::int64_t rows,
                      Scratch scratch);

  void attend_absorbed(const MlaAttendParams& p, const Mat& kv_b, const CacheView& cache, bool many);

  struct MoeCall;
  template <typename Job>
  void set_moe(Job& m, const MoeCall& c, Scratch& scratch);
  template <typename Job>
  void run_moe(Job& m, const MoeCall& c, const Act& x, void (*run)(const Launch&, const Job&));
  void moe_skinny(const MoeCall& c, Scratch& scratch);
  void moe_wide(const MoeCall& c, Scratch& scratch);
  void moe_tiled(const MoeCall& c, Scratch& scratch);
  bool moe_by_gemm(const MoeCall& c, const ExpertWeights& shared, Scratch scratch);
  void gemm_experts(GemmMoe& m, const MatShape& shape, const MatShape& shared, Scratch scratch);
  void codes_experts(const GemmMoe& m, const MatShape& shape, const MatShape& shared, Scratch scratch);
  void widen_shared(GemmMoe& m, const MatShape& shared, Scratch& scratch);
  void moe_any(const MoeCall& c, Scratch& scratch);
  void moe_mixed(const MoeCall& c, std::span<const ExpertWeights> experts, Scratch& scratch);
  MoeGroups grouped(const MoeCall& c, int item_rows, Scratch& scratch);

  std::size_t workspace_for(const OpLimits& l) const;
  std::int64_t partial_rows(const OpLimits& l) const;
  const RopeJob rope(const std::int32_t* positions, float theta);

  // The layers of prepare_decoder() as the kernel of a step reads them.
  struct Decoder {
    const LayerWeights* layers = nullptr;  // whose they are; null: none that the kernel reads
    std::size_t n_layers = 0;
    DecodeStep shape;  // sizes and table; its other fields are a step's
    Buffer table, workspace;
  };

  Device device_;
  bool one_kernel_;
  Decoder decoder_;
  OpLimits limits_;
  Buffer route_counters_, attend_present_;  // zero between calls
  Buffer halves_;                           // BF16 [max_rows, n_heads · 256]
  Handed handed_;                           // in it: a query, or attention's answer in its place
  cudaEvent_t timer_[2] = {};
  float rope_theta_ = 0;
  RopeFrequencies frequencies_{};
};

}  // namespace glint::cuda
