// Checked refuses every broken contract with a message that names it; Counted and Traced see what ran; cost() is right.

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "backends/reference/reference.hpp"
#include "base/error.hpp"
#include "ops/checked.hpp"
#include "ops/cost.hpp"
#include "ops/counted.hpp"
#include "ops/traced.hpp"

namespace glint {
namespace {

std::string message_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const Error& e) { return e.what(); }
  return "no error";
}

template <typename Params>
std::string refused(const Params& p, const CheckPolicy& policy = {}) {
  return message_of([&] { validate(p, policy); });
}

// Memory for valid params of every op: T = 2, H = 8, N = 1, one sequence in a pool of two pages.
struct Valid {
  std::vector<float> floats = std::vector<float>(200000, 0.0F);
  std::size_t next = 0;
  std::vector<std::uint16_t> weights = std::vector<std::uint16_t>(300000, 0);
  std::vector<std::int32_t> ids{0, 1};
  std::vector<std::int32_t> offsets{0, 2};
  std::vector<std::int32_t> contexts{70};
  std::vector<std::int32_t> table{1, 0};
  std::vector<std::int32_t> choices{0, 1, 2, -1};
  std::vector<float> choice_weights{1, 1, 1, 1};
  std::vector<std::uint16_t> pool = std::vector<std::uint16_t>(2 * kPageTokens * kKvRow, 0);
  std::vector<ExpertWeights> experts;
  OpTag tag{"the.op", 3};

  View view(const Shape& s) {
    View v{floats.data() + next, DType::kF32, s};
    next += static_cast<std::size_t>(s.elements());
    return v;
  }
  Weight weight(std::int64_t rows, std::int64_t cols) { return {WeightFormat::kBF16, rows, cols, weights.data()}; }
  KvPages pages() {
    return {.base = pool.data(), .page_stride_bytes = kPageTokens * kKvRow * 2, .codec = KvCodec::kBF16, .n_pages = 2};
  }

  EmbedParams embed() { return {.tag = tag, .ids = ids.data(), .table = weight(5, 8), .out = view({2, 8})}; }
  RmsNormParams rms_norm() {
    return {.tag = tag, .hidden = view({2, 8}), .delta = view({2, 8}), .weight = view({8}), .out = view({2, 8})};
  }
  LinearParams linear() { return {.tag = tag, .x = view({2, 8}), .w = weight(6, 8), .out = view({2, 6})}; }
  MlaProjectParams mla_project() {
    MlaProjectParams p{.tag = tag, .x = view({2, 8}), .positions = ids.data(), .q_a = weight(4, 8)};
    p.q_a_norm = view({4});
    p.q_b = weight(kQk, 4);
    p.kv_a = weight(kKvRow, 8);
    p.kv_a_norm = view({kLatent});
    p.q = view({2, 1, kQk});
    p.kv = view({2, kKvRow});
    return p;
  }
  MlaAppendParams mla_append() { return {.tag = tag, .kv = view({2, kKvRow}), .slots = ids.data(), .pages = pages()}; }
  MlaAttendParams mla_attend() {
    MlaAttendParams p{.tag = tag, .q = view({2, 1, kQk}), .kv_b = weight(kNope + kValue, kLatent), .pages = pages()};
    p.batch = {.n_seqs = 1,
               .row_offsets = offsets.data(),
               .context_tokens = contexts.data(),
               .page_table = table.data(),
               .max_pages = 2};
    p.out = view({2, kValue});
    return p;
  }
  RouteParams route() {
    RouteParams p{.tag = tag, .x = view({2, 8}), .w = view({3, 8}), .bias = view({3}), .top_k = 2};
    p.ids = choices.data();
    p.weights = choice_weights.data();
    return p;
  }
  MoeParams moe() {
    experts.assign(3, {weight(4, 8), weight(4, 8), weight(8, 4)});
    MoeParams p{.tag = tag, .x = view({2, 8}), .top_k = 2, .ids = choices.data(), .weights = choice_weights.data()};
    p.experts = experts;
    p.shared = {weight(6, 8), weight(6, 8), weight(8, 6)};
    p.out = view({2, 8});
    return p;
  }
  MlpParams mlp() {
    return {.tag = tag, .x = view({2, 8}), .mlp = {weight(4, 8), weight(4, 8), weight(8, 4)}, .out = view({2, 8})};
  }
  LmHeadParams lm_head() {
    return {.tag = tag, .x = view({2, 8}), .rows = ids.data(), .w = weight(5, 8), .logits = view({2, 5})};
  }
  MtpInputParams mtp_input() {
    MtpInputParams p{.tag = tag, .embed = view({2, 8}), .hidden = view({2, 8}), .e_norm = view({8})};
    p.h_norm = view({8});
    p.eh_proj = weight(8, 16);
    p.out = view({2, 8});
    return p;
  }
};

