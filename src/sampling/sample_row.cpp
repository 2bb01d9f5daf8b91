#include "sampling/sample_row.hpp"

#include <algorithm>

namespace glint {

namespace {

// False: the edits are none that a backend makes, or too many.
bool add_edits(const SampleInput& input, std::size_t max_edits, std::vector<SampleEdit>& edits, SampleRow& row) {
  const SamplerParams& p = *input.params;
  const auto& biases = p.logit_bias;
  const auto seen = p.needs_counts() ? input.counts->entries() : std::span<const TokenCounts::Entry>{};
  const auto same_id = [](const auto& a, const auto& b) { return a.first == b.first; };
  if (std::adjacent_find(biases.begin(), biases.end(), same_id) != biases.end()) return false;
  if (edits.size() + biases.size() + seen.size() > max_edits) return false;
  row.first_edit = static_cast<std::int32_t>(edits.size());
  row.n_biases = static_cast<std::int32_t>(biases.size());
  row.n_seen = static_cast<std::int32_t>(seen.size());
  row.repetition_penalty = p.repetition_penalty;
  for (const auto& [id, bias] : biases) edits.push_back({id, bias});
  for (const TokenCounts::Entry& e : seen) {
    const float less =
        e.generated > 0 ? p.frequency_penalty * static_cast<float>(e.generated) + p.presence_penalty : 0.0F;
    edits.push_back({e.id, less});
  }
  return true;
}

}  // namespace

void SampleBatch::clear() {
  rows.clear();
  edits.clear();
  masks.clear();
}

void add_sample_row(const SampleInput& input, std::int64_t vocab, std::size_t max_edits, SampleBatch& batch) {
  const SamplerParams& params = *input.params;
  SampleRow& row = batch.rows.emplace_back();
  if (params.logprobs >= 0 || !add_edits(input, max_edits, batch.edits, row)) return;
  if (!input.allowed_tokens.empty()) {
    row.mask = static_cast<std::int32_t>(batch.masks.size() / static_cast<std::size_t>(mask_words(vocab)));
    batch.masks.insert(batch.masks.end(), input.allowed_tokens.begin(), input.allowed_tokens.end());
  }
  if (params.greedy()) {
    row.mode = SampleMode::kGreedy;
    return;
  }
  row.mode = SampleMode::kDraw;
  row.u = uniform(params.seed, input.position, Draw::kToken);
  row.inv_temperature = 1.0F / params.temperature;
  row.top_p = params.top_p;
  if (params.top_k < vocab) row.top_k = params.top_k;
  if (params.min_p > 0) row.min_p_nats = min_p_nats(params);
}

Sample sampled(std::int32_t token) {
  Sample sample;
  if (token == kLogitsNotFinite) {
    sample.status = SampleStatus::kNotFinite;
  } else if (token == kNoCandidate) {
    sample.status = SampleStatus::kNoCandidate;
  } else {
    sample.token = token;
  }
  return sample;
}

}  // namespace glint
