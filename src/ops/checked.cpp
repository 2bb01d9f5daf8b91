// The contract of each op, in the order of params.hpp.

#include "ops/checked.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include "ops/contract.hpp"

namespace glint {
namespace {

constexpr std::int64_t kMaxInt = std::numeric_limits<std::int32_t>::max();

std::string at(const char* name, std::int64_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

void positive(Contract& c, const char* name, float value) {
  c.require(value > 0 && value < std::numeric_limits<float>::infinity(), name, std::to_string(value),
            "a positive number");
}

// Values of an array that the host can read, each in [low, high].
void array_in(Contract& c, const char* name, const std::int32_t* data, std::int64_t n, std::int64_t low,
              std::int64_t high) {
  c.array(name, data, n);
  if (!c.arrays_on_host()) return;
  for (std::int64_t i = 0; i < n; ++i) {
    if (data[i] < low || data[i] > high) c.range(at(name, i), data[i], low, high);  // builds its text only to fail
  }
}

// Pages of one sequence: all within the pool, none used twice.
void check_page_row(Contract& c, const MlaAttendParams& p, int s) {
  const AttendBatch& b = p.batch;
  const std::int64_t n_pages = (static_cast<std::int64_t>(b.context_tokens[s]) + kPageTokens - 1) / kPageTokens;
  c.require(n_pages <= b.max_pages, at("batch.context_tokens", s), std::to_string(b.context_tokens[s]),
            std::to_string(b.max_pages * static_cast<std::int64_t>(kPageTokens)) + " or fewer (max_pages " +
                std::to_string(b.max_pages) + ")");
  const std::int32_t* row = b.page_table + static_cast<std::int64_t>(s) * b.max_pages;
  const std::int64_t last = p.pages.n_pages > 0 ? p.pages.n_pages - 1 : kMaxInt;
  for (std::int64_t i = 0; i < n_pages; ++i) {
    if (row[i] < 0 || row[i] > last)
      c.range(at("batch.page_table", s) + "[" + std::to_string(i) + "]", row[i], 0, last);
  }
  std::vector<std::int32_t> sorted(row, row + n_pages);
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) c.fail(at("batch.page_table", s), "page " + std::to_string(*twice) + " twice", "distinct");
}

void check_batch(Contract& c, const MlaAttendParams& p) {
  const AttendBatch& b = p.batch;
  c.range("batch.n_seqs", b.n_seqs, 0, kMaxInt);
  c.range("batch.max_pages", b.max_pages, b.n_seqs > 0 ? 1 : 0, kMaxInt);
  c.array("batch.row_offsets", b.row_offsets, b.n_seqs + std::int64_t{1});
  c.array("batch.context_tokens", b.context_tokens, b.n_seqs);
  c.array("batch.page_table", b.page_table, static_cast<std::int64_t>(b.n_seqs) * b.max_pages);
  if (!c.arrays_on_host()) return;
  c.range("batch.row_offsets[0]", b.row_offsets[0], 0, 0);
  for (int s = 0; s < b.n_seqs; ++s) {
    c.range(at("batch.row_offsets", s + 1), b.row_offsets[s + 1], b.row_offsets[s], c["T"]);
    c.range(at("batch.context_tokens", s), b.context_tokens[s], b.row_offsets[s + 1] - b.row_offsets[s], kMaxInt);
    check_page_row(c, p, s);
  }
  c.range(at("batch.row_offsets", b.n_seqs), b.row_offsets[b.n_seqs], c["T"], c["T"]);
}

}  // namespace

void validate(const EmbedParams& p, const CheckPolicy& policy) {
  Contract c("embed", p.tag, policy);
  c.weight("table", p.table, "vocab", "H");
  c.activation("out", p.out, {"T", "H"});
  array_in(c, "ids", p.ids, c["T"], 0, p.table.rows - 1);
}

void validate(const RmsNormParams& p, const CheckPolicy& policy) {
  Contract c("rms_norm", p.tag, policy);
  c.activation("hidden", p.hidden, {"T", "H"});
  if (p.delta) {
    c.activation("delta", p.delta, {"T", "H"});
    c.disjoint("delta", p.delta, "hidden", p.hidden);
  }
  if (p.out) {
    c.f32("weight", p.weight, {"H"});
    c.activation("out", p.out, {"T", "H"});
    positive(c, "eps", p.eps);
  }
  c.require(p.out || p.delta, "out and delta", "neither", "at least one");
}

void validate(const LinearParams& p, const CheckPolicy& policy) {
  Contract c("linear", p.tag, policy);
  c.activation("x", p.x, {"T", "in"});
  c.weight("w", p.w, "out", "in");
  c.activation("out", p.out, {"T", "out"});
  c.disjoint("out", p.out, "x", p.x);
}

void validate(const MlaProjectParams& p, const CheckPolicy& policy) {
  Contract c("mla_project", p.tag, policy);
  c.activation("x", p.x, {"T", "H"});
  c.activation("q", p.q, {"T", "N", kQk});
  c.activation("kv", p.kv, {"T", kKvRow});
  c.weight("q_a", p.q_a, "q_lora", "H");
  c.f32("q_a_norm", p.q_a_norm, {"q_lora"});
  c.weight("q_b", p.q_b, c["N"] * kQk, "q_lora");
  c.weight("kv_a", p.kv_a, kKvRow, "H");
  c.f32("kv_a_norm", p.kv_a_norm, {kLatent});
  positive(c, "latent_eps", p.latent_eps);
  positive(c, "rope_theta", p.rope_theta);
  array_in(c, "positions", p.positions, c["T"], 0, kMaxInt);
  c.disjoint("q", p.q, "x", p.x);
  c.disjoint("kv", p.kv, "x", p.x);
  c.disjoint("kv", p.kv, "q", p.q);
}

void validate(const MlaAppendParams& p, const CheckPolicy& policy) {
  Contract c("mla_append", p.tag, policy);
  c.activation("kv", p.kv, {"T", kKvRow});
  c.pages("pages", p.pages);
  const std::int64_t last = p.pages.n_pages > 0 ? p.pages.n_pages * std::int64_t{kPageTokens} - 1 : kMaxInt;
  array_in(c, "slots", p.slots, c["T"], std::numeric_limits<std::int32_t>::min(), last);
  if (!policy.arrays_on_host) return;
  std::vector<std::int32_t> used(p.slots, p.slots + c["T"]);
  std::erase_if(used, [](std::int32_t slot) { return slot < 0; });
  std::sort(used.begin(), used.end());
  const auto twice = std::adjacent_find(used.begin(), used.end());
  if (twice != used.end()) c.fail("slots", "slot " + std::to_string(*twice) + " twice", "a slot a row");
}

void validate(const MlaAttendParams& p, const CheckPolicy& policy) {
  Contract c("mla_attend", p.tag, policy);
  c.activation("q", p.q, {"T", "N", kQk});
  c.absorbed("kv_b", p.kv_b, c["N"] * (kNope + kValue), kLatent);
  c.activation("out", p.out, {"T", c["N"] * kValue});
  c.pages("pages", p.pages);
  c.range("window_tokens", p.window_tokens, 0, kMaxInt);
  c.disjoint("out", p.out, "q", p.q);
  check_batch(c, p);
}

void validate(const RouteParams& p, const CheckPolicy& policy) {
  Contract c("route", p.tag, policy);
  c.activation("x", p.x, {"T", "H"});
  c.f32("w", p.w, {"E", "H"});
  c.f32("bias", p.bias, {"E"});
  c.range("top_k", p.top_k, 1, c["E"]);
  positive(c, "scale", p.scale);
  c.array("ids", p.ids, c["T"] * p.top_k);
  c.array("weights", p.weights, c["T"] * p.top_k);
}

void validate(const MoeParams& p, const CheckPolicy& policy) {
  Contract c("moe", p.tag, policy);
  c.activation("x", p.x, {"T", "H"});
  c.activation("out", p.out, {"T", "H"});
  for (std::size_t e = 0; e < p.experts.size(); ++e)
    c.experts(at("experts", static_cast<std::int64_t>(e)), p.experts[e], "I", "H");
  if (p.shared.gate || p.shared.up || p.shared.down) c.experts("shared", p.shared, "shared I", "H");
  c.range("top_k", p.top_k, 1, kMaxInt);
  array_in(c, "ids", p.ids, c["T"] * p.top_k, std::numeric_limits<std::int32_t>::min(),
           static_cast<std::int64_t>(p.experts.size()) - 1);
  c.array("weights", p.weights, c["T"] * p.top_k);
  c.disjoint("out", p.out, "x", p.x);
}

void validate(const MlpParams& p, const CheckPolicy& policy) {
  Contract c("mlp", p.tag, policy);
  c.activation("x", p.x, {"T", "H"});
  c.experts("mlp", p.mlp, "I", "H");
  c.activation("out", p.out, {"T", "H"});
  c.disjoint("out", p.out, "x", p.x);
}

void validate(const LmHeadParams& p, const CheckPolicy& policy) {
  Contract c("lm_head", p.tag, policy);
  c.activation("x", p.x, {"T", "H"});
  c.weight("w", p.w, "vocab", "H");
  c.f32("logits", p.logits, {"R", "vocab"});
  c.range("valid_vocab", p.valid_vocab, 0, c["vocab"]);
  if (p.rows == nullptr) {
    c.range("logits dim 0 (R) without rows", c["R"], 0, c["T"]);
  } else {
    array_in(c, "rows", p.rows, c["R"], 0, c["T"] - 1);
  }
  c.disjoint("logits", p.logits, "x", p.x);
}

void validate(const MtpInputParams& p, const CheckPolicy& policy) {
  Contract c("mtp_input", p.tag, policy);
  c.activation("embed", p.embed, {"T", "H"});
  c.activation("hidden", p.hidden, {"T", "H"});
  c.f32("e_norm", p.e_norm, {"H"});
  c.f32("h_norm", p.h_norm, {"H"});
  c.weight("eh_proj", p.eh_proj, "H", 2 * c["H"]);
  c.activation("out", p.out, {"T", "H"});
  positive(c, "eps", p.eps);
  c.disjoint("out", p.out, "embed", p.embed);
  c.disjoint("out", p.out, "hidden", p.hidden);
}

}  // namespace glint