TEST(Checked, AcceptsValidParams) {
  Valid v;
  EXPECT_EQ(refused(v.embed()), "no error");
  EXPECT_EQ(refused(v.rms_norm()), "no error");
  EXPECT_EQ(refused(v.linear()), "no error");
  EXPECT_EQ(refused(v.mla_project()), "no error");
  EXPECT_EQ(refused(v.mla_append()), "no error");
  EXPECT_EQ(refused(v.mla_attend()), "no error");
  EXPECT_EQ(refused(v.route()), "no error");
  EXPECT_EQ(refused(v.moe()), "no error");
  EXPECT_EQ(refused(v.mlp()), "no error");
  EXPECT_EQ(refused(v.lm_head()), "no error");
  EXPECT_EQ(refused(v.mtp_input()), "no error");
}

TEST(Checked, NamesOpTagLayerFoundAndExpected) {
  Valid v;
  LinearParams p = v.linear();
  p.w.cols = 7;
  EXPECT_EQ(refused(p), "linear the.op (layer 3): w cols (in): found 7, expected 8 as in x");
  p = v.linear();
  p.tag = {};
  p.out.shape = {3, 6};
  EXPECT_EQ(refused(p), "linear: out dim 0 (T): found 3, expected 2 as in x");
}

// Breaks valid params in one way; the message behind "op the.op (layer 3): " must start so.
template <typename Params, typename Break>
void expect_refused(Params p, Break break_it, const std::string& start) {
  break_it(p);
  const std::string message = refused(p);
  EXPECT_NE(message.find("the.op (layer 3): " + start), std::string::npos) << message;
}

TEST(Checked, RefusesTensorsThatDoNotFit) {
  Valid v;
  expect_refused(
      v.embed(),
      [](auto& p) {
        p.out.shape = {2, 9};
      },
      "out dim 1 (H): found 9, expected 8 as in table");
  expect_refused(
      v.embed(), [](auto& p) { p.out.data = nullptr; }, "out: found no data (null pointer)");
  expect_refused(
      v.embed(), [](auto& p) { p.table.data = nullptr; }, "table: found no data (null pointer)");
  expect_refused(
      v.embed(), [](auto& p) { p.out.shape = {2}; }, "out: found shape [2], expected shape [T, H]");
  expect_refused(
      v.embed(), [](auto& p) { p.out.dtype = DType::kBF16; }, "out: found BF16, expected F32");
  expect_refused(
      v.rms_norm(),
      [](auto& p) {
        p.delta.shape = {1, 8};
      },
      "delta dim 0 (T): found 1");
  expect_refused(
      v.rms_norm(), [](auto& p) { p.weight.shape = {7}; }, "weight dim 0 (H): found 7");
  expect_refused(
      v.rms_norm(), [](auto& p) { p.eps = 0; }, "eps: found 0");
  expect_refused(
      v.rms_norm(), [](auto& p) { p.eps = NAN; }, "eps: found nan");
  expect_refused(
      v.rms_norm(), [](auto& p) { p.out = {}, p.delta = {}; }, "out and delta: found neither");
  expect_refused(
      v.rms_norm(), [](auto& p) { p.delta = p.hidden; }, "delta: found memory shared with hidden");
  expect_refused(
      v.linear(), [](LinearParams& p) { p.out.data = const_cast<void*>(p.x.data); }, "out: found memory shared with x");
  expect_refused(
      v.mla_project(),
      [](auto& p) {
        p.q.shape = {2, 1, 255};
      },
      "q dim 2: found 255, expected 256");
  expect_refused(
      v.mla_project(),
      [](auto& p) {
        p.q.shape = {2, 2, kQk};
      },
      "q_b rows: found 256, expected 512");
  expect_refused(
      v.mla_project(), [](auto& p) { p.q_a_norm.shape = {5}; },
      "q_a_norm dim 0 (q_lora): found 5, expected 4 as in q_a");
  expect_refused(
      v.mla_project(), [](auto& p) { p.kv_a.rows = 512; }, "kv_a rows: found 512, expected 576");
  expect_refused(
      v.route(), [](auto& p) { p.bias.shape = {4}; }, "bias dim 0 (E): found 4, expected 3 as in w");
  expect_refused(
      v.route(), [](auto& p) { p.ids = nullptr; }, "ids: found null pointer");
  expect_refused(
      v.mlp(), [](auto& p) { p.mlp.down.cols = 5; }, "mlp.down cols (I): found 5");
  expect_refused(
      v.lm_head(), [](auto& p) { p.logits.dtype = DType::kBF16; }, "logits: found BF16, expected F32");
  expect_refused(
      v.mtp_input(), [](auto& p) { p.eh_proj.cols = 8; }, "eh_proj cols: found 8, expected 16");
}

