// Cases of route, moe and mlp.

#include <algorithm>
#include <cmath>
#include <memory>

#include "ops/case_list.hpp"

namespace glint {
namespace {

struct RouteShape {
  std::int64_t T, hidden, experts;
  int top_k = 4;
  bool normalize = true;
  float bias_scale = 0.1F;
};

// True if no two of the first K + 1 choices are so near that the order of summation could swap them.
bool clear_choice(const float* x, const std::vector<float>& w, const std::vector<float>& bias, const RouteShape& r) {
  constexpr double kGap = 2e-5;
  std::vector<double> choice;
  for (std::int64_t e = 0; e < r.experts; ++e) {
    double dot = 0;
    for (std::int64_t i = 0; i < r.hidden; ++i) dot += double{x[i]} * w[static_cast<std::size_t>(e * r.hidden + i)];
    choice.push_back(1.0 / (1.0 + std::exp(-dot)) + bias[static_cast<std::size_t>(e)]);
  }
  std::sort(choice.begin(), choice.end(), std::greater<>());
  const std::size_t n = std::min(static_cast<std::size_t>(r.top_k) + 1, choice.size());
  for (std::size_t i = 1; i < n; ++i) {
    if (choice[i - 1] - choice[i] < kGap) return false;
  }
  return true;
}

void call_route(Stage& s, const RouteShape& r, const std::vector<float>& x, const std::vector<float>& w,
                const std::vector<float>& bias) {
  RouteParams p{.tag = kCaseTag};
  p.x = s.input({r.T, r.hidden}, x);
  p.w = s.input({r.experts, r.hidden}, w);
  p.bias = s.input({r.experts}, bias);
  p.top_k = r.top_k;
  p.normalize = r.normalize;
  p.ids = s.output_ids("ids", {r.T, r.top_k});
  p.weights = s.output("weights", {r.T, r.top_k}, OutputKind::kFloat).as<float>();  // the router is fp32 everywhere
  s.ops().route(p);
}

void add_route(std::vector<Case>& list, const RouteShape& r) {
  const auto run = [=](Stage& s) {
    const auto w = s.random.normals(r.experts * r.hidden, 1.0F / std::sqrt(static_cast<float>(r.hidden)));
    const auto bias = s.random.normals(r.experts, r.bias_scale);
    std::vector<float> x;
    for (std::int64_t t = 0; t < r.T; ++t) {
      auto row = s.random.normals(r.hidden, 1.0F);
      while (!clear_choice(row.data(), w, bias, r)) row = s.random.normals(r.hidden, 1.0F);
      x.insert(x.end(), row.begin(), row.end());
    }
    call_route(s, r, x, w, bias);
  };
  list.push_back({.name = case_name("route", {text("T", r.T), text("H", r.hidden), text("E", r.experts),
                                              text("K", r.top_k), r.normalize ? "normalized" : "raw"}),
                  .op = "route",
                  .run = run});
}

// All scores are sigmoid(0), so that only the bias decides; where that ties too, the lower id must win.
void add_route_ties(std::vector<Case>& list, bool equal_bias) {
  const auto run = [=](Stage& s) {
    const RouteShape r{.T = 3, .hidden = 256, .experts = 64};
    std::vector<float> bias(64, 0.25F);
    if (!equal_bias) {
      for (std::size_t e = 0; e < bias.size(); ++e) bias[e] = static_cast<float>(e % 32) / 64.0F;  // pairs e, e + 32
    }
    call_route(s, r, std::vector<float>(static_cast<std::size_t>(r.T * r.hidden), 0.0F),
               s.random.normals(r.experts * r.hidden, 1.0F), bias);
  };
  list.push_back({.name = case_name("route", {equal_bias ? "ties/equal" : "ties/pairs"}), .op = "route", .run = run});
}

enum class Routing { kRandom, kSkewed, kOneExpert, kHoles };

struct MoeShape {
  std::int64_t T, hidden, inner, experts;
  int top_k = 4;
  std::int64_t shared_inner = 0;  // 0: none
  Routing routing = Routing::kRandom;
};

// The K experts of row t.
std::vector<std::int32_t> pick(Random& random, const MoeShape& m, std::int64_t t) {
  auto ids = random.permutation(static_cast<std::int32_t>(m.experts));
  switch (m.routing) {
    case Routing::kRandom:
      break;
    case Routing::kSkewed:  // all rows to the last K experts, in falling order; every other expert is empty
      for (std::size_t k = 0; k < ids.size(); ++k) ids[k] = static_cast<std::int32_t>(ids.size() - 1 - k);
      break;
    case Routing::kOneExpert:  // expert 5 takes every row first
      std::iter_swap(ids.begin(), std::find(ids.begin(), ids.end(), 5));
      break;
    case Routing::kHoles:  // unused choices; row 1 uses none at all
      ids[static_cast<std::size_t>(t % m.top_k)] = -1;
      if (t == 1) std::fill(ids.begin(), ids.end(), -1);
      break;
  }
  ids.resize(static_cast<std::size_t>(m.top_k));
  return ids;
}

void add_moe(std::vector<Case>& list, const Stored& format, const MoeShape& m) {
  static constexpr const char* kNames[] = {"random", "skewed", "one", "holes"};
  const auto run = [=](Stage& s) {
    std::vector<std::int32_t> ids;
    std::vector<float> weights;
    for (std::int64_t t = 0; t < m.T; ++t) {
      for (const std::int32_t e : pick(s.random, m, t)) {
        ids.push_back(e);
        weights.push_back(0.1F + s.random.uniform());
      }
    }
    std::vector<ExpertWeights> experts;
    for (std::int64_t e = 0; e < m.experts; ++e) experts.push_back(s.expert(m.inner, m.hidden, format.spec));
    MoeParams p{.tag = kCaseTag};
    p.x = s.input({m.T, m.hidden});
    p.top_k = m.top_k;
    p.ids = s.array(ids);
    p.weights = s.array(weights);
    p.experts = experts;
    if (m.shared_inner > 0) p.shared = s.expert(m.shared_inner, m.hidden, format.spec);
    p.out = s.output("out", {m.T, m.hidden}, OutputKind::kProduct);
    s.ops().moe(p);
    s.ops().synchronize();  // before `experts` goes
  };
  list.push_back({.name = case_name("moe", {text(format), text("T", m.T), text("H", m.hidden), text("I", m.inner),
                                            text("E", m.experts), text("K", m.top_k), text("shared", m.shared_inner),
                                            kNames[static_cast<int>(m.routing)]}),
                  .op = "moe",
                  .run = run,
                  .format = format.spec.format});
}

// Every matrix in another format: what a recipe by sensitivity can come to.
void add_mixed_moe(std::vector<Case>& list, std::int64_t T) {
  const auto run = [=](Stage& s) {
    constexpr std::int64_t kHidden = 256, kInner = 128, kExperts = 4;
    constexpr int kTopK = 2;
    std::vector<std::int32_t> ids;
    std::vector<float> weights;
    for (std::int64_t i = 0; i < T * kTopK; ++i) {
      ids.push_back(static_cast<std::int32_t>(i % kExperts));
      weights.push_back(0.1F + s.random.uniform());
    }
    const Stored formats[] = {QuantSpec{WeightFormat::kI4, 128},   WeightFormat::kBF16,
                              QuantSpec{WeightFormat::kI8, 64},    QuantSpec{WeightFormat::kNF4, 64},
                              QuantSpec{WeightFormat::kF8E4M3, 0}, QuantSpec{WeightFormat::kI8, 128}};
    std::size_t next = 0;
    const auto format = [&]() -> const QuantSpec& { return formats[next++ % std::size(formats)].spec; };
    std::vector<ExpertWeights> experts;
    for (std::int64_t e = 0; e < kExperts; ++e, ++next)
      experts.push_back({s.weight(kInner, kHidden, format()), s.weight(kInner, kHidden, format()),
                         s.weight(kHidden, kInner, format())});
    MoeParams p{.tag = kCaseTag};
    p.x = s.input({T, kHidden});
    p.top_k = kTopK;
    p.ids = s.array(ids);
    p.weights = s.array(weights);
    p.experts = experts;
    p.shared = s.expert(kInner, kHidden, QuantSpec{WeightFormat::kI8, 0});
    p.out = s.output("out", {T, kHidden}, OutputKind::kProduct);
    s.ops().moe(p);
    s.ops().synchronize();
  };
  list.push_back(
      {.name = case_name("moe", {"mixed", text("T", T)}), .op = "moe", .run = run, .format = WeightFormat::kI4});
}

void add_mlp(std::vector<Case>& list, const Stored& format, std::int64_t T, std::int64_t hidden, std::int64_t inner) {
  const auto run = [=](Stage& s) {
    MlpParams p{.tag = kCaseTag};
    p.x = s.input({T, hidden});
    p.mlp = s.expert(inner, hidden, format.spec);
    p.out = s.output("out", {T, hidden}, OutputKind::kProduct);
    s.ops().mlp(p);
  };
  list.push_back({.name = case_name("mlp", {text(format), text("T", T), text("H", hidden), text("I", inner)}),
                  .op = "mlp",
                  .run = run,
                  .format = format.spec.format});
}

}  // namespace

void add_expert_cases(std::vector<Case>& list) {
  constexpr auto kBF16 = WeightFormat::kBF16;
  for (const std::int64_t T : {1, 3, 7, 17, 65}) add_route(list, {.T = T, .hidden = 256, .experts = 64});
  for (const std::int64_t T : {1, 17}) add_route(list, {.T = T, .hidden = 2048, .experts = 64});
  add_route(list, {.T = 5, .hidden = 256, .experts = 48});  // a pruned derivative
  add_route(list, {.T = 5, .hidden = 100, .experts = 5, .top_k = 5});
  add_route(list, {.T = 5, .hidden = 37, .experts = 7, .top_k = 1});
  add_route(list, {.T = 5, .hidden = 256, .experts = 64, .top_k = 8, .normalize = false});
  add_route(list, {.T = 5, .hidden = 256, .experts = 64, .top_k = 4, .bias_scale = 10.0F});  // bias outweighs score
  add_route_ties(list, true);
  add_route_ties(list, false);

  for (const WeightFormat f : kAllFormats) {
    for (const std::int64_t T : {1, 3, 7, 17, 64, 65}) add_moe(list, f, {T, 256, 64, 64, 4, 64});
  }
  for (const std::int64_t T : {1, 17, 65}) {
    add_moe(list, kBF16, {T, 256, 64, 64, 4, 64, Routing::kSkewed});
    add_moe(list, kBF16, {T, 256, 64, 64, 4, 64, Routing::kOneExpert});
    add_moe(list, kBF16, {T, 256, 64, 64, 4, 0, Routing::kHoles});
  }
  add_moe(list, kBF16, {200, 256, 64, 64, 4, 64});
  add_moe(list, kBF16, {70, 256, 128, 8, 2, 192, Routing::kSkewed});
  add_moe(list, kBF16, {300, 256, 128, 8, 2, 192, Routing::kHoles});
  add_moe(list, kBF16, {7, 256, 64, 1, 1, 64});
  for (const WeightFormat f : kAllFormats) add_moe(list, f, {5, 100, 37, 9, 2, 24, Routing::kHoles});
  for (const QuantSpec& q : kBlockSpecs) {
    for (const std::int64_t T : {1, 11}) add_moe(list, q, {T, 128, 64, 5, 2, 192});
    add_moe(list, q, {5, 100, 38, 3, 2, 24, Routing::kHoles});
  }
  for (const std::int64_t T : {1, 5, 33}) add_mixed_moe(list, T);
  add_moe(list, QuantSpec{}, {40, 256, 128, 9, 3, 192});
  add_moe(list, QuantSpec{}, {1, 2048, 1536, 3, 2, 1536});
  add_moe(list, kBF16, {1, 2048, 1536, 6, 4, 1536});  // real sizes, few experts
  add_moe(list, kBF16, {5, 2048, 1536, 6, 4, 1536, Routing::kSkewed});

  for (const WeightFormat f : kAllFormats) {
    for (const std::int64_t T : {1, 7, 17, 65}) add_mlp(list, f, T, 256, 768);
    add_mlp(list, f, 3, 100, 37);
  }
  for (const QuantSpec& q : kBlockSpecs) {
    add_mlp(list, q, 7, 256, 320);
    add_mlp(list, q, 3, 100, 38);
  }
  add_mlp(list, QuantSpec{}, 65, 256, 320);
  add_mlp(list, QuantSpec{}, 3, 2048, 1536);
  add_mlp(list, kBF16, 1, 2048, 10240);
  add_mlp(list, kBF16, 5, 2048, 1536);
}

// Several tiles an expert; the widest tiles of a gated product, with edges.
void add_many_rows_expert_cases(std::vector<Case>& list) {
  constexpr auto kBF16 = WeightFormat::kBF16;
  for (const Routing routing : {Routing::kRandom, Routing::kSkewed, Routing::kOneExpert, Routing::kHoles})
    add_moe(list, kBF16, {300, 264, 200, 7, 2, 136, routing});
  add_moe(list, kBF16, {420, 128, 64, 64, 8, 0});
  add_moe(list, QuantSpec{WeightFormat::kI4, 128, 1, true, DType::kBF16}, {300, 256, 128, 7, 2, 128});
  add_mlp(list, kBF16, 130, 72, 1536);
  add_mlp(list, kBF16, 260, 256, 5768);
  for (const std::int64_t T : {257, 420}) add_route(list, {.T = T, .hidden = 2048, .experts = 64});
  add_route(list, {.T = 300, .hidden = 136, .experts = 48, .top_k = 8, .normalize = false});
  add_route(list, {.T = 300, .hidden = 100, .experts = 5, .top_k = 2});
}

}  // namespace glint
