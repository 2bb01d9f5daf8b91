// The reference against formulas in double written a second time here, and against examples worked by hand, so that it
// is not its own judge.

#include "backends/reference/reference.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "ops/stage.hpp"

namespace glint {
namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

View view(Floats& v, const Shape& shape) { return {v.data(), DType::kF32, shape}; }
Weight f32_weight(const Floats& v, std::int64_t rows, std::int64_t cols) {
  return {.format = WeightFormat::kF32, .rows = rows, .cols = cols, .data = v.data()};
}

// y[t][o] = Σ x[t][i] w[o][i] in double.
Doubles product(const Doubles& x, const Floats& w, std::size_t in) {
  const std::size_t out = w.size() / in;
  Doubles y;
  for (std::size_t t = 0; t < x.size() / in; ++t) {
    for (std::size_t o = 0; o < out; ++o) {
      double sum = 0;
      for (std::size_t i = 0; i < in; ++i) sum += x[t * in + i] * w[o * in + i];
      y.push_back(sum);
    }
  }
  return y;
}

Doubles doubles(const Floats& v) { return {v.begin(), v.end()}; }

void normalise(double* x, std::size_t n, const Floats& weight, double eps) {
  double mean = 0;
  for (std::size_t i = 0; i < n; ++i) mean += x[i] * x[i] / static_cast<double>(n);
  for (std::size_t i = 0; i < n; ++i) x[i] = x[i] / std::sqrt(mean + eps) * weight[i];
}

void expect_near(const Floats& found, const Doubles& expected, double relative) {
  ASSERT_EQ(found.size(), expected.size());
  double square = 0;
  for (const double e : expected) square += e * e;
  const double tolerance = relative * std::sqrt(square / static_cast<double>(expected.size()));
  for (std::size_t i = 0; i < found.size(); ++i) ASSERT_NEAR(found[i], expected[i], tolerance) << "at " << i;
}

TEST(Reference, EmbedPicksRows) {
  const Floats table{1, 2, 3, 4, 5, 6};
  const std::vector<std::int32_t> ids{2, 0, 2};
  Floats out(6);
  reference::embed({.ids = ids.data(), .table = f32_weight(table, 3, 2), .out = view(out, {3, 2})});
  EXPECT_EQ(out, (Floats{5, 6, 1, 2, 5, 6}));
}

TEST(Reference, EmbedReadsHalfFormats) {
  const std::vector<std::int32_t> ids{0};
  const std::uint16_t bf16[] = {0x3f80, 0xc040};  // 1, -3
  const std::uint16_t f16[] = {0x3800, 0xc700};   // 0.5, -7
  Floats out(2);
  reference::embed({.ids = ids.data(), .table = {WeightFormat::kBF16, 1, 2, bf16}, .out = view(out, {1, 2})});
  EXPECT_EQ(out, (Floats{1, -3}));
  reference::embed({.ids = ids.data(), .table = {WeightFormat::kF16, 1, 2, f16}, .out = view(out, {1, 2})});
  EXPECT_EQ(out, (Floats{0.5F, -7}));
}

TEST(Reference, RmsNormByHand) {
  // 3, 4: mean square 12.5; with eps 12.5 the divisor is exactly 5.
  Floats hidden{1, 1};
  Floats delta{2, 3};
  Floats weight{10, -5};
  Floats out(2);
  reference::rms_norm({.hidden = view(hidden, {1, 2}),
                       .delta = view(delta, {1, 2}),
                       .weight = view(weight, {2}),
                       .eps = 12.5F,
                       .out = view(out, {1, 2})});
  EXPECT_EQ(hidden, (Floats{3, 4}));
  EXPECT_FLOAT_EQ(out[0], 6.0F);
  EXPECT_FLOAT_EQ(out[1], -4.0F);
}

TEST(Reference, RmsNormOfZeroIsZero) {
  Floats hidden(4, 0.0F);
  Floats weight(4, 1.0F);
  reference::rms_norm({.hidden = view(hidden, {1, 4}), .weight = view(weight, {4}), .out = view(hidden, {1, 4})});
  EXPECT_EQ(hidden, Floats(4, 0.0F));
}

TEST(Reference, LinearByHand) {
  Floats x{1, 2, 3, 4, 5, 6};  // [2, 3]
  const Floats w{1, 0, -1, 2, 2, 2};
  Floats out(4);
  reference::linear({.x = view(x, {2, 3}), .w = f32_weight(w, 2, 3), .out = view(out, {2, 2})});
  EXPECT_EQ(out, (Floats{-2, 12, -2, 30}));
}

TEST(Reference, LinearAgreesWithDouble) {
  Random random(1);
  for (const std::int64_t in : {1, 7, 8, 9, 31, 768}) {
    for (const std::int64_t rows : {1, 4, 6}) {
      Floats x = random.normals(rows * in, 1);
      const Floats w = random.normals(13 * in, 1);
      Floats out(static_cast<std::size_t>(rows * 13));
      reference::linear({.x = view(x, {rows, in}), .w = f32_weight(w, 13, in), .out = view(out, {rows, 13})});
      expect_near(out, product(doubles(x), w, static_cast<std::size_t>(in)), 1e-5);
    }
  }
}

TEST(Reference, RowsDoNotDependOnTheBatch) {
  Random random(2);
  Floats x = random.normals(9 * 100, 1);
  const Floats w = random.normals(70 * 100, 1);
  Floats all(9 * 70);
  reference::linear({.x = view(x, {9, 100}), .w = f32_weight(w, 70, 100), .out = view(all, {9, 70})});
  for (std::int64_t t = 0; t < 9; ++t) {
    Floats one(70);
    reference::linear(
        {.x = {x.data() + t * 100, DType::kF32, {1, 100}}, .w = f32_weight(w, 70, 100), .out = view(one, {1, 70})});
    EXPECT_EQ(std::memcmp(one.data(), all.data() + t * 70, 70 * sizeof(float)), 0) << "row " << t;
  }
}

TEST(Reference, RouteByHand) {
  // Logits 0, ln 3, -ln 3, 0 give scores 0.5, 0.75, 0.25, 0.5; the bias lifts expert 2 to the top, and of the experts
  // 0 and 3, which tie, the lower id comes first.
  const float ln3 = std::log(3.0F);
  Floats x{1};
  Floats w{0, ln3, -ln3, 0};
  Floats bias{0, 0, 1, 0};
  std::vector<std::int32_t> ids(3);
  Floats weights(3);
  RouteParams p{.x = view(x, {1, 1}), .w = view(w, {4, 1}), .bias = view(bias, {4}), .top_k = 3};
  p.ids = ids.data();
  p.weights = weights.data();
  reference::route(p);
  EXPECT_EQ(ids, (std::vector<std::int32_t>{2, 1, 0}));
  EXPECT_NEAR(weights[0], 0.25 / 1.5 * 1.8, 1e-6);  // the score without its bias
  EXPECT_NEAR(weights[1], 0.75 / 1.5 * 1.8, 1e-6);
  EXPECT_NEAR(weights[2], 0.50 / 1.5 * 1.8, 1e-6);
  p.normalize = false;
  reference::route(p);
  EXPECT_NEAR(weights[1], 0.75 * 1.8, 1e-6);
}

// silu(gate x) · (up x) through down, for scalars.
double scalar_mlp(double x, double gate, double up, double down) {
  const double g = gate * x;
  return down * (g / (1 + std::exp(-g)) * up * x);
}

TEST(Reference, MoeByHand) {
  // Hidden and inner size 1: each expert is a scalar function.
  const Floats gate{1, -2, 0.5F, 3};
  const Floats up{1, 2, 3, 4};
  const Floats down{1, -1, 2, 0.5F};
  const auto expert = [&](std::size_t e) {
    return ExpertWeights{
        {WeightFormat::kF32, 1, 1, &gate[e]}, {WeightFormat::kF32, 1, 1, &up[e]}, {WeightFormat::kF32, 1, 1, &down[e]}};
  };
  const std::vector<ExpertWeights> experts{expert(0), expert(1), expert(2)};
  const auto apply = [&](std::size_t e, double x) { return scalar_mlp(x, gate[e], up[e], down[e]); };
  Floats x{0.5F, -1.5F, 2};
  const std::vector<std::int32_t> ids{2, 0, -1, 1, -1, -1};
  const Floats weights{0.75F, 1.5F, 99, 2, 99, 99};
  Floats out(3);
  MoeParams p{.x = view(x, {3, 1}), .top_k = 2, .ids = ids.data(), .weights = weights.data(), .experts = experts};
  p.out = view(out, {3, 1});
  reference::moe(p);
  expect_near(out, {0.75 * apply(2, 0.5) + 1.5 * apply(0, 0.5), 2 * apply(1, -1.5), 0}, 1e-6);
  p.shared = expert(3);
  reference::moe(p);
  expect_near(
      out,
      {0.75 * apply(2, 0.5) + 1.5 * apply(0, 0.5) + apply(3, 0.5), 2 * apply(1, -1.5) + apply(3, -1.5), apply(3, 2)},
      1e-6);
}

TEST(Reference, MlpAgreesWithDouble) {
  Random random(3);
  Floats x = random.normals(5 * 12, 1);
  const Floats gate = random.normals(20 * 12, 0.5F);
  const Floats up = random.normals(20 * 12, 0.5F);
  const Floats down = random.normals(12 * 20, 0.5F);
  Floats out(5 * 12);
  reference::mlp({.x = view(x, {5, 12}),
                  .mlp = {f32_weight(gate, 20, 12), f32_weight(up, 20, 12), f32_weight(down, 12, 20)},
                  .out = view(out, {5, 12})});
  Doubles inner = product(doubles(x), gate, 12);
  const Doubles other = product(doubles(x), up, 12);
  for (std::size_t i = 0; i < inner.size(); ++i) inner[i] = inner[i] / (1 + std::exp(-inner[i])) * other[i];
  expect_near(out, product(inner, down, 20), 1e-5);
}

TEST(Reference, LmHeadPicksRowsAndHidesPadding) {
  Floats x{1, 2, 3, 4, 5, 6};  // [3, 2]
  const Floats w{1, 0, 0, 1, 1, 1};
  const std::vector<std::int32_t> rows{2, 0};
  Floats logits(6);
  const auto inf = std::numeric_limits<float>::infinity();
  LmHeadParams p{.x = view(x, {3, 2}), .rows = rows.data(), .w = f32_weight(w, 3, 2), .valid_vocab = 2};
  p.logits = view(logits, {2, 3});
  reference::lm_head(p);
  EXPECT_EQ(logits, (Floats{5, 6, -inf, 1, 2, -inf}));
  p.rows = nullptr;
  p.valid_vocab = 0;
  reference::lm_head(p);
  EXPECT_EQ(logits, (Floats{1, 2, 3, 3, 4, 7}));
}

TEST(Reference, MtpInputPutsTheEmbeddingFirst) {
  Random random(4);
  Floats embed = random.normals(2 * 6, 1);
  Floats hidden = random.normals(2 * 6, 3);
  Floats e_norm = random.normals(6, 1);
  Floats h_norm = random.normals(6, 1);
  const Floats eh = random.normals(6 * 12, 1);
  Floats out(12);
  reference::mtp_input({.embed = view(embed, {2, 6}),
                        .hidden = view(hidden, {2, 6}),
                        .e_norm = view(e_norm, {6}),
                        .h_norm = view(h_norm, {6}),
                        .eh_proj = f32_weight(eh, 6, 12),
                        .out = view(out, {2, 6})});
  Doubles both;
  for (std::size_t t = 0; t < 2; ++t) {
    Doubles e(embed.begin() + static_cast<std::ptrdiff_t>(t * 6),
              embed.begin() + static_cast<std::ptrdiff_t>(t * 6 + 6));
    Doubles h(hidden.begin() + static_cast<std::ptrdiff_t>(t * 6),
              hidden.begin() + static_cast<std::ptrdiff_t>(t * 6 + 6));
    normalise(e.data(), 6, e_norm, 1e-5);
    normalise(h.data(), 6, h_norm, 1e-5);
    both.insert(both.end(), e.begin(), e.end());
    both.insert(both.end(), h.begin(), h.end());
  }
  expect_near(out, product(both, eh, 12), 1e-5);
}

// Rotation by complex numbers, as a second way to write it.
void rotate(double* x, double position) {
  for (int i = 0; i < 32; ++i) {
    const double angle = position / std::pow(1e6, i / 32.0);
    const double a = x[2 * i];
    const double b = x[2 * i + 1];
    const double radius = std::hypot(a, b);
    const double turned = std::atan2(b, a) + angle;
    x[2 * i] = radius * std::cos(turned);
    x[2 * i + 1] = radius * std::sin(turned);
  }
}

TEST(Reference, MlaProjectAgreesWithDouble) {
  constexpr std::size_t kT = 3;
  constexpr std::size_t kHidden = 10;
  constexpr std::size_t kLora = 6;
  constexpr std::size_t kHeads = 2;
  Random random(5);
  Floats x = random.normals(kT * kHidden, 1);
  const std::vector<std::int32_t> positions{0, 1, 150000};
  const Floats q_a = random.normals(kLora * kHidden, 1);
  const Floats q_b = random.normals(kHeads * kQk * kLora, 1);
  const Floats kv_a = random.normals(kKvRow * kHidden, 1);
  Floats q_norm = random.normals(kLora, 1);
  Floats kv_norm = random.normals(kLatent, 1);
  Floats q(kT * kHeads * kQk);
  Floats kv(kT * kKvRow);
  MlaProjectParams p{.x = view(x, {kT, kHidden}), .positions = positions.data()};
  p.q_a = f32_weight(q_a, kLora, kHidden);
  p.q_a_norm = view(q_norm, {kLora});
  p.q_b = f32_weight(q_b, kHeads * kQk, kLora);
  p.kv_a = f32_weight(kv_a, kKvRow, kHidden);
  p.kv_a_norm = view(kv_norm, {kLatent});
  p.latent_eps = 1e-6F;
  p.q = view(q, {kT, kHeads, kQk});
  p.kv = view(kv, {kT, kKvRow});
  reference::mla_project(p);

  Doubles low = product(doubles(x), q_a, kHidden);
  for (std::size_t t = 0; t < kT; ++t) normalise(&low[t * kLora], kLora, q_norm, 1e-6);
  Doubles expected_q = product(low, q_b, kLora);
  Doubles expected_kv = product(doubles(x), kv_a, kHidden);
  for (std::size_t t = 0; t < kT; ++t) {
    for (std::size_t h = 0; h < kHeads; ++h) rotate(&expected_q[(t * kHeads + h) * kQk + kNope], positions[t]);
    normalise(&expected_kv[t * kKvRow], kLatent, kv_norm, 1e-6);
    rotate(&expected_kv[t * kKvRow + kLatent], positions[t]);
  }
  expect_near(q, expected_q, 1e-5);
  expect_near(kv, expected_kv, 1e-5);
}

TEST(Reference, AppendWritesOnlyItsSlots) {
  Floats kv(2 * kKvRow);
  for (std::size_t i = 0; i < kv.size(); ++i) kv[i] = static_cast<float>(i);
  const std::vector<std::int32_t> slots{kPageTokens + 3, -1};
  std::vector<std::uint16_t> pages(2 * kPageTokens * kKvRow, 0xffff);
  reference::mla_append(
      {.kv = view(kv, {2, kKvRow}),
       .slots = slots.data(),
       .pages = {.base = pages.data(), .page_stride_bytes = kPageTokens * kKvRow * 2, .codec = KvCodec::kBF16}});
  for (std::size_t i = 0; i < pages.size(); ++i) {
    const std::size_t row = i / kKvRow;
    const std::uint16_t expected = row == kPageTokens + 3 ? to_bf16(static_cast<float>(i % kKvRow)).bits : 0xffff;
    ASSERT_EQ(pages[i], expected) << "row " << row;
  }
}

// One cached sequence in two pages of F32 with query rows at its end.
struct Attention {
  std::int64_t n_heads, n_rows, context;
  int window = 0;
  Floats q, kv_b, pool, out;
  std::vector<std::int32_t> offsets, contexts, table;