TEST(Checked, RefusesValuesOutOfRange) {
  Valid v;
  v.ids = {0, 5};
  expect_refused(
      v.embed(), [](auto&) {}, "ids[1]: found 5, expected 0 to 4");
  v.ids = {-1, 0};
  expect_refused(
      v.embed(), [](auto&) {}, "ids[0]: found -1, expected 0 to 4");
  expect_refused(
      v.mla_project(), [](auto&) {}, "positions[0]: found -1");
  expect_refused(
      v.lm_head(), [](auto&) {}, "rows[0]: found -1, expected 0 to 1");
  v.ids = {0, 1};
  expect_refused(
      v.lm_head(), [](auto& p) { p.valid_vocab = 6; }, "valid_vocab: found 6, expected 0 to 5");
  expect_refused(
      v.lm_head(),
      [](auto& p) {
        p.rows = nullptr, p.logits.shape = {3, 5};
      },
      "logits dim 0 (R) without rows: found 3, expected 0 to 2");
  expect_refused(
      v.route(), [](auto& p) { p.top_k = 4; }, "top_k: found 4, expected 1 to 3");
  v.choices = {0, 1, 3, -1};
  expect_refused(
      v.moe(), [](auto&) {}, "ids[2]: found 3, expected -2147483648 to 2");
  v.choices = {0, 1, 2, -1};
  MoeParams moe = v.moe();
  v.experts[2].up.rows = 5;
  expect_refused(
      moe, [](auto&) {}, "experts[2].up rows (I): found 5, expected 4 as in experts[0].gate");
}

