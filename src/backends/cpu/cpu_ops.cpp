// Construction, memory, and the dense ops: embedding, norm, linear, language-model head, MTP input.

#include "backends/cpu/cpu_ops.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/error.hpp"
#include "tensor/codec.hpp"

namespace glint {

std::unique_ptr<Ops> make_cpu_ops(const CpuOptions& options) {
  constexpr int kMaxThreads = 1024;
  if (options.threads < 0 || options.threads > kMaxThreads)
    throw Error({.what = "CPU threads",
                 .found = std::to_string(options.threads),
                 .expected = "0 (one a core) to " + std::to_string(kMaxThreads)});
  return std::make_unique<cpu::CpuOps>(cpu::find_table(options.isa), options.threads);
}

namespace cpu {
namespace {

// How a packed row is cut: equal blocks of at most kBlock, for few rows one block.
std::int64_t block_of(std::int64_t rows, std::int64_t cols) {
  const std::int64_t padded = std::max((cols + kPad - 1) / kPad, std::int64_t{1}) * kPad;
  if (rows < kGemmRows) return padded;
  const std::int64_t blocks = (padded + kBlock - 1) / kBlock;
  return ((padded + blocks - 1) / blocks + kPad - 1) / kPad * kPad;
}

double work_of(const Weight& w, std::int64_t rows) {
  const auto elements = static_cast<double>(w.rows) * static_cast<double>(w.cols);
  return std::max(static_cast<double>(w.bytes()), elements * static_cast<double>(rows) / 4);
}

}  // namespace

std::int64_t packed_floats(std::int64_t rows, std::int64_t cols) {
  const std::int64_t block = block_of(rows, cols);
  return rows * ((cols + block - 1) / block) * block + kPad;
}

CpuOps::CpuOps(const Table& table, int threads) : table_(table), pool_(threads) {}

void CpuOps::upload(void* dst, const void* host_src, std::size_t bytes) { std::memcpy(dst, host_src, bytes); }
void CpuOps::download(void* host_dst, const void* src, std::size_t bytes) { std::memcpy(host_dst, src, bytes); }
void CpuOps::copy(void* dst, const void* src, std::size_t bytes) { std::memmove(dst, src, bytes); }

bool CpuOps::supports(WeightFormat format) const {
  return weight_code_bits(format) > 0;  // all
}
bool CpuOps::supports(KvCodec) const { return true; }

// INT8 with one scale a row: the scales of W_UK are factors of the query (CombineArgs), those of W_UV of the sums.
bool CpuOps::supports_absorbed(const QuantSpec& kv_b) const {
  if (!has_scales(kv_b.format)) return true;
  const bool one_a_row = (kv_b.group == 0 || kv_b.group >= kLatent) && kv_b.group_rows == 1;
  return kv_b.format == WeightFormat::kI8 && kv_b.symmetric && one_a_row;
}

void CpuOps::reserve(const OpLimits& limits) {
  reserved_ = true;
  limits_ = limits;
  size_workspace();
}

void CpuOps::fit(const OpLimits& call) {
  if (reserved_) return;
  bool grown = false;
  const auto grow = [&](std::int64_t& known, std::int64_t wanted) {
    grown = grown || wanted > known;
    known = std::max(known, wanted);
  };
  grow(limits_.max_rows, call.max_rows);
  grow(limits_.max_logits, call.max_logits);
  grow(limits_.hidden, call.hidden);
  grow(limits_.n_heads, call.n_heads);
  grow(limits_.q_lora, call.q_lora);
  grow(limits_.dense_inner, call.dense_inner);
  grow(limits_.expert_inner, call.expert_inner);
  grow(limits_.n_experts, call.n_experts);
  grow(limits_.top_k, call.top_k);
  if (grown) size_workspace();
}

void CpuOps::size_workspace() {
  const OpLimits& l = limits_;
  const std::int64_t rows = std::max<std::int64_t>(l.max_rows, 1);
  const std::int64_t widest =
      std::max({2 * l.hidden, l.n_heads * kValue, l.q_lora, l.dense_inner, l.expert_inner, std::int64_t{kLatent}});
  const bool tiles = table_.tile_codes != nullptr;
  const auto codes = [&](std::int64_t n, std::int64_t cols) {
    return code_floats(n, cols) + (tiles ? tile_floats(n, cols) : 0);
  };
  const auto packed_few_or_many = [&](std::int64_t n, std::int64_t cols) {  // rows up to n may be cut either way
    const std::int64_t values = std::max(packed_floats(n, cols), packed_floats(std::min(n, kGemmRows - 1), cols));
    return std::max({values, codes(n, cols), table_.dots_twofold ? twofold_floats(n, cols) : 0}) + kPad;
  };
  // One x in every form: experts may differ in theirs.
  const auto packed_all = [&](std::int64_t n, std::int64_t cols) {
    return 2 * packed_few_or_many(n, cols) + (kPackKinds - 2) * codes(n, cols);
  };
  // Tiles of the rows of each expert; up to 15 rows may be missing in its last tile.
  const auto gathered = [&](std::int64_t n, std::int64_t groups, std::int64_t cols) {
    const std::int64_t tile = std::max(tile_floats(kRowTile, cols), kRowTile * cols);
    return tiles ? (n + groups * kRowTile) * (tile / kRowTile + 1) : 0;
  };
  // An inner activation as values and as codes.
  const auto inner = [](std::int64_t cols) {
    return packed_floats(1, cols) + 2 * kBlock + std::max(code_floats(1, cols), twofold_floats(1, cols));
  };
  const std::int64_t linear = packed_few_or_many(rows, widest);
  const std::int64_t project =
      2 * packed_few_or_many(rows, l.hidden) + packed_few_or_many(rows, l.q_lora) + rows * l.q_lora;
  const std::int64_t choices = rows * (l.top_k + 1);
  const std::int64_t moe = packed_all(rows, l.hidden) + choices * inner(l.expert_inner) + 4 * choices +
                           128 * (l.n_experts + 8) + 2 * gathered(choices, l.n_experts + 1, l.hidden) +
                           gathered(choices, l.n_experts + 1, l.expert_inner);
  const std::int64_t mlp =
      packed_all(rows, l.hidden) + rows * inner(l.dense_inner) + gathered(rows, 1, l.dense_inner) + 1024;
  const std::int64_t route = packed_few_or_many(rows, l.hidden) + rows * l.n_experts;
  const std::int64_t head = packed_few_or_many(std::max(rows, l.max_logits), l.hidden);
  const std::int64_t mtp = packed_few_or_many(rows, 2 * l.hidden) + rows * 2 * l.hidden;
  const std::int64_t attend =
      attend_floats(rows, std::max<std::int64_t>(l.n_heads, 1), pool_.size(), table_.query_block);
  const std::int64_t floats = std::max({linear, project, moe, mlp, route, head, mtp, attend}) + 1024;
  workspace_ = host_buffer(static_cast<std::size_t>(floats) * sizeof(float));
  rope_ = host_buffer(static_cast<std::size_t>(rows * kRope) * sizeof(float));
  rope_positions_ = host_buffer(static_cast<std::size_t>(rows) * sizeof(std::int32_t));
  rope_rows_ = 0;
}

Packed CpuOps::make_packed(Arena& arena, std::int64_t rows, std::int64_t cols, PackKind kind) const {
  if (kind.quant != 0) return make_codes(arena, rows, cols, kind);
  const std::int64_t block = block_of(rows, cols);
  const std::int64_t n = rows * ((cols + block - 1) / block) * block;
  return {.data = arena.take<float>(n), .rows = rows, .cols = cols, .block = block, .bf16 = kind.bf16};
}

void CpuOps::pack_rows(const Packed& to, const float* x, std::int64_t m0, std::int64_t m1) const {
  (to.words ? table_.encode_words : to.quant != 0 ? table_.quantize : table_.pack)(to, x, to.cols, m0, m1);
  if (to.tiles != nullptr && (m1 % kRowTile == 0 || m1 == to.rows))
    table_.tile_codes(to, nullptr, to, m0 / kRowTile * kRowTile, m1);
}

Packed CpuOps::packed(Arena& arena, const float* x, std::int64_t rows, std::int64_t cols, PackKind kind) {
  if (rows < kGemmRows && cols % table_.lanes == 0 && kind.index() == 0)  // the kernels only read through data
    return {.data = const_cast<float*>(x), .rows = rows, .cols = cols, .block = cols, .bf16 = false};
  const Packed to = make_packed(arena, rows, cols, kind);
  for_items(row_tiles(rows), static_cast<double>(rows * cols), [&](std::int64_t item, int) {
    const std::int64_t m = item * kRowTile;
    pack_rows(to, x + m * cols, m, std::min(rows, m + kRowTile));
  });
  return to;
}

std::int64_t CpuOps::strip_rows(std::int64_t w_rows, std::int64_t chunks, std::int64_t x_rows, bool groups) const {
  const std::int64_t enough = (x_rows <= kFewRowsOfX ? 4 : 8) * static_cast<std::int64_t>(pool_.size());
  std::int64_t strip = x_rows <= kFewRowsOfX ? kLongStrip : kStrip;
  while (strip > (groups ? kGroupStrip : 8) && w_rows * chunks < enough * strip) strip /= 2;
  return strip;
}

// Where row n lies, null if there is none.
SoonRows rows_of(const Weight& w, std::int64_t n) {
  if (n >= w.rows) return {};
  SoonRows rows{static_cast<const std::byte*>(w.data) + n * w.row_bytes()};
  if (w.scales != nullptr && w.group_rows == 1) {
    const auto size = static_cast<std::int64_t>(dtype_bytes(w.scale_dtype));
    rows.scales = static_cast<const std::byte*>(w.scales) + n * w.groups_a_row() * size;
  }
  return rows;
}

void CpuOps::dot(std::span<const DotJob> jobs) {
  const bool tiled = jobs[0].x.tiles != nullptr;  // all jobs have the same rows, in the same form
  const std::int64_t chunks = row_chunks(jobs[0].x.rows, tiled);
  if (chunks == 0) return;
  std::int64_t w_rows = 0;
  double work = 0;
  for (const DotJob& j : jobs) {
    w_rows += j.w.rows;
    work += work_of(j.w, j.x.rows);
  }
  const std::int64_t strip = strip_rows(w_rows, chunks, jobs[0].x.rows, jobs[0].x.words || jobs[0].x.twofold);
  std::int64_t strips = 0;
  for (const DotJob& j : jobs) strips += (j.w.rows + strip - 1) / strip;
  for_items(strips * chunks, work, [&](std::int64_t item, int) {
    std::int64_t s = item / chunks;
    const std::int64_t chunk = item % chunks;
    const DotJob* j = jobs.data();
    for (std::int64_t n = (j->w.rows + strip - 1) / strip; s >= n; n = (j->w.rows + strip - 1) / strip) {
      s -= n;
      ++j;
    }
    const std::int64_t m0 = chunk_begin(j->x.rows, chunk, tiled);
    const std::int64_t n0 = s * strip;
    table_.dot({.x = &j->x,
                .m0 = m0,
                .m1 = chunk_begin(j->x.rows, chunk + 1, tiled),
                .w = j->w,
                .n0 = n0,
                .n1 = std::min(j->w.rows, n0 + strip),
                .out = j->out + m0 * j->out_stride + n0,
                .out_stride = j->out_stride,
                .next = rows_of(j->w, n0 + strip)});
  });
}

void CpuOps::embed(const EmbedParams& p) {
  const std::int64_t hidden = p.out.shape[1];
  for (std::int64_t t = 0; t < p.out.shape[0]; ++t) {
    float* out = p.out.as<float>() + t * hidden;
    if (has_scales(p.table.format)) {
      decode_row(p.table, p.ids[t], out);
    } else {
      table_.to_float(static_cast<const char*>(p.table.data) + p.ids[t] * p.table.row_bytes(), p.table.format, out,
                      hidden);
    }
  }
}

// The same norm on every row; x, delta and sum advance by n, out by its own stride.
void CpuOps::norm_rows(const NormArgs& first, std::int64_t rows, std::int64_t out_stride) {
  constexpr std::int64_t kRows = 8;
  for_items((rows + kRows - 1) / kRows, static_cast<double>(rows * first.n) * 4, [&](std::int64_t item, int) {
    for (std::int64_t t = item * kRows; t < std::min(rows, (item + 1) * kRows); ++t) {
      NormArgs a = first;
      a.x += t * a.n;
      if (a.delta != nullptr) a.delta += t * a.n;
      if (a.sum != nullptr) a.sum += t * a.n;
      if (a.out != nullptr) a.out += t * out_stride;
      table_.norm(a);
    }
  });
}

void CpuOps::rms_norm(const RmsNormParams& p) {
  const std::int64_t n = p.hidden.shape[1];
  norm_rows({.x = p.hidden.as<float>(),
             .delta = p.delta.as<float>(),
             .sum = p.hidden.as<float>(),
             .weight = p.weight.as<float>(),
             .out = p.out.as<float>(),
             .n = n,
             .eps = p.eps},
            p.hidden.shape[0], n);
}

void CpuOps::linear(const LinearParams& p) {
  fit({.max_rows = p.x.shape[0], .dense_inner = p.w.cols});
  Arena arena(workspace_);
  const Packed x = packed(arena, p.x.as<float>(), p.x.shape[0], p.x.shape[1], pack_kind(p.w));
  const DotJob job{x, p.w, p.out.as<float>(), p.w.rows};
  dot({&job, 1});
}

void CpuOps::lm_head(const LmHeadParams& p) {
  const std::int64_t rows = p.logits.shape[0];
  const std::int64_t hidden = p.x.shape[1];
  const std::int64_t vocab = p.w.rows;
  const std::int64_t valid = p.valid_vocab > 0 ? std::min(p.valid_vocab, vocab) : vocab;
  if (rows == 0) return;
  fit({.max_logits = rows, .hidden = hidden});
  Arena arena(workspace_);
  const Packed x = make_packed(arena, rows, hidden, pack_kind(p.w).index() != 0 ? pack_kind(p.w) : rounded_kind(p.w));
  for (std::int64_t r = 0; r < rows; ++r)
    pack_rows(x, p.x.as<float>() + (p.rows != nullptr ? p.rows[r] : r) * hidden, r, r + 1);
  const DotJob job{x, p.w.slice_rows(0, valid), p.logits.as<float>(), vocab};
  dot({&job, 1});
  for (std::int64_t r = 0; r < rows; ++r)
    std::fill(p.logits.as<float>() + r * vocab + valid, p.logits.as<float>() + (r + 1) * vocab,
              -std::numeric_limits<float>::infinity());
}

void CpuOps::mtp_input(const MtpInputParams& p) {
  const std::int64_t rows = p.embed.shape[0];
  const std::int64_t hidden = p.embed.shape[1];
  fit({.max_rows = rows, .hidden = hidden});
  Arena arena(workspace_);
  auto* both = arena.take<float>(rows * 2 * hidden);  // [T, 2H]: embedding first
  norm_rows({.x = p.embed.as<float>(), .weight = p.e_norm.as<float>(), .out = both, .n = hidden, .eps = p.eps}, rows,
            2 * hidden);
  norm_rows(
      {.x = p.hidden.as<float>(), .weight = p.h_norm.as<float>(), .out = both + hidden, .n = hidden, .eps = p.eps},
      rows, 2 * hidden);
  const Packed x = packed(arena, both, rows, 2 * hidden, pack_kind(p.eh_proj));
  const DotJob job{x, p.eh_proj, p.out.as<float>(), p.eh_proj.rows};
  dot({&job, 1});
}

}  // namespace cpu
}  // namespace glint
