// Cases of embed, rms_norm, linear, lm_head and mtp_input.

#include "ops/case_list.hpp"

namespace glint {
namespace {

void add_embed(std::vector<Case>& list, const Stored& format, std::int64_t vocab, std::int64_t hidden, std::int64_t T) {
  const auto run = [=](Stage& s) {
    std::vector<std::int32_t> ids{static_cast<std::int32_t>(vocab - 1)};
    while (static_cast<std::int64_t>(ids.size()) < T) ids.push_back(static_cast<std::int32_t>(s.random.below(vocab)));
    if (T > 2) ids[2] = 0;
    EmbedParams p{.tag = kCaseTag};
    p.ids = s.array(ids);
    p.table = s.weight(vocab, hidden, format.spec);
    p.out = s.output("out", {T, hidden}, OutputKind::kExact);
    s.ops().embed(p);
  };
  list.push_back({.name = case_name("embed", {text(format), text("T", T), text("H", hidden)}),
                  .op = "embed",
                  .run = run,
                  .format = format.spec.format});
}

enum class Norm { kPlain, kDelta, kAddOnly, kInPlace };

void add_rms_norm(std::vector<Case>& list, Norm kind, std::int64_t T, std::int64_t hidden) {
  static constexpr const char* kNames[] = {"plain", "delta", "add_only", "in_place"};
  const auto run = [=](Stage& s) {
    // Rows of very different size, one of them zero: there only eps keeps the norm finite.
    std::vector<float> values = s.random.normals(T * hidden, 1.0F);
    constexpr float kScales[] = {1.0F, 1e-4F, 300.0F, 0.0F};
    for (std::size_t i = 0; i < values.size(); ++i) values[i] *= kScales[i / static_cast<std::size_t>(hidden) % 4];
    RmsNormParams p{.tag = kCaseTag};
    p.weight = s.input({hidden});
    if (kind == Norm::kInPlace) {
      p.hidden = s.in_out("hidden", {T, hidden}, OutputKind::kFloat, values);
      p.out = p.hidden;
    } else {
      // Without a delta the stream is only read: it must come out as it went in.
      const auto stream = kind == Norm::kPlain ? OutputKind::kExact : OutputKind::kFloat;
      p.hidden = s.in_out("hidden", {T, hidden}, stream, values);
      if (kind != Norm::kPlain) p.delta = s.input({T, hidden}, 0.5F);
      if (kind != Norm::kAddOnly) p.out = s.output("out", {T, hidden}, OutputKind::kFloat);
    }
    s.ops().rms_norm(p);
  };
  list.push_back({.name = case_name("rms_norm", {kNames[static_cast<int>(kind)], text("T", T), text("H", hidden)}),
                  .op = "rms_norm",
                  .run = run});
}

void add_linear(std::vector<Case>& list, const Stored& format, std::int64_t T, std::int64_t in, std::int64_t out) {
  const auto run = [=](Stage& s) {
    LinearParams p{.tag = kCaseTag};
    p.x = s.input({T, in});
    p.w = s.weight(out, in, format.spec);
    p.out = s.output("out", {T, out}, OutputKind::kProduct);
    s.ops().linear(p);
  };
  list.push_back({.name = case_name("linear", {text(format), text("T", T), text("in", in), text("out", out)}),
                  .op = "linear",
                  .run = run,
                  .format = format.spec.format});
}

struct HeadShape {
  std::int64_t T, R, hidden, vocab, valid;
  bool picked;  // rows given
};

void add_lm_head(std::vector<Case>& list, const Stored& format, HeadShape h) {
  const auto run = [=](Stage& s) {
    LmHeadParams p{.tag = kCaseTag};
    p.x = s.input({h.T, h.hidden});
    if (h.picked) {
      std::vector<std::int32_t> rows;
      for (std::int64_t r = 0; r < h.R; ++r) rows.push_back(static_cast<std::int32_t>(h.T - 1 - r * 2 % h.T));
      p.rows = s.array(rows);
    }
    p.w = s.weight(h.vocab, h.hidden, format.spec);
    p.valid_vocab = h.valid;
    p.logits = s.output("logits", {h.R, h.vocab}, OutputKind::kProduct);
    s.ops().lm_head(p);
  };
  list.push_back(
      {.name = case_name("lm_head", {text(format), text("T", h.T), text("R", h.R), text("H", h.hidden),
                                     text("vocab", h.vocab), text("valid", h.valid), h.picked ? "picked" : "first"}),
       .op = "lm_head",
       .run = run,
       .format = format.spec.format});
}

void add_mtp_input(std::vector<Case>& list, const Stored& format, std::int64_t T, std::int64_t hidden) {
  const auto run = [=](Stage& s) {
    MtpInputParams p{.tag = kCaseTag};
    p.embed = s.input({T, hidden}, 0.1F);
    p.hidden = s.input({T, hidden}, 5.0F);
    p.e_norm = s.input({hidden});
    p.h_norm = s.input({hidden});
    p.eh_proj = s.weight(hidden, 2 * hidden, format.spec);
    p.out = s.output("out", {T, hidden}, OutputKind::kProduct);
    s.ops().mtp_input(p);
  };
  list.push_back({.name = case_name("mtp_input", {text(format), text("T", T), text("H", hidden)}),
                  .op = "mtp_input",
                  .run = run,
                  .format = format.spec.format});
}

}  // namespace

void add_dense_cases(std::vector<Case>& list) {
  constexpr auto kBF16 = WeightFormat::kBF16;
  for (const WeightFormat f : kAllFormats) {
    for (const std::int64_t T : {1, 7, 65}) add_embed(list, f, 8192, 256, T);
    add_embed(list, f, 50, 37, 3);
  }
  add_embed(list, kBF16, 1000, 2048, 17);
  for (const QuantSpec& q : kBlockSpecs) add_embed(list, q, 30, 256, 5);

  for (const Norm kind : {Norm::kPlain, Norm::kDelta, Norm::kAddOnly, Norm::kInPlace}) {
    for (const std::int64_t T : {1, 3, 17, 65}) add_rms_norm(list, kind, T, 256);
    for (const std::int64_t hidden : {1, 7, 37, 520, 2048}) add_rms_norm(list, kind, 5, hidden);
  }

  for (const WeightFormat f : kAllFormats) {
    for (const std::int64_t T : {1, 3, 7, 17, 64, 65}) {
      add_linear(list, f, T, 256, 128);   // tiny q_a
      add_linear(list, f, T, 1024, 256);  // tiny o
    }
    // Contractions and outputs that are no multiple of any vector or tile.
    for (const std::int64_t in : {1, 5, 17, 24, 40, 100, 520, 1000}) {
      for (const std::int64_t T : {1, 5}) add_linear(list, f, T, in, 33);
    }
    for (const std::int64_t out : {1, 3, 7, 31, 65}) add_linear(list, f, 6, 264, out);
  }
  for (const std::int64_t T : {1, 17}) {  // the real model: q_a, q_b, o of 20 heads, o of 10, 5 and 4
    add_linear(list, kBF16, T, 2048, 768);
    add_linear(list, kBF16, T, 768, 5120);
    for (const std::int64_t heads : {20, 10, 5, 4}) add_linear(list, kBF16, T, heads * kValue, 2048);
  }
  for (const std::int64_t T : {64, 65, 200}) add_linear(list, kBF16, T, 2048, 576);

  for (const QuantSpec& q : kBlockSpecs) {
    for (const std::int64_t T : {1, 3, 7}) add_linear(list, q, T, 256, 29);
    for (const std::int64_t T : {2, 5}) add_linear(list, q, T, 4224, 11);        // more than two steps of columns
    for (const std::int64_t in : {2, 100, 520}) add_linear(list, q, 5, in, 11);  // blocks do not fit
  }
  add_linear(list, QuantSpec{WeightFormat::kI4, 48, 1, false, DType::kBF16}, 7, 240, 33);
  add_linear(list, QuantSpec{}, 150, 4224, 19);
  add_linear(list, QuantSpec{}, 6, 64, 5);
  add_linear(list, QuantSpec{WeightFormat::kF8E4M3, 128, 128, true, DType::kF32}, 13, 520, 300);

  for (const WeightFormat f : kAllFormats) {
    add_lm_head(list, f, {.T = 1, .R = 1, .hidden = 256, .vocab = 8192, .valid = 0, .picked = false});
    add_lm_head(list, f, {.T = 7, .R = 3, .hidden = 256, .vocab = 8192, .valid = 8140, .picked = true});
    add_lm_head(list, f, {.T = 7, .R = 7, .hidden = 100, .vocab = 77, .valid = 77, .picked = true});
  }
  for (const QuantSpec& q : kBlockSpecs)
    add_lm_head(list, q, {.T = 7, .R = 3, .hidden = 256, .vocab = 51, .valid = 49, .picked = true});
  add_lm_head(list, kBF16, {.T = 3, .R = 0, .hidden = 256, .vocab = 100, .valid = 0, .picked = false});
  add_lm_head(list, kBF16, {.T = 5, .R = 2, .hidden = 256, .vocab = 100, .valid = 99, .picked = false});
  add_lm_head(list, kBF16, {.T = 17, .R = 17, .hidden = 256, .vocab = 1000, .valid = 0, .picked = false});
  add_lm_head(list, kBF16, {.T = 3, .R = 2, .hidden = 2048, .vocab = 4001, .valid = 3990, .picked = true});

  for (const WeightFormat f : kAllFormats) add_mtp_input(list, f, 3, 256);
  for (const QuantSpec& q : kBlockSpecs) add_mtp_input(list, q, 3, 64);
  for (const std::int64_t T : {1, 17, 65}) add_mtp_input(list, kBF16, T, 256);
  add_mtp_input(list, kBF16, 5, 100);
  add_mtp_input(list, kBF16, 1, 2048);
}

// Many rows and many outputs: the largest tiles, with edges.
void add_many_rows_cases(std::vector<Case>& list) {
  add_linear(list, WeightFormat::kBF16, 300, 256, 2048);
  add_linear(list, WeightFormat::kBF16, 130, 200, 4104);
  add_linear(list, WeightFormat::kBF16, 390, 136, 11280);
  add_linear(list, QuantSpec{WeightFormat::kI4, 128, 1, true, DType::kBF16}, 300, 256, 2048);
  add_linear(list, QuantSpec{WeightFormat::kI4, 64, 1, true, DType::kF16}, 130, 192, 4104);
  add_linear(list, QuantSpec{WeightFormat::kI4, 32, 1, false, DType::kBF16}, 200, 96, 4096);
}

// Groups of 16 and 32 columns as GGUF files have them (Q4_0, Q4_1 and Q4_K, Q5_1 and Q5_K, Q6_K, Q8_0): all widths of
// tiles over odd numbers of outputs, and ends of one, two and three times 64 columns after a step of 1,024 or 2,048.
void add_narrow_group_cases(std::vector<Case>& list) {
  const QuantSpec kNarrow[] = {
      {WeightFormat::kI4, 32, 1, true, DType::kF16},  {WeightFormat::kI4, 32, 1, false, DType::kF16},
      {WeightFormat::kI8, 32, 1, false, DType::kF16}, {WeightFormat::kI8, 16, 1, true, DType::kF16},
      {WeightFormat::kI8, 32, 1, true, DType::kF16},  {WeightFormat::kI4, 16, 1, false, DType::kF16},
  };
  for (const QuantSpec& q : kNarrow) {
    for (const std::int64_t T : {1, 2, 4, 5, 11}) add_linear(list, q, T, 2112, 21);
    add_linear(list, q, 1, 64, 7);
    add_linear(list, q, 3, 1152, 9);
    add_linear(list, q, 6, 2240, 1);
    add_linear(list, q, 150, 320, 67);
    add_linear(list, q, 7, 96, 5);  // blocks of 64 do not fit
  }
}

}  // namespace glint