TEST(Checked, RefusesSlotsAndPagesAstray) {
  Valid v;
  v.ids = {7, 2 * kPageTokens};
  expect_refused(
      v.mla_append(), [](auto&) {}, "slots[1]: found 128");
  v.ids = {7, 7};
  expect_refused(
      v.mla_append(), [](auto&) {}, "slots: found slot 7 twice");
  v.ids = {-1, -1};
  EXPECT_EQ(refused(v.mla_append()), "no error");
  expect_refused(
      v.mla_append(), [](auto& p) { p.pages.page_stride_bytes = 100; }, "pages page_stride_bytes: found 100");
  expect_refused(
      v.mla_append(), [](auto& p) { p.pages.base = nullptr; }, "pages: found no data");

  v.table = {1, 2147480000};
  expect_refused(
      v.mla_attend(), [](auto&) {}, "batch.page_table[0][1]: found 2147480000, expected 0 to 1");
  v.contexts = {64};
  EXPECT_EQ(refused(v.mla_attend()), "no error") << "a dead entry may be anything";
  v.table = {1, 1};
  v.contexts = {70};
  expect_refused(
      v.mla_attend(), [](auto&) {}, "batch.page_table[0]: found page 1 twice");
  v.table = {1, 0};
  v.contexts = {129};
  expect_refused(
      v.mla_attend(), [](auto&) {}, "batch.context_tokens[0]: found 129, expected 128 or fewer");
  v.contexts = {1};
  expect_refused(
      v.mla_attend(), [](auto&) {}, "batch.context_tokens[0]: found 1, expected 2 to");
  v.contexts = {70};
  v.offsets = {0, 1};
  expect_refused(
      v.mla_attend(), [](auto&) {}, "batch.row_offsets[1]: found 1, expected 2 to 2");
  v.offsets = {0, 3};
  expect_refused(
      v.mla_attend(), [](auto&) {}, "batch.row_offsets[1]: found 3, expected 0 to 2");
  v.offsets = {1, 2};
  expect_refused(
      v.mla_attend(), [](auto&) {}, "batch.row_offsets[0]: found 1, expected 0 to 0");
  v.offsets = {0, 2};
  expect_refused(
      v.mla_attend(), [](auto& p) { p.window_tokens = -1; }, "window_tokens: found -1");
}

// A backend that reads BF16 weights only.
class ReadsBf16 final : public DecoratedOps<ReadsBf16> {
 public:
  using DecoratedOps::DecoratedOps;
  bool supports(WeightFormat format) const override { return format == WeightFormat::kBF16; }
  bool supports(KvCodec codec) const override { return inner().supports(codec); }
  template <typename Params, typename Run>
  void around(std::string_view, const Params&, Run run) {
    run();
  }
};

TEST(Checked, RefusesWeightsThatTheBackendDoesNotRead) {
  Valid v;
  Checked checked(std::make_unique<ReadsBf16>(make_reference_ops()));
  LinearParams p = v.linear();
  const float scale = 1;
  p.w.format = WeightFormat::kF8E4M3;
  EXPECT_EQ(message_of([&] { checked.linear(p); }),
            "linear the.op (layer 3): w scales: found null pointer, expected a scale a group");
  p.w.scales = &scale;
  p.w.group = 8;
  p.w.group_rows = 6;
  EXPECT_EQ(message_of([&] { checked.linear(p); }),
            "linear the.op (layer 3): w: found F8_E4M3, expected a weight format that reference reads");
}

// A backend that reads every format, but along its rows only.
class AbsorbsPlain final : public DecoratedOps<AbsorbsPlain> {
 public:
  using DecoratedOps::DecoratedOps;
  bool supports_absorbed(const QuantSpec& kv_b) const override { return Ops::supports_absorbed(kv_b); }
  template <typename Params, typename Run>
  void around(std::string_view, const Params&, Run run) {
    run();
  }
};

TEST(Checked, RefusesAKvBThatAttentionDoesNotRead) {
  Valid v;
  const float scale = 1;
  MlaAttendParams p = v.mla_attend();
  p.kv_b.format = WeightFormat::kI8;
  p.kv_b.scales = &scale;
  p.kv_b.group = kLatent;
  Checked checked(std::make_unique<AbsorbsPlain>(make_reference_ops()));
  EXPECT_EQ(message_of([&] { checked.mla_attend(p); }),
            "mla_attend the.op (layer 3): kv_b: found int8-channel, expected a format that reference reads along both "
            "axes");
  EXPECT_FALSE(checked.supports_absorbed(quant_spec(p.kv_b)));
  EXPECT_TRUE(Checked(make_reference_ops()).supports_absorbed(quant_spec(p.kv_b)));
}

TEST(Checked, DoesNotReadTheArraysOfADevice) {
  Valid v;
  EmbedParams p = v.embed();
  v.ids = {0, 99};
  p.ids = v.ids.data();
  EXPECT_EQ(refused(p, {.arrays_on_host = false}), "no error");
  p.ids = nullptr;
  EXPECT_NE(refused(p, {.arrays_on_host = false}), "no error");
}

