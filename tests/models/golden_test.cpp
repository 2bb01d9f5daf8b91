// The model against Hugging Face's float32 results (tests/data/golden, model card): log-probs, hidden states, greedy
// tokens, MTP. The reference backend meets the float32 bars; the CPU backend is also held to the bf16 bars, once for
// each instruction set that this machine has.

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "base/json.hpp"
#include "models/tiny_model.hpp"
#include "ops/traced.hpp"

namespace glint::testing {
namespace {

constexpr double kLogprobLimit = 2e-4;  // the bar against float32 Hugging Face
constexpr double kHiddenLimit = 1e-5;   // relative to the largest value of the tensor
constexpr double kMeanKlLimit = 1e-4;   // nats a token, the bar of bf16 backends

std::vector<std::int32_t> greedy_ids(const std::string& name) {
  static const json::value all = json::parse_file("tests/data/golden/golden.json");
  std::vector<std::int32_t> ids;
  for (const json::value& v : all.at(name).at("greedy_ids").as_array()) ids.push_back(v.to_number<std::int32_t>());
  return ids;
}

std::vector<double> log_softmax(std::span<const float> logits) {
  double top = -INFINITY;
  for (const float v : logits) top = std::max(top, static_cast<double>(v));
  double sum = 0;
  for (const float v : logits) sum += std::exp(v - top);
  std::vector<double> out;
  for (const float v : logits) out.push_back(v - top - std::log(sum));
  return out;
}

// The largest |log-prob - golden| over a row's 20 entries.
double top_difference(std::span<const float> logits, const std::string& kind, std::int64_t row) {
  const ConstView ids = golden().get(kind + "_ids");
  const ConstView want = golden().get(kind + "_logprobs");
  const std::vector<double> got = log_softmax(logits);
  double worst = 0;
  for (std::int64_t k = 0; k < 20; ++k) {
    const auto i = static_cast<std::size_t>(row * 20 + k);
    worst = std::max(worst, std::abs(got[static_cast<std::size_t>(ids.as<std::int32_t>()[i])] - want.as<float>()[i]));
  }
  return worst;
}

struct Continuation {
  std::vector<std::int32_t> ids;
  std::int64_t first_difference = -1;  // against the golden tokens
  double gap = 0;                      // there: log-prob of our choice minus that of the golden token
};

// 64 greedy tokens, with the golden ones fed back, so that one near-tie does not hide what follows it.
Continuation greedy(TinyModel& model, const std::string& name) {
  const std::vector<std::int32_t> want = greedy_ids(name);
  const std::span<const std::int32_t> prompt = golden_ids(name);
  std::vector<std::int32_t> ids(prompt.begin(), prompt.end());
  ids.insert(ids.end(), want.begin(), want.end() - 1);
  Continuation c;
  const auto first = static_cast<std::int64_t>(prompt.size()) - 1;
  probe_logits(*model.runtime, ids, {}, [&](std::int64_t position, std::span<float> logits) {
    if (position < first) return;
    const auto step = static_cast<std::size_t>(position - first);
    const auto best = std::max_element(logits.begin(), logits.end());
    c.ids.push_back(static_cast<std::int32_t>(best - logits.begin()));
    if (c.ids.back() == want[step]) return;
    if (c.first_difference < 0) c.first_difference = static_cast<std::int64_t>(step);
    c.gap = std::max(c.gap, static_cast<double>(*best - logits[static_cast<std::size_t>(want[step])]));
  });
  return c;
}

class GoldenExact : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(, GoldenExact, ::testing::ValuesIn(all_backends()),
                         [](const auto& i) { return test_name(i.param); });

// With float32 activations and exact bf16 weights, even the fast backends meet the float32 bar when the cache is
// float32, unless their products round activations, to bf16 (avx512bf16, amx) or to 16-bit codes (avx512vnni): those
// are held to the bars below. Codes' error is small, but an expert that was as good as another falls either way.
bool multiplies_codes(const std::string& backend) { return backend == "cpu:avx512vnni"; }
bool rounds_to_bf16(const std::string& backend) { return backend == "cpu:avx512bf16" || backend == "cpu:amx"; }
bool rounds_activations(const std::string& backend) { return multiplies_codes(backend) || rounds_to_bf16(backend); }

TEST_P(GoldenExact, TopLogprobs) {
  if (rounds_activations(GetParam())) GTEST_SKIP() << "rounded activations: see GoldenBf16";
  TinyModel model(make_ops(GetParam()));
  for (const std::string name : kPrompts) {
    double worst = 0;
    std::int64_t rows = 0;
    probe_logits(*model.runtime, golden_ids(name), {}, [&](std::int64_t position, std::span<float> logits) {
      worst = std::max(worst, top_difference(logits, name + ".top", position));
      ++rows;
    });
    EXPECT_EQ(rows, static_cast<std::int64_t>(golden_ids(name).size()));
    EXPECT_LE(worst, kLogprobLimit) << name;
    RecordProperty(name, std::to_string(worst));
  }
}

TEST_P(GoldenExact, MtpLogprobs) {
  if (rounds_activations(GetParam())) GTEST_SKIP() << "rounded activations: see GoldenBf16";
  TinyModel model(make_ops(GetParam()));
  for (const std::string name : kPrompts) {
    double worst = 0;
    std::int64_t rows = 0;
    probe_draft_logits(*model.runtime, golden_ids(name), {}, [&](std::int64_t position, std::span<float> logits) {
      worst = std::max(worst, top_difference(logits, name + ".mtp_top", position));
      ++rows;
    });
    EXPECT_EQ(rows, static_cast<std::int64_t>(golden_ids(name).size()) - 1);
    EXPECT_LE(worst, kLogprobLimit) << name;
  }
}

TEST_P(GoldenExact, GreedyTokens) {  // by codes too
  if (rounds_to_bf16(GetParam())) GTEST_SKIP() << "bf16 products: see GoldenBf16";
  TinyModel model(make_ops(GetParam()));
  for (const std::string name : kPrompts) EXPECT_EQ(greedy(model, name).ids, greedy_ids(name)) << name;
}

TEST_P(GoldenExact, AllLogitsOfStory) {
  if (rounds_activations(GetParam())) GTEST_SKIP() << "rounded activations: see GoldenBf16";
  TinyModel model(make_ops(GetParam()));
  const std::vector<float> got = model.logits(golden_ids("story"));
  const ConstView want = golden().get("story.logits");
  ASSERT_EQ(static_cast<std::int64_t>(got.size()), want.shape.elements());
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(got[i]) - want.as<float>()[i]));
  }
  EXPECT_LE(worst, kLogprobLimit);
}

