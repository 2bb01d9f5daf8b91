// Ops on whole rows outside attention and experts: embedding, norm, linear, language-model head, MTP input.

#include <limits>
#include <vector>

#include "backends/reference/math.hpp"
#include "backends/reference/reference.hpp"

namespace glint::reference {

void embed(const EmbedParams& p) {
  const MutableRows out = rows_of(p.out);
  for (std::int64_t t = 0; t < p.out.shape[0]; ++t) weight_row(p.table, p.ids[t], out[t]);
}

void rms_norm(const RmsNormParams& p) {
  const std::int64_t n = p.hidden.shape[1];
  const MutableRows hidden = rows_of(p.hidden);
  for (std::int64_t t = 0; t < p.hidden.shape[0]; ++t) {
    float* h = hidden[t];
    if (p.delta) {
      const float* delta = rows_of(p.delta)[t];
      for (std::int64_t i = 0; i < n; ++i) h[i] += delta[i];
    }
    if (p.out) rms(h, p.weight.as<float>(), n, p.eps, rows_of(p.out)[t]);
  }
}

void linear(const LinearParams& p) { matmul(rows_of(p.x), p.w, rows_of(p.out)); }

void lm_head(const LmHeadParams& p) {
  const std::int64_t n_rows = p.logits.shape[0];
  const std::int64_t hidden = p.x.shape[1];
  const Rows x = rows_of(p.x);
  std::vector<float> picked;  // [R, H]
  for (std::int64_t r = 0; r < n_rows; ++r) {
    const float* row = x[p.rows != nullptr ? p.rows[r] : r];
    picked.insert(picked.end(), row, row + hidden);
  }
  const MutableRows logits = rows_of(p.logits);
  matmul({picked.data(), n_rows, hidden}, p.w, logits);
  if (p.valid_vocab == 0) return;
  for (std::int64_t r = 0; r < n_rows; ++r) {
    for (std::int64_t v = p.valid_vocab; v < p.w.rows; ++v) logits[r][v] = -std::numeric_limits<float>::infinity();
  }
}

void mtp_input(const MtpInputParams& p) {
  const std::int64_t n_rows = p.embed.shape[0];
  const std::int64_t hidden = p.embed.shape[1];
  std::vector<float> both(static_cast<std::size_t>(n_rows * 2 * hidden));  // [T, 2H]: embedding first
  for (std::int64_t t = 0; t < n_rows; ++t) {
    float* row = both.data() + t * 2 * hidden;
    rms(rows_of(p.embed)[t], p.e_norm.as<float>(), hidden, p.eps, row);
    rms(rows_of(p.hidden)[t], p.h_norm.as<float>(), hidden, p.eps, row + hidden);
  }
  matmul({both.data(), n_rows, 2 * hidden}, p.eh_proj, rows_of(p.out));
}

}  // namespace glint::reference