TEST(Checked, LetsValidParamsThroughToTheOp) {
  Valid v;
  Checked checked(make_reference_ops());
  EmbedParams p = v.embed();
  for (std::size_t i = 0; i < 40; ++i) v.weights[i] = to_bf16(static_cast<float>(i)).bits;
  checked.embed(p);
  EXPECT_EQ(p.out.as<float>()[8], 8.0F);
  EXPECT_EQ(checked.name(), "reference");
}

// --- cost ------------------------------------------------------------------------------------------------------------

TEST(Cost, OfALinearOpByHand) {
  Valid v;
  const Cost c = cost(v.linear());
  EXPECT_EQ(c.bytes, 2 * 8 * 4 + 6 * 8 * 2 + 2 * 6 * 4);
  EXPECT_EQ(c.flops, 2.0 * 2 * 6 * 8);
}

TEST(Cost, OfEmbedReadsOnlyItsRows) {
  Valid v;
  EXPECT_EQ(cost(v.embed()).bytes, 2 * (4 + 8 * 2) + 2 * 8 * 4);
}

TEST(Cost, OfRmsNormWithAndWithoutDelta) {
  Valid v;
  RmsNormParams p = v.rms_norm();
  constexpr double kRows = 2 * 8 * 4;
  EXPECT_EQ(cost(p).bytes, kRows * 4 + 8 * 4);  // hidden in and out, delta, out, weight
  p.delta = {};
  EXPECT_EQ(cost(p).bytes, kRows * 2 + 8 * 4);
}

TEST(Cost, OfAppendIsItsRows) {
  Valid v;
  EXPECT_EQ(cost(v.mla_append()).bytes, 2 * (kKvRow * 4 + 4 + kKvRow * 2));
}

TEST(Cost, OfAttendCountsVisiblePairsAndLiveRows) {
  Valid v;
  MlaAttendParams p = v.mla_attend();  // rows at positions 68 and 69 of 70
  const double fixed_bytes = 2 * kQk * 4 + 448.0 * kLatent * 2 + 2 * kValue * 4;
  const double fixed_flops = 2.0 * 2 * 448 * kLatent;
  EXPECT_EQ(cost(p).flops, fixed_flops + (69 + 70) * 2.0 * (576 + 512));
  EXPECT_EQ(cost(p).bytes, fixed_bytes + 70 * kKvRow * 2 + 4 * (2 + 3));
  p.window_tokens = 10;
  EXPECT_EQ(cost(p).flops, fixed_flops + (10 + 10) * 2.0 * (576 + 512));
  EXPECT_EQ(cost(p).bytes, fixed_bytes + 11 * kKvRow * 2 + 4 * (1 + 3));
}

// A prompt of 70 rows: keys and values of each row once, then 512 products a pair instead of 1,088.
TEST(Cost, OfAttendTakesTheCheaperForm) {
  Valid v;
  MlaAttendParams p = v.mla_attend();
  p.q.shape = {70, 1, kQk};
  v.offsets = {0, 70};
  p.batch.row_offsets = v.offsets.data();
  EXPECT_EQ(cost(p).flops, 2.0 * 70 * 448 * kLatent + 70 * 71 / 2 * 2.0 * (256 + 256));
}

TEST(Cost, OfMoeCountsDistinctExpertsAndUsedChoices) {
  Valid v;
  v.choices = {0, 2, 2, -1};  // experts 0 and 2; three choices used
  const Cost c = cost(v.moe());
  EXPECT_EQ(c.flops, 3 * (2.0 * 3 * 4 * 8) + 2 * (2.0 * 3 * 6 * 8));
  EXPECT_EQ(c.bytes, 2.0 * 8 * 4 * 2 + 4 * 8 + 2 * (3 * 4 * 8 * 2) + 3 * 6 * 8 * 2);
}