// The residual stream where the next norm reads it, caught by a decorator around the norms.
class HiddenTap final : public DecoratedOps<HiddenTap> {
 public:
  using DecoratedOps::DecoratedOps;
  std::map<std::string, std::vector<float>> taps;  // "0" … "7" and "final"

  template <typename Params, typename Run>
  void around(std::string_view, const Params& p, Run run) {
    run();
    if constexpr (std::is_same_v<Params, RmsNormParams>) {
      const std::string_view tag = p.tag.name;
      if (tag == "input_norm" && p.tag.layer < 7) keep(std::to_string(p.tag.layer), p.hidden);
      if (tag == "final_norm") {
        keep("7", p.hidden);
        keep("final", p.out);
      }
    }
  }

 private:
  void keep(const std::string& name, const View& v) {
    taps[name].assign(v.as<float>(), v.as<float>() + v.shape.elements());
  }
};

TEST_P(GoldenExact, HiddenStates) {
  if (rounds_activations(GetParam())) GTEST_SKIP() << "rounded activations: see GoldenBf16";
  auto owned = std::make_unique<HiddenTap>(make_ops(GetParam()));
  HiddenTap& tap = *owned;
  TinyModel model(std::move(owned));
  for (const std::string name : {"story", "tool"}) {
    model.logits(golden_ids(name));
    for (const auto& [layer, got] : tap.taps) {
      const ConstView want = golden().get(name + (layer == "final" ? ".final_hidden" : ".hidden." + layer));
      ASSERT_EQ(static_cast<std::int64_t>(got.size()), want.shape.elements());
      double worst = 0;
      double largest = 0;
      for (std::size_t i = 0; i < got.size(); ++i) {
        worst = std::max(worst, std::abs(static_cast<double>(got[i]) - want.as<float>()[i]));
        largest = std::max(largest, std::abs(static_cast<double>(want.as<float>()[i])));
      }
      EXPECT_LE(worst, kHiddenLimit * largest) << name << ", layer " << layer << ": " << worst / largest;
    }
    EXPECT_EQ(tap.taps.size(), 9U);
  }
}

struct Bf16Case {
  std::string backend;
  KvCodec codec;
};

class GoldenBf16 : public ::testing::TestWithParam<Bf16Case> {};

