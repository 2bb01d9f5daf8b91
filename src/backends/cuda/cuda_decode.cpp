// The whole decode step: which models and batches the kernel takes, and its tables of layers and experts.

#include <algorithm>
#include <bit>

#include "backends/cuda/cuda_ops.hpp"
#include "backends/cuda/decode.hpp"

namespace glint::cuda {

// What is kept from step to step.
struct CudaOps::Decode {
  std::uint64_t weights_id = 0;
  bool fits = false;
  int n_moe = 0, widest_x = 0, act_stride = 0, q_lora = 0, hidden = 0, heads = 0, n_experts = 0;
  bool nf4 = false;
  DecodeMat lm_head{};
  std::vector<DecodeLayerData> layers;
  Buffer device_layers, device_experts, work;
  unsigned arrived = 0;
};

namespace {

bool aligned(const void* p, std::uintptr_t to) { return p != nullptr && reinterpret_cast<std::uintptr_t>(p) % to == 0; }

// The kernel's view of a matrix; false where it does not read such a one.
bool describe(const Weight& w, bool* nf4, DecodeMat* m) {
  *m = {};
  switch (w.format) {
    case WeightFormat::kBF16:
    case WeightFormat::kF8E4M3:
    case WeightFormat::kI8:
    case WeightFormat::kI4:
      break;
    case WeightFormat::kNF4:
      *nf4 = true;
      break;
    default:
      return false;
  }
  if (w.rows % 16 != 0 || w.cols % (1 << unit_shift(w.format)) != 0 || !aligned(w.data, 16)) return false;
  m->data = static_cast<const unsigned char*>(w.data);
  m->scales = static_cast<const unsigned char*>(w.scales);
  m->row_bytes = static_cast<std::int32_t>(w.row_bytes());
  m->rows = static_cast<std::int32_t>(w.rows);
  m->cols = static_cast<std::int32_t>(w.cols);
  m->format = w.format;
  if (!has_scales(w.format)) return true;

  m->scale_bytes = static_cast<std::uint8_t>(dtype_bytes(w.scale_dtype));
  m->scale_f16 = w.scale_dtype == DType::kF16;
  m->scale_row_bytes = static_cast<std::int32_t>(w.groups_a_row() * m->scale_bytes);
  if (w.mins != nullptr || !aligned(w.scales, 8)) return false;
  const auto rows = static_cast<std::uint64_t>(w.group_rows);
  if (w.group_rows >= w.rows) {
    m->row_shift = 31;
  } else if (std::has_single_bit(rows)) {
    m->row_shift = static_cast<std::uint8_t>(std::countr_zero(rows));
  } else {
    return false;
  }
  if (w.group >= w.cols) {
    m->kind = DecodeScale::kRow;
    return m->scale_bytes == 4 || m->row_shift == 0;
  }
  const auto group = static_cast<std::uint64_t>(w.group);
  if (!std::has_single_bit(group) || group < 64) return false;
  m->kind = DecodeScale::kGroup;
  m->group_shift = static_cast<std::uint8_t>(std::countr_zero(group / 64));
  const bool pairs = weight_code_bits(w.format) == 4 && m->group_shift == 0 && m->scale_bytes == 4;
  return m->scale_row_bytes % (pairs ? 8 : 4) == 0;
}

bool alike(const DecodeMat& a, const DecodeMat& b) {
  return a.rows == b.rows && a.cols == b.cols && a.format == b.format && a.kind == b.kind &&
         a.scale_bytes == b.scale_bytes && a.scale_f16 == b.scale_f16 && a.group_shift == b.group_shift &&
         a.row_shift == b.row_shift;
}

// Gate, up and down as one expert: gate and up are read side by side.
bool describe(const ExpertWeights& e, bool* nf4, DecodeMat* gate, DecodeMat* up, DecodeMat* down) {
  return describe(e.gate, nf4, gate) && describe(e.up, nf4, up) && describe(e.down, nf4, down) && alike(*gate, *up) &&
         gate->rows == down->cols;
}

bool same_staging(const DecodeMat& a, const DecodeMat& b) { return staging_of(a.format) == staging_of(b.format); }

// Parts of a dense inner size, none wider than a slice may be; 0: it cannot be cut.
int slices_of(int inner) {
  for (int n = (inner + kDecodeSliceCols - 1) / kDecodeSliceCols; n <= kDecodeSlices; ++n) {
    if (inner % (128 * n) == 0) return n;
  }
  return 0;
}

}  // namespace

CudaOps::DecodePtr CudaOps::make_decode() {
  return {new Decode, [](Decode* d) { delete d; }};
}

// One layer; its experts' pointers are appended to `experts`.
bool CudaOps::describe_layer(const DecodeLayer& w, Decode& d, std::vector<DecodeExpert>& experts) const {
  DecodeLayerData l{};
  const auto f32 = [](const ConstView& v, const float** to) {
    *to = v.as<float>();
    return aligned(*to, 16);
  };
  if (!describe(w.q_a, &d.nf4, &l.q_a) || !describe(w.kv_a, &d.nf4, &l.kv_a) || !describe(w.q_b, &d.nf4, &l.q_b) ||
      !describe(w.kv_b, &d.nf4, &l.kv_b) || !describe(w.o, &d.nf4, &l.o) || !f32(w.input_norm, &l.input_norm) ||
      !f32(w.q_a_norm, &l.q_a_norm) || !f32(w.kv_a_norm, &l.kv_a_norm) || !f32(w.post_norm, &l.post_norm)) {
    return false;
  }
  const int heads = l.o.cols / kValue;
  if (l.kv_b.format != WeightFormat::kBF16 || !same_staging(l.q_a, l.kv_a) || l.q_a.cols % 256 != 0 ||
      l.q_a.rows % 256 != 0 || l.q_b.rows != heads * kQk || heads > kDecodeHeads || l.q_a.cols > 8192 ||
      l.q_a.rows > 8192) {
    return false;
  }
  if (d.layers.empty()) {
    d.hidden = l.q_a.cols;
    d.q_lora = l.q_a.rows;
    d.heads = heads;
  }
  if (l.q_a.cols != d.hidden || l.q_a.rows != d.q_lora || heads != d.heads) return false;

  const bool dense = static_cast<bool>(w.dense.gate);
  if (!describe(dense ? w.dense : w.shared, &d.nf4, &l.shared_gate, &l.shared_up, &l.shared_down)) return false;
  l.n_slices = dense ? slices_of(l.shared_down.cols) : 1;
  if (l.n_slices == 0) return false;
  l.slice_cols = l.shared_down.cols / l.n_slices;
  if (l.slice_cols % (1 << unit_shift(l.shared_down.format)) != 0 || l.slice_cols > kDecodeSliceCols) return false;
  int widest = l.slice_cols;
  if (!dense) {
    l.moe = 1;
    ++d.n_moe;
    const std::size_t first = experts.size();
    for (const ExpertWeights& e : w.experts) {
      DecodeMat m[3];
      if (!describe(e, &d.nf4, &m[0], &m[1], &m[2])) return false;
      if (experts.size() == first) {
        l.gate = m[0];
        l.down = m[2];
      }
      if (!alike(m[0], l.gate) || !alike(m[2], l.down)) return false;
      experts.push_back({{m[0].data, m[1].data, m[2].data}, {m[0].scales, m[1].scales, m[2].scales}});
    }
    const auto n = static_cast<int>(experts.size() - first);
    if (d.n_experts == 0) d.n_experts = n;
    if (n == 0 || n != d.n_experts || n > kMaxExperts || !f32(w.router, &l.router) || w.router_bias.data == nullptr ||
        !same_staging(l.gate, l.shared_gate) || !same_staging(l.down, l.shared_down)) {
      return false;
    }
    l.router_bias = w.router_bias.as<float>();
    widest = std::max(widest, l.down.cols);
  }
  d.act_stride = std::max(d.act_stride, widest);
  d.widest_x = std::max<int>({d.widest_x, widest, d.hidden, d.q_lora, l.o.cols, 2 * kLatent});
  d.layers.push_back(l);
  return true;
}

void CudaOps::prepare_decode(const DecodeStepParams& p) {
  Decode& d = *decode_;
  const unsigned arrived = d.arrived;
  Buffer work = std::move(d.work);
  d = {};
  d.arrived = arrived;
  d.work = std::move(work);
  d.weights_id = p.weights_id;
  std::vector<DecodeExpert> experts;
  for (const DecodeLayer& l : p.layers) {
    if (!describe_layer(l, d, experts)) return;
  }
  if (d.layers.empty() || !describe(p.lm_head, &d.nf4, &d.lm_head) || d.lm_head.cols != d.hidden ||
      !aligned(p.final_norm.data, 16)) {
    return;
  }
  DecodeStep s;
  s.n_rows = kDecodeRows;
  s.hidden = d.hidden;
  s.n_experts = d.n_experts;
  if (!decode_device_fits(device_.launch(), s, d.widest_x, d.nf4)) return;

  d.device_experts = device_.allocate(std::max<std::size_t>(1, experts.size()) * sizeof(DecodeExpert));
  device_.upload(d.device_experts.data(), experts.data(), experts.size() * sizeof(DecodeExpert));
  d.device_layers = device_.allocate(d.layers.size() * sizeof(DecodeLayerData));
  int moe = 0;
  for (DecodeLayerData& l : d.layers) {
    if (l.moe != 0) l.experts = static_cast<const DecodeExpert*>(d.device_experts.data()) + d.n_experts * moe++;
  }
  const std::size_t need = static_cast<std::size_t>(carve_decode(d, nullptr, nullptr));
  if (d.work.bytes() < need) {
    d.work = device_.allocate(need);
    d.arrived = 0;  // it is zeroed
  }
  d.fits = true;
}

// Cuts the memory between blocks; returns its bytes.
std::int64_t CudaOps::carve_decode(const Decode& d, DecodeStep* s, std::byte* base) {
  std::int64_t used = 0;
  const auto take = [&](auto** to, std::int64_t n) {
    if (s != nullptr) *to = reinterpret_cast<std::remove_reference_t<decltype(*to)>>(base + used);
    used += (n * static_cast<std::int64_t>(sizeof(**to)) + 255) / 256 * 256;
  };
  DecodeStep unused;
  DecodeStep& o = s != nullptr ? *s : unused;
  const std::int64_t rows = kDecodeRows, heads = d.heads;
  take(&o.arrivals, 64);  // first: its place does not depend on sizes
  take(&o.low, rows * d.q_lora);
  take(&o.kv, rows * kKvRow);
  take(&o.q, rows * heads * kQk);
  take(&o.query, rows * heads * kLatent);
  take(&o.attended, rows * heads * kValue);
  take(&o.act, (rows * kDecodeSlices + kDecodeChoices) * d.act_stride);
  take(&o.scores, rows * std::max(1, d.n_experts));
  take(&o.partial, rows * kDecodeSplits * heads * kLatent);
  take(&o.partial_ml, rows * kDecodeSplits * heads);
  return used;
}

bool CudaOps::decode_step(const DecodeStepParams& p) {
  if (use_decode_kernel_ && kernel_step(p)) return true;
  return use_graphs_ && graph_step(p);
}

bool CudaOps::kernel_step(const DecodeStepParams& p) {
  const std::int64_t rows = p.hidden.shape[0];
  if (rows < 1 || rows > kDecodeRows || rows * p.top_k > kDecodeChoices || p.layers.empty()) return false;
  if (std::int64_t{p.batch.max_pages} * kPageTokens > kDecodeContext) return false;
  for (const DecodeLayer& l : p.layers) {
    if (l.pages.codec != KvCodec::kBF16 || !aligned(l.pages.base, 16) || l.pages.page_stride_bytes % 16 != 0)
      return false;
  }
  const Launch& launch = begin();
  if (decode_->weights_id != p.weights_id) prepare_decode(p);
  Decode& d = *decode_;
  if (!d.fits || !aligned(p.hidden.data, 16) || !aligned(p.x.data, 16)) return false;

  bool moved = false;
  for (std::size_t i = 0; i < d.layers.size(); ++i) {
    auto* pages = static_cast<unsigned char*>(p.layers[i].pages.base);
    moved = moved || d.layers[i].pages != pages || d.layers[i].page_stride != p.layers[i].pages.page_stride_bytes;
    d.layers[i].pages = pages;
    d.layers[i].page_stride = p.layers[i].pages.page_stride_bytes;
  }
  if (moved) device_.upload(d.device_layers.data(), d.layers.data(), d.layers.size() * sizeof(DecodeLayerData));

  DecodeStep s;
  carve_decode(d, &s, static_cast<std::byte*>(d.work.data()));
  s.layers = static_cast<const DecodeLayerData*>(d.device_layers.data());
  s.n_layers = static_cast<int>(d.layers.size());
  s.n_rows = static_cast<int>(rows);
  s.n_logits = p.logits.data != nullptr ? static_cast<int>(p.logits.shape[0]) : 0;
  s.heads = d.heads;
  s.hidden = d.hidden;
  s.q_lora = d.q_lora;
  s.n_experts = d.n_experts;
  s.top_k = p.top_k;
  s.normalize = p.normalize;
  s.routed_scale = p.routed_scale;
  s.eps = p.eps;
  s.latent_eps = p.latent_eps;
  s.lm_head = d.lm_head;
  s.final_norm = p.final_norm.as<float>();
  s.valid_vocab = p.valid_vocab > 0 ? p.valid_vocab : d.lm_head.rows;
  s.hidden_rows = p.hidden.as<float>();
  s.x_out = p.x.as<float>();
  s.logits = s.n_logits > 0 ? p.logits.as<float>() : nullptr;
  s.positions = p.positions;
  s.slots = p.slots;
  s.context = p.batch.context_tokens;
  s.page_table = p.batch.page_table;
  s.logit_rows = p.logit_rows;
  s.max_pages = p.batch.max_pages;
  s.window = p.window_tokens;
  s.frequencies = rope(p.positions, p.rope_theta).frequencies;
  s.act_stride = d.act_stride;
  s.arrived = d.arrived;
  if (s.n_logits == 0) s.lm_head.rows = 0;

  cuda::embed(launch, mat_of(p.embed), p.ids, s.hidden_rows, rows);
  cuda::decode_step(launch, s, d.widest_x, d.nf4);
  d.arrived += static_cast<unsigned>(decode_barriers(s.n_layers, d.n_moe)) * static_cast<unsigned>(launch.n_sms);
  return true;
}

}  // namespace glint::cuda