TEST(Cost, OfTheOtherOps) {
  Valid v;
  EXPECT_EQ(cost(v.route()).flops, 2.0 * 2 * 3 * 8);
  EXPECT_EQ(cost(v.route()).bytes, 2 * 8 * 4 + 3 * 8 * 4 + 3 * 4 + 4 * 8);
  EXPECT_EQ(cost(v.mlp()).flops, 2.0 * 2 * 3 * 4 * 8);
  EXPECT_EQ(cost(v.lm_head()).flops, 2.0 * 2 * 5 * 8);
  EXPECT_EQ(cost(v.lm_head()).bytes, 2 * (8 * 4 + 4) + 5 * 8 * 2 + 2 * 5 * 4);
  EXPECT_GT(cost(v.mtp_input()).flops, 2.0 * 2 * 8 * 16);
  const double products = 2.0 * 2 * (4 * 8 + kQk * 4 + kKvRow * 8);
  EXPECT_GT(cost(v.mla_project()).flops, products);
  EXPECT_LT(cost(v.mla_project()).flops, products + 2 * 4 * 600 + 2 * 2 * 32 * 6 + 1);
}

// --- Counted, Traced -------------------------------------------------------------------------------------------------

TEST(Counted, SumsByTagName) {
  Valid v;
  Counted counted(make_reference_ops());
  const LinearParams p = v.linear();
  counted.linear(p);
  LinearParams other_layer = p;
  other_layer.tag.layer = 4;
  counted.linear(other_layer);
  EmbedParams unnamed = v.embed();
  unnamed.tag = {};
  counted.embed(unnamed);

  const auto table = counted.table();
  ASSERT_EQ(table.size(), 2U);
  for (const OpCount& row : table) {
    EXPECT_GT(row.seconds, 0);
    if (row.op == "linear") {
      EXPECT_EQ(row.name, "the.op");
      EXPECT_EQ(row.calls, 2);
      EXPECT_EQ(row.cost.flops, 2 * cost(p).flops);
      EXPECT_EQ(row.cost.bytes, 2 * cost(p).bytes);
    } else {
      EXPECT_EQ(row.name, "embed");
      EXPECT_EQ(row.calls, 1);
    }
  }
  EXPECT_GE(table[0].seconds, table[1].seconds);
  EXPECT_NE(counted.report().find("the.op"), std::string::npos);
  counted.reset();
  EXPECT_TRUE(counted.table().empty());
}

TEST(Traced, HandsOutEveryOutputAfterItsOp) {
  Valid v;
  std::vector<std::string> seen;
  float last = 0;
  Traced traced(make_reference_ops(), [&](const OpTag& tag, std::string_view name, const ConstView& t) {
    seen.push_back(std::string(tag.name) + "." + std::to_string(tag.layer) + "." + std::string(name) + " " +
                   t.shape.to_string());
    EXPECT_EQ(t.dtype, DType::kF32);
    last = t.as<float>()[t.shape.elements() - 1];
  });
  for (std::size_t i = 0; i < 40; ++i) v.weights[i] = to_bf16(static_cast<float>(i)).bits;
  traced.embed(v.embed());
  EXPECT_EQ(last, 15.0F) << "the value after the op ran";
  RmsNormParams norm = v.rms_norm();
  traced.rms_norm(norm);
  norm.delta = {};
  traced.rms_norm(norm);
  traced.route(v.route());
  EXPECT_EQ(seen, (std::vector<std::string>{"the.op.3.out [2, 8]", "the.op.3.hidden [2, 8]", "the.op.3.out [2, 8]",
                                            "the.op.3.out [2, 8]", "the.op.3.ids [2, 2]", "the.op.3.weights [2, 2]"}));
}

TEST(Traced, WorksAroundOtherDecorators) {
  Valid v;
  int calls = 0;
  const auto reference = make_reference_ops();
  Counted counted(*reference);
  Checked checked(counted);
  Traced traced(checked, [&](const OpTag&, std::string_view, const ConstView&) { ++calls; });
  traced.linear(v.linear());
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(counted.table().at(0).calls, 1);
}

}  // namespace
}  // namespace glint
