// Multi-head latent attention: projections, the cache write, and attention in both forms. Model facts §2.3.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "backends/reference/math.hpp"
#include "backends/reference/reference.hpp"
#include "ops/kv_codec.hpp"

namespace glint::reference {
namespace {

constexpr std::int64_t kHeadRows = kNope + kValue;  // rows of a head in kv_b: 192 W_UK, then 256 W_UV

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

// Rotates the pairs (x0,x1), (x2,x3) … of 64 values by position · theta^(-2i/64). Angles in double: at position 200,000
// an fp32 angle would be off by 0.01.
void rope(float* x, std::int32_t position, float theta) {
  for (int i = 0; i < kRope / 2; ++i) {
    const double angle = position * std::pow(static_cast<double>(theta), -2.0 * i / kRope);
    const auto c = static_cast<float>(std::cos(angle));
    const auto s = static_cast<float>(std::sin(angle));
    const float a = x[2 * i];
    const float b = x[2 * i + 1];
    x[2 * i] = a * c - b * s;
    x[2 * i + 1] = a * s + b * c;
  }
}

// The visible positions [begin, end) of row i of sequence s.
struct Visible {
  std::int64_t begin;
  std::int64_t end;
};
Visible visible(const MlaAttendParams& p, int s, std::int64_t i) {
  const std::int64_t n = p.batch.row_offsets[s + 1] - p.batch.row_offsets[s];
  const std::int64_t end = p.batch.context_tokens[s] - n + i + 1;
  return {p.window_tokens > 0 ? std::max<std::int64_t>(0, end - p.window_tokens) : 0, end};
}

std::int64_t slot_of(const AttendBatch& b, int s, std::int64_t position) {
  const std::int64_t page = b.page_table[s * static_cast<std::int64_t>(b.max_pages) + position / kPageTokens];
  return page * kPageTokens + position % kPageTokens;
}

// Runs body(s, row, i) for each row of each sequence: row in the batch, i within the sequence.
template <typename Body>
void for_each_row(const AttendBatch& b, int s, Body body) {
  for (std::int64_t row = b.row_offsets[s]; row < b.row_offsets[s + 1]; ++row) body(row, row - b.row_offsets[s]);
}

}  // namespace

void mla_project(const MlaProjectParams& p) {
  const std::int64_t n_rows = p.x.shape[0];
  const std::int64_t q_lora = p.q_a.rows;
  const std::int64_t n_heads = p.q.shape[1];
  const std::int64_t q_width = n_heads * kQk;

  std::vector<float> low(size(n_rows * q_lora));
  matmul(rows_of(p.x), p.q_a, {low.data(), q_lora});
  for (std::int64_t t = 0; t < n_rows; ++t) {
    float* row = low.data() + t * q_lora;
    rms(row, p.q_a_norm.as<float>(), q_lora, p.latent_eps, row);
  }
  const MutableRows q{p.q.as<float>(), q_width};
  matmul({low.data(), n_rows, q_lora}, p.q_b, q);

  const MutableRows kv = rows_of(p.kv);
  matmul(rows_of(p.x), p.kv_a, kv);
  for (std::int64_t t = 0; t < n_rows; ++t) {
    for (std::int64_t h = 0; h < n_heads; ++h) rope(q[t] + h * kQk + kNope, p.positions[t], p.rope_theta);
    rms(kv[t], p.kv_a_norm.as<float>(), kLatent, p.latent_eps, kv[t]);
    rope(kv[t] + kLatent, p.positions[t], p.rope_theta);
  }
}

void mla_append(const MlaAppendParams& p) {
  const Rows kv = rows_of(p.kv);
  for (std::int64_t t = 0; t < kv.rows; ++t) {
    if (p.slots[t] < 0) continue;
    encode_kv_row(p.pages.codec, kv[t], kv_row(p.pages, p.slots[t]));
  }
}

// Per sequence and head: K = [W_UK c | k_pe] and V = W_UV c of every cached row, then softmax(q Kᵀ / 16) V.
void mla_attend(const MlaAttendParams& p) {
  const std::int64_t n_heads = p.q.shape[1];
  const MutableRows out = rows_of(p.out);
  const std::vector<float> kv_b = weight_floats(p.kv_b);

  for (int s = 0; s < p.batch.n_seqs; ++s) {
    const std::int64_t first_row = p.batch.row_offsets[s];
    const std::int64_t n_rows = p.batch.row_offsets[s + 1] - first_row;
    if (n_rows == 0) continue;
    const std::int64_t first = visible(p, s, 0).begin;  // nothing before it is seen by any row
    const std::int64_t n_keys = p.batch.context_tokens[s] - first;
    std::vector<float> cached(size(n_keys * kKvRow));  // [keys, 576]
    for (std::int64_t j = 0; j < n_keys; ++j)
      load_kv_row(p.pages, slot_of(p.batch, s, first + j), cached.data() + j * kKvRow);
    const Rows latent{cached.data(), n_keys, kKvRow};

    std::vector<float> keys(size(n_keys * kQk));       // [keys, 256]
    std::vector<float> values(size(n_keys * kValue));  // [keys, 256]
    std::vector<float> scores(size(4 * n_keys));
    for (std::int64_t h = 0; h < n_heads; ++h) {
      const float* w_uk = kv_b.data() + h * kHeadRows * kLatent;
      const float* w_uv = w_uk + kNope * kLatent;
      matmul_nt(latent, {w_uk, kNope, kLatent}, kLatent, {keys.data(), kQk});
      matmul_nt(latent, {w_uv, kValue, kLatent}, kLatent, {values.data(), kValue});
      for (std::int64_t j = 0; j < n_keys; ++j) std::copy_n(latent[j] + kLatent, kRope, keys.data() + j * kQk + kNope);

      // Scores of four rows at a time against every key that one of them sees: the keys are read a quarter as often.
      constexpr std::int64_t kBlock = 4;
      for (std::int64_t i = 0; i < n_rows; i += kBlock) {
        const std::int64_t block = std::min(kBlock, n_rows - i);
        const std::int64_t begin = visible(p, s, i).begin;
        const std::int64_t width = visible(p, s, i + block - 1).end - begin;
        const float* q = p.q.as<float>() + ((first_row + i) * n_heads + h) * kQk;
        matmul_nt({q, block, n_heads * kQk}, {keys.data() + (begin - first) * kQk, width, kQk}, kQk,
                  {scores.data(), width});
        for (std::int64_t r = 0; r < block; ++r) {
          const Visible see = visible(p, s, i + r);
          const std::int64_t n = see.end - see.begin;
          float* weight = scores.data() + r * width + (see.begin - begin);
          for (std::int64_t j = 0; j < n; ++j) weight[j] *= kSoftmaxScale;
          softmax(weight, n);
          weighted_sum(weight, {values.data() + (see.begin - first) * kValue, n, kValue}, kValue,
                       out[first_row + i + r] + h * kValue);
        }
      }
    }
  }
}

// Per row and head: q_lat = W_UKᵀ q_nope meets the cached rows as they lie, a page at a time with a running maximum and
// sum (online softmax), and W_UV is applied once to the weighted latent.
void mla_attend_absorbed(const MlaAttendParams& p) {
  const std::int64_t n_heads = p.q.shape[1];
  const MutableRows out = rows_of(p.out);
  const std::vector<float> kv_b = weight_floats(p.kv_b);
  std::vector<float> page(size(kPageTokens * kKvRow));
  std::vector<float> query(kKvRow);
  std::vector<float> weighted(kLatent);
  std::vector<float> latent(kLatent);
  std::vector<float> scores(kPageTokens);

  for (int s = 0; s < p.batch.n_seqs; ++s) {
    for_each_row(p.batch, s, [&](std::int64_t row, std::int64_t i) {
      for (std::int64_t h = 0; h < n_heads; ++h) {
        const float* q = p.q.as<float>() + (row * n_heads + h) * kQk;
        const float* w_uk = kv_b.data() + h * kHeadRows * kLatent;
        const float* w_uv = w_uk + kNope * kLatent;
        weighted_sum(q, {w_uk, kNope, kLatent}, kLatent, query.data());
        std::copy_n(q + kNope, kRope, query.data() + kLatent);

        float top = -std::numeric_limits<float>::infinity();
        float sum = 0;
        std::fill(latent.begin(), latent.end(), 0.0F);
        const Visible see = visible(p, s, i);
        for (std::int64_t at = see.begin; at < see.end;) {
          const std::int64_t n = std::min(see.end, (at / kPageTokens + 1) * kPageTokens) - at;
          for (std::int64_t j = 0; j < n; ++j)
            load_kv_row(p.pages, slot_of(p.batch, s, at + j), page.data() + j * kKvRow);
          const Rows keys{page.data(), n, kKvRow};
          matmul_nt({query.data(), 1, kKvRow}, keys, kKvRow, {scores.data(), n});
          float new_top = top;
          for (std::int64_t j = 0; j < n; ++j) new_top = std::max(new_top, scores[size(j)] *= kSoftmaxScale);
          const float keep = std::exp(top - new_top);  // 0 at the first page
          sum *= keep;
          for (std::int64_t j = 0; j < n; ++j) sum += scores[size(j)] = std::exp(scores[size(j)] - new_top);
          weighted_sum(scores.data(), keys, kLatent, weighted.data());
          for (std::size_t c = 0; c < kLatent; ++c) latent[c] = latent[c] * keep + weighted[c];
          top = new_top;
          at += n;
        }
        for (float& v : latent) v /= sum;
        matmul_nt({latent.data(), 1, kLatent}, {w_uv, kValue, kLatent}, kLatent, {out[row] + h * kValue, kValue});
      }
    });
  }
}

}  // namespace glint::reference
