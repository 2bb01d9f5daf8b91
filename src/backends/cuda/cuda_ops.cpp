// Memory, and the dense ops: embedding, norm, linear, language-model head, MTP input.

#include "backends/cuda/cuda_ops.hpp"

#include <algorithm>
#include <limits>

#include "backends/cuda/sample.hpp"
#include "base/error.hpp"

namespace glint {

std::unique_ptr<Ops> make_cuda_ops(const CudaOptions& options) { return std::make_unique<cuda::CudaOps>(options); }

namespace cuda {
namespace {}  // namespace

Mat mat_of(const Weight& w) {
  Mat m;
  m.shape = {.rows = static_cast<std::int32_t>(w.rows),
             .cols = static_cast<std::int32_t>(w.cols),
             .group = static_cast<std::int32_t>(std::max<std::int64_t>(1, w.group)),
             .group_rows = static_cast<std::int32_t>(w.group_rows),
             .groups_a_row = static_cast<std::int32_t>(w.groups_a_row()),
             .format = w.format,
             .scale_dtype = w.scale_dtype};
  m.at = {.data = w.data, .scales = w.scales, .mins = w.mins};
  return m;
}

CudaOps::CudaOps(const CudaOptions& options) : device_(options), one_kernel_(options.one_kernel) {
  for (cudaEvent_t& e : timer_) check(cudaEventCreate(&e), "event");
}

CudaOps::~CudaOps() {
  for (const cudaEvent_t e : timer_) cudaEventDestroy(e);
}

void CudaOps::start_timer() {
  begin_beside();
  check(cudaEventRecord(timer_[0], device_.stream()), "event");
}

double CudaOps::stop_timer() {
  begin_beside();
  check(cudaEventRecord(timer_[1], device_.stream()), "event");
  check(cudaEventSynchronize(timer_[1]), "the ops before a timer's end");
  float ms = 0;
  check(cudaEventElapsedTime(&ms, timer_[0], timer_[1]), "timer");
  return 1e-3 * static_cast<double>(ms);
}

std::string CudaOps::name() const {
  return "cuda (" + device_.info().name + " sm_" + std::to_string(device_.info().sm) + ")";
}

const Launch& CudaOps::begin() {
  const Launch& l = begin_beside();
  settle();
  return l;
}

const Launch& CudaOps::begin_beside() {
  device_.activate();
  return device_.launch();
}

void CudaOps::settle() {
  if (handed_.out == nullptr) return;
  unpack(begin_beside(), halves_.data(), handed_.n, handed_.out);
  handed_ = {};
}

void CudaOps::copy(void* dst, const void* src, std::size_t bytes) {
  begin();
  check(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, device_.stream()), "copy");
}

std::int64_t CudaOps::available_bytes() const {
  device_.activate();
  std::size_t free = 0;
  std::size_t total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return static_cast<std::int64_t>(free);
}

bool CudaOps::fill_from_pool(void* dst, std::int64_t n, const void* pool, std::int64_t pool_n, int element_bytes,
                             std::uint64_t stream) {
  cuda::fill_from_pool(begin(), dst, n, pool, pool_n, element_bytes, stream);
  return true;
}

// ---- workspace ------------------------------------------------------------------------------------------------------

std::int64_t CudaOps::partial_rows(const OpLimits& l) const {
  constexpr std::int64_t kSplit = 128;
  const std::int64_t pieces = std::min<std::int64_t>(kMaxPieces, (l.max_context + kSplit - 1) / kSplit);
  return std::max(l.n_heads * std::min<std::int64_t>(32 * kMaxPieces, pieces * l.max_rows),
                  std::int64_t{2 * kFewTile} * device_.launch().n_sms);
}

// The largest of what the ops take; each line follows the takes of one op.
std::size_t CudaOps::workspace_for(const OpLimits& l) const {
  constexpr std::int64_t kSlack = 64 * 256;  // rounding up of each take
  const std::int64_t t = std::max<std::int64_t>(l.max_rows, 1), h = l.hidden, slots = t * (l.top_k + 1);
  const std::int64_t inner = std::max(l.dense_inner, l.expert_inner), some = std::min(t, kPartRows);
  const std::int64_t widest = std::max({2 * h, l.n_heads * kValue, l.q_lora, inner, std::int64_t{kLatent}});
  const std::int64_t linear = std::max(t, l.max_logits) * widest * 4;
  const std::int64_t project = t * h * 6 + t * l.q_lora * 8 + t * kRope * 4;
  const std::int64_t attend =
      t * l.n_heads * (2 * kKvRow + 2 * kNope + 4 * kLatent) + partial_rows(l) * (kLatent * 4 + 8);
  const PrefillSizes p = prefill_sizes(l.max_rows, l.max_context, l.n_heads);
  const std::int64_t prefill = p.latent_bytes + p.tile_bytes + p.state_bytes;
  const std::int64_t gated =
      std::max(t * h * 2 + 2 * t * inner * 2 + 2 * some * inner * 4, std::min(t, kTwoPartRows) * (h * 4 + inner * 8));
  const std::int64_t moe = t * h * 2 + slots * (l.expert_inner * 2 + h * 4 + 4) + (slots + l.n_experts) * 16 + gated +
                           (slots / kGroupSlots + 1) * l.n_experts * 4;
  const std::int64_t route =
      std::max(t * kRouteLeastParts, std::min(t, kRouteSomeRows) * kRouteMostParts) * l.n_experts * 4;
  const std::int64_t mtp = t * h * 4 + linear;
  const std::int64_t widened = device_.launch().wgmma && t >= kWidenRows ? kWidenBytes : 0;
  return static_cast<std::size_t>(std::max({linear, project, attend, prefill, moe, route, mtp}) + widened + kSlack);
}

void CudaOps::reserve(const OpLimits& limits) {
  if (limits.n_experts > kMaxExperts || limits.top_k > 32) {
    throw Error({.what = name(),
                 .found = std::to_string(limits.n_experts) + " experts, " + std::to_string(limits.top_k) + " a token",
                 .expected = "at most " + std::to_string(kMaxExperts) + ", 32 a token"});
  }
  const auto grow = [](std::int64_t& known, std::int64_t wanted) { known = std::max(known, wanted); };
  grow(limits_.max_rows, limits.max_rows);
  grow(limits_.max_logits, limits.max_logits);
  grow(limits_.max_context, limits.max_context);
  grow(limits_.hidden, limits.hidden);
  grow(limits_.n_heads, limits.n_heads);
  grow(limits_.q_lora, limits.q_lora);
  grow(limits_.dense_inner, limits.dense_inner);
  grow(limits_.expert_inner, limits.expert_inner);
  grow(limits_.n_experts, limits.n_experts);
  grow(limits_.top_k, limits.top_k);
  grow(limits_.vocab, limits.vocab);
  device_.grow_workspace(workspace_for(limits_));
  const auto counters = static_cast<std::size_t>(limits_.max_rows / kRouteRows + 1) * sizeof(unsigned);
  if (route_counters_.bytes() < counters) {
    device_.synchronize();
    route_counters_ = device_.allocate(counters);
  }
  const auto halves = static_cast<std::size_t>(limits_.max_rows * limits_.n_heads * kQk) * 2;
  if (device_.launch().wgmma && limits_.max_rows >= kManyRows && halves_.bytes() < halves) {
    settle();
    device_.synchronize();
    halves_ = {};
    halves_ = device_.allocate(halves);
  }
  if (attend_present_.bytes() == 0) attend_present_ = device_.allocate(kMaxPresent * sizeof(unsigned));
}

// ---- products -------------------------------------------------------------------------------------------------------

bool CudaOps::skinny_takes(const Mat& w, const Act& x, std::int64_t rows) const {
  return rows <= kSkinnyRows && skinny_fits(w) && aligned(x.data) && x.stride % (x.bf16 ? 8 : 4) == 0;
}

std::int64_t CudaOps::most_wide_rows(const MatShape& w) const {
  if (w.format == WeightFormat::kBF16) return device_.launch().wgmma ? kWideWgmmaBf16Rows : kWideBf16Rows;
  const bool tiled_is_fast = w.format == WeightFormat::kI4 && tiled_moe_by_wgmma(device_.launch(), w);
  return tiled_is_fast ? kWideInt4Rows : std::numeric_limits<std::int64_t>::max();
}

bool CudaOps::wide_takes(const Mat& w, std::int64_t rows) const {
  return rows > kSkinnyRows && rows <= most_wide_rows(w.shape) && wide_fits(w);
}

Act CudaOps::reordered(const Act& x, std::int64_t rows, const MatShape& w, Scratch& scratch, int parts) {
  if (!wide_reorders(device_.launch(), w.format)) return packed(x, rows, w.cols, scratch);
  auto* out = scratch.take<>(rows * w.cols * parts * 2);
  wide_reorder(device_.launch(), x, out, rows, w.cols, w.format, parts);
  return {.data = out, .stride = w.cols * parts, .bf16 = true};
}

Act CudaOps::packed(const Act& x, std::int64_t rows, std::int64_t cols, Scratch& scratch) {
  if (x.bf16 && x.rows_index == nullptr && aligned(x.data) && x.stride % 8 == 0) return x;
  auto* out = scratch.take<>(rows * cols * 2);
  pack(device_.launch(), x, out, rows, cols);
  return {.data = out, .stride = cols, .bf16 = true};
}

void CudaOps::product(const Product& p, Scratch& scratch) {
  if (p.rows == 0) return;
  const Launch& l = device_.launch();
  const std::int64_t valid = p.valid > 0 ? p.valid : p.w.shape.rows;
  const bool skinny = skinny_takes(p.w, p.x, p.rows);
  if (!skinny && gemm_products(p, nullptr, scratch)) return;
  if (skinny || wide_takes(p.w, p.rows)) {
    SkinnyDense d(p.w);
    d.out[0] = p.out;
    d.out_stride[0] = p.out_stride;
    d.x = skinny ? p.x : reordered(p.x, p.rows, p.w.shape, scratch);
    d.rows = p.rows;
    d.valid = valid;
    if (skinny && head_int8_fits(l, d)) {
      head_int8(l, d);
    } else {
      skinny ? skinny_dense(l, d) : wide_dense(l, d);
    }
  } else if (tiled_fits(p.w)) {
    const Act x = packed(p.x, p.rows, p.w.shape.cols, scratch);
    Tiled t;
    t.w = p.w;
    t.x = x.data;
    t.x_stride = x.stride;
    t.rows = p.rows;
    t.out = p.out;
    t.out_stride = p.out_stride;
    t.valid = valid;
    tiled(l, t);
  } else {
    linear_any(l, p.w, p.x, p.out, p.out_stride, p.rows, valid);
  }
}

bool CudaOps::gemm_reads(const Mat& w, std::int64_t rows, const Scratch& scratch) const {
  if (!device_.launch().wgmma || !tiled_fits(w)) return false;
  if (w.shape.format == WeightFormat::kBF16) return rows > kWideWgmmaBf16Rows;
  return rows >= kWidenRows && has_kernels(w.shape.format) &&
         scratch.left() >= std::int64_t{w.shape.rows} * w.shape.cols * 2 + 512;
}

const void* CudaOps::as_bf16(const Mat& w, Scratch& scratch) {
  if (w.shape.format == WeightFormat::kBF16) return w.at.data;
  Widen job{.shape = w.shape, .n = 1};
  job.at[0] = w.at;
  job.out = scratch.take<>(std::int64_t{w.shape.rows} * w.shape.cols * 2);
  widen(device_.launch(), job);
  return job.out;
}

bool CudaOps::gemm_products(const Product& a, const Product* b, Scratch& scratch) {
  const Launch& l = device_.launch();
  Gemm g;
  g.depth = a.w.shape.cols;
  g.rows = a.rows;
  const Product* all[2] = {&a, b};
  Scratch trial = scratch;
  if (a.x.bf16 && a.x.stride % 8 == 0 && aligned(a.x.data)) {
    g.x_stride = a.x.stride;
  } else {
    const std::int64_t bytes = a.rows * g.depth * 2;
    if (trial.left() < bytes + 256) return false;
    trial.take<>(bytes);
    g.x_stride = g.depth;
  }
  for (int i = 0; i < 2 && all[i] != nullptr; ++i) {
    const Product& p = *all[i];
    if (!gemm_reads(p.w, p.rows, trial) || (p.valid > 0 && p.valid < p.w.shape.rows)) return false;
    g.w[i] = {.data = p.w.at.data, .rows = p.w.shape.rows, .out = p.out, .out_stride = p.out_stride};
    if (p.w.shape.format != WeightFormat::kBF16) trial.take<>(std::int64_t{p.w.shape.rows} * p.w.shape.cols * 2);
  }
  if (a.angles != nullptr) g.kind = GemmOut::kRope, g.angles = a.angles;
  if (!gemm_takes(l, g)) return false;
  g.x = packed(a.x, a.rows, g.depth, scratch).data;
  for (int i = 0; i < 2 && all[i] != nullptr; ++i) g.w[i].data = as_bf16(all[i]->w, scratch);
  gemm(l, g);
  return true;
}

// BF16 matrices meet x and h as two numbers each, as in gated_in_parts().
bool CudaOps::gemm_gated(const ExpertWeights& w, const Act& x, float* out, std::int64_t rows, Scratch& scratch) {
  const Launch& l = device_.launch();
  const Mat gate = mat_of(w.gate), up = mat_of(w.up), down = mat_of(w.down);
  const std::int64_t inner = gate.shape.rows, cols = gate.shape.cols, hidden = down.shape.rows;
  const bool codes = gate.shape.format != WeightFormat::kBF16 || up.shape.format != WeightFormat::kBF16 ||
                     down.shape.format != WeightFormat::kBF16;
  const int parts = codes ? 1 : 2;
  if (x.rows_index != nullptr || x.bf16 || !aligned(x.data) || x.stride % 4 != 0) return false;
  Scratch trial = scratch;
  const std::int64_t bytes = rows * (cols + inner) * 2 * parts + 512;
  if (trial.left() < bytes + 256) return false;
  trial.take<>(bytes);
  if (!gemm_reads(down, rows, trial) || !gemm_reads(gate, rows, trial)) return false;
  if (gate.shape.format != WeightFormat::kBF16) trial.take<>(inner * cols * 2);
  if (!gemm_reads(up, rows, trial)) return false;

  Gemm g;
  g.w[0] = {.data = gate.at.data, .rows = inner, .out_stride = inner * parts};
  g.w[1] = {.data = up.at.data, .rows = inner};
  g.depth = cols;
  g.x_stride = cols * parts;
  g.rows = rows;
  g.x_parts = parts;
  g.kind = codes ? GemmOut::kSiluMul : GemmOut::kSiluMulParts;
  Gemm d;
  d.w[0] = {.data = down.at.data, .rows = hidden, .out = out, .out_stride = hidden};
  d.depth = inner;
  d.x_stride = inner * parts;
  d.rows = rows;
  d.x_parts = parts;
  if (!gemm_takes(l, g) || !gemm_takes(l, d)) return false;
  auto* h = scratch.take<>(rows * inner * parts * 2);
  if (codes) {
    g.x = packed(x, rows, cols, scratch).data;
  } else {
    auto* both = scratch.take<>(rows * cols * parts * 2);
    pack_parts(l, static_cast<const float*>(x.data), x.stride, rows, cols, both);
    g.x = both;
  }
  {
    Scratch decoded = scratch;
    g.w[0].data = as_bf16(gate, decoded);
    g.w[1].data = as_bf16(up, decoded);
    g.w[0].out = h;
    gemm(l, g);
  }
  d.x = h;
  d.w[0].data = as_bf16(down, scratch);
  gemm(l, d);
  return true;
}

void CudaOps::gated(const ExpertWeights& w, const Act& x, float* out, std::int64_t rows, Scratch& scratch) {
  if (rows == 0) return;
  const Launch& l = device_.launch();
  const Mat gate = mat_of(w.gate), up = mat_of(w.up), down = mat_of(w.down);
  const std::int64_t inner = gate.shape.rows, hidden = down.shape.rows;
  const bool same = gate.shape.format == up.shape.format && gate.shape.group == up.shape.group &&
                    gate.shape.group_rows == up.shape.group_rows && gate.shape.scale_dtype == up.shape.scale_dtype &&
                    (gate.at.mins == nullptr) == (up.at.mins == nullptr);
  if (gemm_gated(w, x, out, rows, scratch)) return;
  if (same && wide_takes_parts(l, gate.shape.format) && wide_takes_parts(l, down.shape.format) && wide_fits(gate) &&
      wide_fits(up) && wide_fits(down) && !x.bf16 && x.rows_index == nullptr) {
    for (std::int64_t r = 0; r < rows; r += kTwoPartRows) {
      Act some = x;
      some.data = static_cast<const float*>(x.data) + r * x.stride;
      gated_in_parts(gate, up, down, some, out + r * hidden, std::min(kTwoPartRows, rows - r), scratch);
    }
    return;
  }
  auto* h = scratch.take<std::uint16_t>(rows * inner * 2);
  const bool skinny = same && skinny_takes(gate, x, rows) && skinny_fits(up);
  if (skinny || (same && wide_takes(gate, rows) && wide_fits(up))) {
    SkinnyDense d(gate, up);
    d.out_stride[0] = inner;
    d.out_bf16 = h;
    d.x = skinny ? x : reordered(x, rows, gate.shape, scratch);
    d.rows = rows;
    d.epilogue = Epilogue::kSiluMul;
    skinny ? skinny_dense(l, d) : wide_dense(l, d);
  } else if (same && tiled_fits(gate) && tiled_fits(up)) {
    const Act px = packed(x, rows, gate.shape.cols, scratch);
    Tiled t;
    t.w = gate;
    t.up = up.at;
    t.x = px.data;
    t.x_stride = px.stride;
    t.rows = rows;
    t.out = h;
    t.out_stride = inner;
    t.out_kind = TiledOut::kSiluMul;
    tiled(l, t);
  } else {
    auto* g = scratch.take<float>(std::min(rows, kPartRows) * inner * 4);
    auto* u = scratch.take<float>(std::min(rows, kPartRows) * inner * 4);
    CHECK(x.rows_index == nullptr);
    for (std::int64_t r = 0; r < rows; r += kPartRows) {
      const std::int64_t n = std::min(kPartRows, rows - r);
      Act part = x;
      part.data = static_cast<const std::byte*>(x.data) + r * x.stride * (x.bf16 ? 2 : 4);
      linear_any(l, gate, part, g, inner, n, inner);
      linear_any(l, up, part, u, inner, n, inner);
      silu_mul(l, g, u, h + r * inner, n * inner);
    }
  }
  product({.w = down, .x = {.data = h, .stride = inner, .bf16 = true}, .out = out, .out_stride = hidden, .rows = rows},
          scratch);
}

// The same with x and h as two BF16 numbers each. Rounding them in the dense layer's MLP alone cost three times the KL
// that a BF16 model may lose (docs/experiments/2026-11-28-cuda-wide.md).
void CudaOps::gated_in_parts(const Mat& gate, const Mat& up, const Mat& down, const Act& x, float* out,
                             std::int64_t rows, Scratch scratch) {
  const Launch& l = device_.launch();
  const std::int64_t inner = gate.shape.rows;
  auto* h = scratch.take<float>(rows * inner * 4);
  SkinnyDense d(gate, up);
  d.out[0] = h;
  d.out_stride[0] = inner;
  d.x = reordered(x, rows, gate.shape, scratch, 2);
  d.x_parts = 2;
  d.rows = rows;
  d.epilogue = Epilogue::kSiluMul;
  wide_dense(l, d);

  SkinnyDense e(down);
  e.out[0] = out;
  e.out_stride[0] = down.shape.rows;
  e.x = reordered({.data = h, .stride = inner}, rows, down.shape, scratch, 2);
  e.x_parts = 2;
  e.rows = rows;
  wide_dense(l, e);
}

// ---- dense ops ------------------------------------------------------------------------------------------------------

void CudaOps::embed(const EmbedParams& p) {
  cuda::embed(begin(), mat_of(p.table), p.ids, p.out.as<float>(), p.out.shape[0]);
}

void CudaOps::rms_norm(const RmsNormParams& p) {
  cuda::rms_norm(begin(), p.hidden.as<float>(), p.delta.as<float>(), p.weight.as<float>(), p.eps, p.out.as<float>(),
                 p.hidden.shape[0], p.hidden.shape[1]);
}

void CudaOps::linear(const LinearParams& p) {
  Act x{.data = p.x.data, .stride = p.x.shape[1]};
  if (handed_.is(p.x.data, p.x.shape[0] * p.x.shape[1])) {
    x.data = halves_.data();
    x.bf16 = true;
    handed_ = {};
  }
  begin();
  Scratch scratch = device_.scratch();
  product({.w = mat_of(p.w), .x = x, .out = p.out.as<float>(), .out_stride = p.out.shape[1], .rows = p.x.shape[0]},
          scratch);
}

void CudaOps::lm_head(const LmHeadParams& p) {
  begin();
  Scratch scratch = device_.scratch();
  product({.w = mat_of(p.w),
           .x = {.data = p.x.data, .stride = p.x.shape[1], .rows_index = p.rows},
           .out = p.logits.as<float>(),
           .out_stride = p.logits.shape[1],
           .rows = p.logits.shape[0],
           .valid = p.valid_vocab},
          scratch);
}

bool CudaOps::sample(const SampleParams& p) {
  const Launch& l = begin();
  if (!samples(l, p.logits.shape[1])) return false;
  cuda::sample(l, {.logits = p.logits.as<float>(),
                   .n_rows = p.logits.shape[0],
                   .vocab = p.logits.shape[1],
                   .rows = p.rows,
                   .edits = p.edits,
                   .masks = p.masks,
                   .mask_words = mask_words(p.logits.shape[1]),
                   .tokens = p.tokens});
  return true;
}

void CudaOps::mtp_input(const MtpInputParams& p) {
  const Launch& l = begin();
  Scratch scratch = device_.scratch();
  const std::int64_t rows = p.embed.shape[0], hidden = p.embed.shape[1];
  auto* both = scratch.take<std::uint16_t>(rows * 2 * hidden * 2);
  const NormPart embed{.x = p.embed.as<float>(),
                       .x_stride = hidden,
                       .weight = p.e_norm.as<float>(),
                       .n = hidden,
                       .out = both,
                       .out_stride = 2 * hidden,
                       .out_bf16 = true};
  NormPart stream = embed;
  stream.x = p.hidden.as<float>();
  stream.weight = p.h_norm.as<float>();
  stream.out = both + hidden;
  norm_pair(l, embed, stream, p.eps, {}, rows);
  product({.w = mat_of(p.eh_proj),
           .x = {.data = both, .stride = 2 * hidden, .bf16 = true},
           .out = p.out.as<float>(),
           .out_stride = p.out.shape[1],
           .rows = rows},
          scratch);
}

}  // namespace cuda
}  // namespace glint