  Attention(std::int64_t heads, std::int64_t rows, std::int64_t tokens, int seen, std::uint64_t seed)
      : n_heads(heads), n_rows(rows), context(tokens), window(seen) {
    Random random(seed);
    q = random.normals(rows * heads * kQk, 1);
    kv_b = random.normals(heads * (kNope + kValue) * kLatent, 0.04F);
    pool.assign(3 * kPageTokens * kKvRow, std::numeric_limits<float>::quiet_NaN());
    out.assign(static_cast<std::size_t>(rows * heads * kValue), std::numeric_limits<float>::quiet_NaN());
    offsets = {0, static_cast<std::int32_t>(rows)};
    contexts = {static_cast<std::int32_t>(tokens)};
    table = {2, 0, 2147480000};
    for (std::int64_t j = 0; j < tokens; ++j) {
      const Floats row = random.normals(kKvRow, 1);
      std::copy(row.begin(), row.end(), cached(j));
    }
  }
  float* cached(std::int64_t j) {
    return pool.data() + (table[static_cast<std::size_t>(j / kPageTokens)] * kPageTokens + j % kPageTokens) * kKvRow;
  }
  MlaAttendParams params() {
    MlaAttendParams p;
    p.q = view(q, {n_rows, n_heads, kQk});
    p.kv_b = f32_weight(kv_b, n_heads * (kNope + kValue), kLatent);
    p.pages = {.base = pool.data(), .page_stride_bytes = kPageTokens * kKvRow * 4, .codec = KvCodec::kF32};
    p.batch = {.n_seqs = 1,
               .row_offsets = offsets.data(),
               .context_tokens = contexts.data(),
               .page_table = table.data(),
               .max_pages = 3};
    p.window_tokens = window;
    p.out = view(out, {n_rows, n_heads * kValue});
    return p;
  }
  // The equation of the model facts in double: expanded keys and values.
  Doubles expected() {
    Doubles all;
    for (std::int64_t row = 0; row < n_rows; ++row) {
      const std::int64_t end = context - n_rows + row + 1;
      const std::int64_t begin = window > 0 ? std::max<std::int64_t>(0, end - window) : 0;
      for (std::int64_t h = 0; h < n_heads; ++h) {
        const float* query = &q[static_cast<std::size_t>((row * n_heads + h) * kQk)];
        Doubles weight;
        Doubles values;
        for (std::int64_t j = begin; j < end; ++j) {
          const Doubles latent(cached(j), cached(j) + kLatent);
          const auto first = kv_b.begin() + h * (kNope + kValue) * kLatent;
          const Doubles both = product(latent, Floats(first, first + (kNope + kValue) * kLatent), kLatent);
          double score = 0;
          for (std::size_t d = 0; d < kNope; ++d) score += query[d] * both[d];
          for (std::size_t d = 0; d < kRope; ++d) score += double{query[kNope + d]} * cached(j)[kLatent + d];
          weight.push_back(std::exp(score / 16));
          values.insert(values.end(), both.begin() + kNope, both.end());
        }
        double sum = 0;
        for (const double w : weight) sum += w;
        for (std::size_t v = 0; v < kValue; ++v) {
          double o = 0;
          for (std::size_t j = 0; j < weight.size(); ++j) o += weight[j] / sum * values[j * kValue + v];
          all.push_back(o);
        }
      }
    }
    return all;
  }
};

TEST(Reference, AttentionAgreesWithDoubleInBothForms) {
  for (const int window : {0, 1, 9}) {
    for (const std::int64_t rows : {1, 5}) {
      Attention a(2, rows, 70, window, 6);
      const Doubles expected = a.expected();
      reference::mla_attend(a.params());
      expect_near(a.out, expected, 2e-5);
      std::fill(a.out.begin(), a.out.end(), std::numeric_limits<float>::quiet_NaN());
      reference::mla_attend_absorbed(a.params());
      expect_near(a.out, expected, 2e-5);
    }
  }
}

TEST(Reference, AttentionToOneTokenIsItsValue) {
  // With a single visible token the softmax is 1 whatever the query: the output is W_UV c, here twice entry v of c.
  Attention a(1, 1, 1, 0, 7);
  std::fill(a.kv_b.begin(), a.kv_b.end(), 0.0F);
  for (std::size_t v = 0; v < kValue; ++v) a.kv_b[(kNope + v) * kLatent + v] = 2;
  reference::mla_attend(a.params());
  for (std::size_t v = 0; v < kValue; ++v) ASSERT_EQ(a.out[v], 2 * a.cached(0)[v]);
}

}  // namespace
}  // namespace glint