std::vector<Bf16Case> bf16_cases() {
  std::vector<Bf16Case> cases;
  std::vector<std::string> backends = cpu_backends();
  for (const std::string& device : device_backends()) backends.push_back(device);
  for (const std::string& backend : backends) {
    cases.push_back({backend, KvCodec::kF32});
    cases.push_back({backend, KvCodec::kBF16});
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(, GoldenBf16, ::testing::ValuesIn(bf16_cases()), [](const auto& i) {
  return test_name(i.param.backend) + (i.param.codec == KvCodec::kF32 ? "_kv_f32" : "_kv_bf16");
});

// The float32 reference's logits of all prompts, made once.
const std::map<std::string, std::vector<float>>& reference_logits() {
  static const auto all = [] {
    TinyModel model(make_reference_ops());
    std::map<std::string, std::vector<float>> logits;
    for (const std::string name : kPrompts) logits[name] = model.logits(golden_ids(name));
    return logits;
  }();
  return all;
}

TEST_P(GoldenBf16, MeanKl) {
  TinyModel model(make_ops(GetParam().backend), {.codec = GetParam().codec});
  const std::int64_t vocab = model.weights.config.vocab;
  double sum = 0;
  std::int64_t n = 0;
  for (const std::string name : kPrompts) {
    const std::vector<float>& want = reference_logits().at(name);
    probe_logits(*model.runtime, golden_ids(name), {}, [&](std::int64_t position, std::span<float> logits) {
      const std::vector<double> p = log_softmax(
          std::span(want).subspan(static_cast<std::size_t>(position * vocab), static_cast<std::size_t>(vocab)));
      const std::vector<double> q = log_softmax(logits);
      for (std::size_t i = 0; i < p.size(); ++i) sum += std::exp(p[i]) * (p[i] - q[i]);
      ++n;
    });
  }
  const double mean = sum / static_cast<double>(n);
  std::printf("  mean KL %.3g nats a token over %lld tokens\n", mean, static_cast<long long>(n));
  // Codes: 1.9e-8 and 6.2e-7 were measured of two builds, the latter by one expert of one token (2026-11-30).
  const bool codes_alone = multiplies_codes(GetParam().backend) && GetParam().codec == KvCodec::kF32;
  EXPECT_LE(mean, codes_alone ? kMeanKlLimit / 20 : kMeanKlLimit);
}

// A different token is only right where the two were as good as equal.
TEST_P(GoldenBf16, GreedyTokensOrNearTies) {
  constexpr double kNearTie = 0.02;  // nats; rounding activations to bf16 moves a logit by about that much at most
  TinyModel model(make_ops(GetParam().backend), {.codec = GetParam().codec});
  for (const std::string name : kPrompts) {
    const Continuation c = greedy(model, name);
    EXPECT_LE(c.gap, kNearTie) << name << ", step " << c.first_difference;
    if (c.first_difference >= 0) {
      std::printf("  %s: near-tie at step %lld, gap %.3g\n", name.c_str(), static_cast<long long>(c.first_difference),
                  c.gap);
    }
  }
}

// Model facts §2.2: Hugging Face's class default is 1e-6; the switch must reach the two latent norms and only matter
// a little.
TEST(LatentEps, SwitchChangesLogitsSlightly) {
  TinyModel usual(make_reference_ops());
  TinyModel switched(make_reference_ops(), {.latent_eps = 1e-6F});
  TinyModel explicit_default(make_reference_ops(), {.latent_eps = 1e-5F});
  const std::vector<float> a = usual.logits(golden_ids("story"));
  const std::vector<float> b = switched.logits(golden_ids("story"));
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(static_cast<double>(a[i]) - b[i]));
  EXPECT_GT(worst, 0);
  EXPECT_LT(worst, 0.5);
  EXPECT_EQ(a, explicit_default.logits(golden_ids("story")));
  std::printf("  largest change of a logit: %.3g\n", worst);
}

// exp of the mean negative log-prob over the first windows of 1,024 tokens.
double perplexity(TinyModel& model, int n_windows, std::int64_t window) {
  static const SafetensorsFile file("tests/data/golden/valid_tokens.safetensors");
  const ConstView tokens = file.get("tokens");
  double sum = 0;
  for (int w = 0; w < n_windows; ++w) {
    const std::span<const std::int32_t> ids{tokens.as<std::int32_t>() + w * (window + 1),
                                            static_cast<std::size_t>(window + 1)};
    probe_logits(*model.runtime, ids.first(static_cast<std::size_t>(window)), {},
                 [&](std::int64_t position, std::span<float> logits) {
                   sum -= log_prob(logits, ids[static_cast<std::size_t>(position + 1)]);
                 });
  }
  return std::exp(sum / static_cast<double>(n_windows * window));
}

class ShortPerplexity : public ::testing::TestWithParam<Bf16Case> {};
INSTANTIATE_TEST_SUITE_P(, ShortPerplexity, ::testing::ValuesIn(bf16_cases()), [](const auto& i) {
  return test_name(i.param.backend) + (i.param.codec == KvCodec::kF32 ? "_kv_f32" : "_kv_bf16");
});

TEST_P(ShortPerplexity, WithinATenthOfAPercent) {
  constexpr int kWindows = 2;
  constexpr std::int64_t kWindow = 1024;
  static const double want = [] {
    TinyModel reference(make_reference_ops());
    return perplexity(reference, kWindows, kWindow);
  }();
  TinyModel model(make_ops(GetParam().backend, 2), {.codec = GetParam().codec});
  const double got = perplexity(model, kWindows, kWindow);
  std::printf("  perplexity %.5f, reference %.5f (%+.4f %%)\n", got, want, (got / want - 1) * 100);
  EXPECT_NEAR(got, want, want * 1e-3);
}

}  // namespace
}  // namespace glint::testing
