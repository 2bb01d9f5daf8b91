#include "ops/cost.hpp"

#include <algorithm>
#include <vector>

namespace glint {
namespace {

double bytes(const ConstView& v) { return v ? static_cast<double>(v.bytes()) : 0.0; }
double bytes(const Weight& w) { return w ? static_cast<double>(w.bytes()) : 0.0; }
double bytes(const ExpertWeights& e) { return bytes(e.gate) + bytes(e.up) + bytes(e.down); }
double elements(const ConstView& v) { return static_cast<double>(v.shape.elements()); }

// Two flops a multiply-add for each of `rows` rows through W.
double matmul_flops(std::int64_t rows, const Weight& w) {
  return 2.0 * static_cast<double>(rows) * static_cast<double>(w.rows) * static_cast<double>(w.cols);
}
double matmul_flops(std::int64_t rows, const ExpertWeights& e) {
  return matmul_flops(rows, e.gate) + matmul_flops(rows, e.up) + matmul_flops(rows, e.down);
}

constexpr double kIndexBytes = sizeof(std::int32_t);
constexpr double kNormFlops = 4;  // square, add, scale, weight: an element of an RMSNorm
constexpr double kPairs = kRope / 2.0;
constexpr double kRotateFlops = 6;  // a pair: four products, two sums

}  // namespace

Cost cost(const EmbedParams& p) {
  const auto rows = static_cast<double>(p.out.shape[0]);
  const double row_bytes = p.table.rows == 0 ? 0.0 : bytes(p.table) / static_cast<double>(p.table.rows);
  return {.bytes = rows * (kIndexBytes + row_bytes) + bytes(p.out), .flops = 0};
}

Cost cost(const RmsNormParams& p) {
  Cost c{.bytes = bytes(p.hidden), .flops = 0};
  if (p.delta) c += {.bytes = bytes(p.delta) + bytes(p.hidden), .flops = elements(p.hidden)};
  if (p.out) c += {.bytes = bytes(p.weight) + bytes(p.out), .flops = kNormFlops * elements(p.hidden)};
  return c;
}

Cost cost(const LinearParams& p) {
  return {.bytes = bytes(p.x) + bytes(p.w) + bytes(p.out), .flops = matmul_flops(p.x.shape[0], p.w)};
}

Cost cost(const MlaProjectParams& p) {
  const std::int64_t n_rows = p.x.shape[0];
  const auto rows = static_cast<double>(n_rows);
  const auto heads = static_cast<double>(p.q.shape[1]);
  Cost c;
  c.bytes = bytes(p.x) + rows * kIndexBytes + bytes(p.q_a) + bytes(p.q_a_norm) + bytes(p.q_b) + bytes(p.kv_a) +
            bytes(p.kv_a_norm) + bytes(p.q) + bytes(p.kv);
  c.flops = matmul_flops(n_rows, p.q_a) + matmul_flops(n_rows, p.q_b) + matmul_flops(n_rows, p.kv_a) +
            rows * kNormFlops * (static_cast<double>(p.q_a.rows) + kLatent) +
            rows * (heads + 1) * kPairs * kRotateFlops;
  return c;
}

Cost cost(const MlaAppendParams& p) {
  const auto rows = static_cast<double>(p.kv.shape[0]);
  return {.bytes = bytes(p.kv) + rows * (kIndexBytes + static_cast<double>(kv_row_bytes(p.pages.codec))), .flops = 0};
}

Cost cost(const MlaAttendParams& p) {
  const auto heads = static_cast<double>(p.q.shape[1]);
  Cost c;
  double cached_rows = 0;  // rows of the cache that some row of its sequence sees
  double pages = 0;
  for (int s = 0; s < p.batch.n_seqs; ++s) {
    const std::int64_t n = p.batch.row_offsets[s + 1] - p.batch.row_offsets[s];
    const std::int64_t context = p.batch.context_tokens[s];
    if (n == 0) continue;
    const std::int64_t window = p.window_tokens > 0 ? p.window_tokens : context;
    double pairs = 0;  // (row, visible position)
    for (std::int64_t i = 0; i < n; ++i) pairs += static_cast<double>(std::min(window, context - n + i + 1));
    const std::int64_t seen = std::min(context, window + n - 1);
    // Absorbed: into the latent and out of it once a row (= kv_b once), scores over 576 values and the sum over 512 a
    // pair. Expanded, fewer for long prompts: keys and values of what is seen (= kv_b once a row), 256 and 256 a pair.
    c.flops += std::min(matmul_flops(n, p.kv_b) + pairs * heads * 2.0 * (kKvRow + kLatent),
                        matmul_flops(seen, p.kv_b) + pairs * heads * 2.0 * (kQk + kValue));
    cached_rows += static_cast<double>(seen);
    const std::int64_t seen_pages = (seen + kPageTokens - 1) / kPageTokens;
    pages += static_cast<double>(seen_pages);
  }
  c.bytes = bytes(p.q) + bytes(p.kv_b) + cached_rows * static_cast<double>(kv_row_bytes(p.pages.codec)) +
            kIndexBytes * (pages + 2.0 * p.batch.n_seqs + 1) + bytes(p.out);
  return c;
}

Cost cost(const RouteParams& p) {
  const auto rows = static_cast<double>(p.x.shape[0]);
  return {.bytes = bytes(p.x) + bytes(p.w) + bytes(p.bias) + rows * p.top_k * (kIndexBytes + sizeof(float)),
          .flops = 2.0 * rows * elements(p.w)};
}

Cost cost(const MoeParams& p) {
  const std::int64_t n_rows = p.x.shape[0];
  Cost c{.bytes = bytes(p.x) + bytes(p.out) + static_cast<double>(n_rows) * p.top_k * (kIndexBytes + sizeof(float)),
         .flops = 0};
  std::vector<std::int64_t> rows_of_expert(p.experts.size());
  for (std::int64_t i = 0; i < n_rows * p.top_k; ++i) {
    if (p.ids[i] >= 0) ++rows_of_expert[static_cast<std::size_t>(p.ids[i])];
  }
  for (std::size_t e = 0; e < p.experts.size(); ++e) {
    if (rows_of_expert[e] == 0) continue;  // a weight that nobody chose is not read
    c += {.bytes = bytes(p.experts[e]), .flops = matmul_flops(rows_of_expert[e], p.experts[e])};
  }
  if (p.shared.gate) c += {.bytes = bytes(p.shared), .flops = matmul_flops(n_rows, p.shared)};
  return c;
}

Cost cost(const MlpParams& p) {
  return {.bytes = bytes(p.x) + bytes(p.mlp) + bytes(p.out), .flops = matmul_flops(p.x.shape[0], p.mlp)};
}

Cost cost(const LmHeadParams& p) {
  const std::int64_t n_rows = p.logits.shape[0];
  const double row_bytes = p.x.shape[0] == 0 ? 0.0 : bytes(p.x) / static_cast<double>(p.x.shape[0]);
  const double index_bytes = p.rows != nullptr ? kIndexBytes : 0.0;
  return {.bytes = static_cast<double>(n_rows) * (row_bytes + index_bytes) + bytes(p.w) + bytes(p.logits),
          .flops = matmul_flops(n_rows, p.w)};
}

Cost cost(const MtpInputParams& p) {
  return {
      .bytes = bytes(p.embed) + bytes(p.hidden) + bytes(p.e_norm) + bytes(p.h_norm) + bytes(p.eh_proj) + bytes(p.out),
      .flops = matmul_flops(p.embed.shape[0], p.eh_proj) + kNormFlops * (elements(p.embed) + elements(p.hidden))};
}

}  // namespace glint
