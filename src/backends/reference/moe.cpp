// Feed-forward: router, routed and shared experts, dense MLP. Model facts §2.4.

#include <cmath>
#include <vector>

#include "backends/reference/math.hpp"
#include "backends/reference/reference.hpp"

namespace glint::reference {
namespace {

// out[t] = down(silu(gate x[t]) ⊙ up x[t]).
void gated_mlp(Rows x, const ExpertWeights& w, MutableRows out) {
  const std::int64_t inner = w.gate.rows;
  std::vector<float> gate(static_cast<std::size_t>(x.rows * inner));
  std::vector<float> up(gate.size());
  matmul(x, w.gate, {gate.data(), inner});
  matmul(x, w.up, {up.data(), inner});
  for (std::size_t i = 0; i < gate.size(); ++i) gate[i] = silu(gate[i]) * up[i];
  matmul({gate.data(), x.rows, inner}, w.down, out);
}

struct Choice {
  std::int64_t row;
  float weight;
};

}  // namespace

void route(const RouteParams& p) {
  const std::int64_t n_experts = p.w.shape[0];
  const Rows x = rows_of(p.x);
  std::vector<float> score(static_cast<std::size_t>(n_experts));
  std::vector<float> choice(score.size());  // score + bias: decides who runs, not how much it counts
  for (std::int64_t t = 0; t < x.rows; ++t) {
    matmul_nt({x[t], 1, x.stride}, rows_of(p.w), x.stride, {score.data(), n_experts});
    for (std::size_t e = 0; e < score.size(); ++e) {
      score[e] = 1.0F / (1.0F + std::exp(-score[e]));
      choice[e] = score[e] + p.bias.as<float>()[e];
    }
    std::int32_t* ids = p.ids + t * p.top_k;
    float* weights = p.weights + t * p.top_k;
    std::vector<bool> taken(score.size(), false);
    float sum = 0;
    for (int k = 0; k < p.top_k; ++k) {
      std::size_t best = score.size();
      for (std::size_t e = 0; e < score.size(); ++e) {
        if (!taken[e] && (best == score.size() || choice[e] > choice[best])) best = e;
      }
      taken[best] = true;
      ids[k] = static_cast<std::int32_t>(best);
      weights[k] = score[best];
      sum += score[best];
    }
    for (int k = 0; k < p.top_k; ++k) weights[k] = (p.normalize ? weights[k] / (sum + 1e-20F) : weights[k]) * p.scale;
  }
}

void moe(const MoeParams& p) {
  const std::int64_t hidden = p.x.shape[1];
  const Rows x = rows_of(p.x);
  const MutableRows out = rows_of(p.out);
  std::vector<std::vector<Choice>> chosen(p.experts.size());
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t i = t * p.top_k; i < (t + 1) * p.top_k; ++i) {
      if (p.ids[i] >= 0) chosen[static_cast<std::size_t>(p.ids[i])].push_back({t, p.weights[i]});
    }
  }

  std::vector<float> sum(static_cast<std::size_t>(x.rows * hidden), 0.0F);  // apart from out, which may be x
  std::vector<float> gathered;                                              // rows of x that chose the expert
  std::vector<float> answer;
  for (std::size_t e = 0; e < p.experts.size(); ++e) {  // ascending: fixes the order of the sum
    if (chosen[e].empty()) continue;
    gathered.clear();
    for (const Choice& c : chosen[e]) gathered.insert(gathered.end(), x[c.row], x[c.row] + hidden);
    answer.resize(gathered.size());
    gated_mlp({gathered.data(), static_cast<std::int64_t>(chosen[e].size()), hidden}, p.experts[e],
              {answer.data(), hidden});
    for (std::size_t i = 0; i < chosen[e].size(); ++i) {
      const float* from = answer.data() + static_cast<std::int64_t>(i) * hidden;
      float* to = sum.data() + chosen[e][i].row * hidden;
      for (std::int64_t h = 0; h < hidden; ++h) to[h] += chosen[e][i].weight * from[h];
    }
  }

  if (p.shared.gate) {
    answer.resize(sum.size());
    gated_mlp(x, p.shared, {answer.data(), hidden});
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += answer[i];
  }
  for (std::size_t i = 0; i < sum.size(); ++i) out.data[i] = sum[i];
}

void mlp(const MlpParams& p) { gated_mlp(rows_of(p.x), p.mlp, rows_of(p.out)); }

}  // namespace glint::reference
