// A row's result has the same bits alone, in chunks of 1, 7 and 64 rows, mixed with other rows, and with any number of
// threads: decode, prefill and every schedule between them give the same tokens.

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cctype>
#include <cstring>
#include <random>

#include "backends/cpu/cpu.hpp"
#include "every_table.hpp"
#include "tensor/codec.hpp"

namespace glint {
namespace {

constexpr std::int64_t kRows = 150;  // more than one row chunk of the kernels, and no multiple of anything
constexpr std::int64_t kHidden = 256, kHeads = 3, kQLora = 128, kInner = 96, kExperts = 8;
constexpr int kTopK = 3;

using Floats = std::vector<float>;

Floats random_floats(std::int64_t n, std::uint32_t seed, float scale = 1) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, scale);
  Floats v(static_cast<std::size_t>(n));
  for (float& x : v) x = normal(rng);
  return v;
}

struct OwnedWeight {
  HostTensor storage;
  Weight w;
  QuantizedWeight blocks = {};  // of a block format
};
OwnedWeight random_weight(std::int64_t rows, std::int64_t cols, WeightFormat format, std::uint32_t seed) {
  const DType type = format == WeightFormat::kF32   ? DType::kF32
                     : format == WeightFormat::kF16 ? DType::kF16
                                                    : DType::kBF16;
  OwnedWeight o{HostTensor(type, {rows, cols}), {}};
  const Floats v = random_floats(rows * cols, seed, 0.1F);
  for (std::size_t i = 0; i < v.size(); ++i) store_from_float(o.storage.view.data, type, i, v[i]);
  o.w.format = format;
  o.w.rows = rows;
  o.w.cols = cols;
  o.w.data = o.storage.view.data;
  return o;
}

OwnedWeight random_weight(std::int64_t rows, std::int64_t cols, const QuantSpec& spec, std::uint32_t seed) {
  if (!has_scales(spec.format)) return random_weight(rows, cols, spec.format, seed);
  OwnedWeight o;
  o.blocks = quantize_rtn(spec, random_floats(rows * cols, seed, 0.1F).data(), rows, cols);
  o.w = o.blocks.w;
  return o;
}

View view(Floats& v, const Shape& shape, std::int64_t first = 0) { return {v.data() + first, DType::kF32, shape}; }
View view(const Floats& v, const Shape& shape, std::int64_t first = 0) {  // an input
  return {const_cast<float*>(v.data()) + first, DType::kF32, shape};
}

// Cuts of kRows rows into calls.
std::vector<std::vector<std::int64_t>> all_cuts(std::initializer_list<std::int64_t> chunks = {1, 2, 3, 4, 5, 7, 11, 12,
                                                                                              64}) {
  std::vector<std::vector<std::int64_t>> cuts;
  for (const std::int64_t chunk : chunks) {
    std::vector<std::int64_t> cut;
    for (std::int64_t at = 0; at < kRows; at += chunk) cut.push_back(std::min(chunk, kRows - at));
    cuts.push_back(cut);
  }
  cuts.push_back({1, 100, 2, 13, 34});
  return cuts;
}

// Emulated tables take some cuts only: all widths of tiles are in them.
bool is_slow(const std::string& isa) { return isa.find("emulated") != std::string::npos; }

void expect_same(const Floats& whole, const Floats& cut, const std::string& what) {
  ASSERT_EQ(whole.size(), cut.size());
  for (std::size_t i = 0; i < whole.size(); ++i) {
    ASSERT_EQ(std::bit_cast<std::uint32_t>(whole[i]), std::bit_cast<std::uint32_t>(cut[i]))
        << what << ": value " << i << ", " << whole[i] << " and " << cut[i];
  }
}

class BatchInvariance : public testing::TestWithParam<std::string> {
 protected:
  // fn(ops, first row, rows, out): writes rows · width floats at `out`. All rows in one call on one thread is the
  // measure for all cuts on one and two threads.
  template <typename Fn>
  void check(const std::string& what, std::int64_t width, const Fn& fn) {
    const auto one = make_cpu_ops({.isa = GetParam(), .threads = 1});
    const auto two = make_cpu_ops({.isa = GetParam(), .threads = 2});
    Floats whole(static_cast<std::size_t>(kRows * width));
    fn(*one, 0, kRows, whole.data());
    for (Ops* ops : {one.get(), two.get()}) {
      const std::string name = what + (ops == one.get() ? ", one thread" : ", two threads");
      Floats again(whole.size());
      fn(*ops, 0, kRows, again.data());
      expect_same(whole, again, name + ", whole");
      for (const auto& cut : is_slow(GetParam()) ? all_cuts({1, 7}) : all_cuts()) {
        Floats out(whole.size());
        std::int64_t at = 0;
        for (const std::int64_t n : cut) {
          fn(*ops, at, n, out.data() + at * width);
          at += n;
        }
        expect_same(whole, out, name + ", chunks of " + std::to_string(cut[0]) + "," + std::to_string(cut[1]));
      }
    }
  }
};

TEST_P(BatchInvariance, Linear) {
  for (const WeightFormat format : {WeightFormat::kF32, WeightFormat::kF16, WeightFormat::kBF16}) {
    for (const auto& [in, out_size] :
         {std::pair<std::int64_t, std::int64_t>{256, 64}, {1032, 21}, {100, 9}, {64, 130}}) {
      const Floats x = random_floats(kRows * in, 1);
      const OwnedWeight w = random_weight(out_size, in, format, 2);
      const auto n_out = out_size;
      const auto n_in = in;
      check("linear " + std::to_string(in), n_out, [&](Ops& ops, std::int64_t first, std::int64_t n, float* out) {
        ops.linear({.x = view(x, {n, n_in}, first * n_in), .w = w.w, .out = {out, DType::kF32, {n, n_out}}});
      });
    }
  }
}

TEST_P(BatchInvariance, EmbedAndNorm) {
  const OwnedWeight table = random_weight(50, kHidden, WeightFormat::kBF16, 3);
  std::vector<std::int32_t> ids(kRows);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i * 7 % 50);
  check("embed", kHidden, [&](Ops& ops, std::int64_t first, std::int64_t n, float* out) {
    ops.embed({.ids = ids.data() + first, .table = table.w, .out = {out, DType::kF32, {n, kHidden}}});
  });
  const Floats hidden = random_floats(kRows * kHidden, 4);
  const Floats delta = random_floats(kRows * kHidden, 5);
  const Floats weight = random_floats(kHidden, 6);
  check("rms_norm", kHidden, [&](Ops& ops, std::int64_t first, std::int64_t n, float* out) {
    Floats h(hidden.begin() + first * kHidden, hidden.begin() + (first + n) * kHidden);
    ops.rms_norm({.hidden = view(h, {n, kHidden}),
                  .delta = view(delta, {n, kHidden}, first * kHidden),
                  .weight = view(weight, {kHidden}),
                  .out = {out, DType::kF32, {n, kHidden}}});
  });
}

TEST_P(BatchInvariance, MlaProject) {
  const Floats x = random_floats(kRows * kHidden, 7);
  const OwnedWeight q_a = random_weight(kQLora, kHidden, WeightFormat::kBF16, 8);
  const OwnedWeight q_b = random_weight(kHeads * kQk, kQLora, WeightFormat::kBF16, 9);
  const OwnedWeight kv_a = random_weight(kKvRow, kHidden, WeightFormat::kBF16, 10);
  const Floats q_norm = random_floats(kQLora, 11);
  const Floats kv_norm = random_floats(kLatent, 12);
  std::vector<std::int32_t> positions(kRows);
  for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<std::int32_t>(i * 1300);
  constexpr std::int64_t kWidth = kHeads * kQk + kKvRow;
  check("mla_project", kWidth, [&](Ops& ops, std::int64_t first, std::int64_t n, float* out) {
    Floats q(static_cast<std::size_t>(n * kHeads * kQk));
    Floats kv(static_cast<std::size_t>(n * kKvRow));
    ops.mla_project({.x = view(x, {n, kHidden}, first * kHidden),
                     .positions = positions.data() + first,
                     .q_a = q_a.w,
                     .q_a_norm = view(q_norm, {kQLora}),
                     .q_b = q_b.w,
                     .kv_a = kv_a.w,
                     .kv_a_norm = view(kv_norm, {kLatent}),
                     .q = view(q, {n, kHeads, kQk}),
                     .kv = view(kv, {n, kKvRow})});
    for (std::int64_t t = 0; t < n; ++t) {
      std::memcpy(out + t * kWidth, q.data() + t * kHeads * kQk, kHeads * kQk * sizeof(float));
      std::memcpy(out + t * kWidth + kHeads * kQk, kv.data() + t * kKvRow, kKvRow * sizeof(float));
    }
  });
}

// One sequence with 700 tokens before the rows, so that they cross chunk and page borders; alone, and beside another
// sequence whose rows come first in the batch.
void check_attend(const std::string& isa, KvCodec codec, int window,
                  const QuantSpec& absorbed = {.format = WeightFormat::kBF16}) {
  constexpr std::int64_t kBefore = 700, kContext = kBefore + kRows, kOther = 90;
  constexpr std::int64_t kPages = (kContext + kPageTokens - 1) / kPageTokens + 2;
  const DType type = codec == KvCodec::kF32 ? DType::kF32 : DType::kBF16;
  HostTensor cache(type, {kPages * kPageTokens, kKvRow});
  const Floats rows = random_floats(kPages * kPageTokens * kKvRow, 20);
  for (std::size_t i = 0; i < rows.size(); ++i) store_from_float(cache.view.data, type, i, rows[i]);
  const KvPages pages{.base = cache.view.data, .page_stride_bytes = kPageTokens * kv_row_bytes(codec), .codec = codec};
  std::vector<std::int32_t> table(2 * kPages);
  for (std::size_t i = 0; i < kPages; ++i) {
    table[i] = static_cast<std::int32_t>((i * 5 + 1) % kPages);  // the other sequence
    table[kPages + i] = static_cast<std::int32_t>((i * 3 + 2) % kPages);
  }
  const OwnedWeight kv_b = random_weight(kHeads * (kNope + kValue), kLatent, absorbed, 21);
  const Floats q = random_floats((kRows + kOther) * kHeads * kQk, 22);
  constexpr std::int64_t kQWidth = kHeads * kQk, kOutWidth = kHeads * kValue;

  // Rows [first, first + n) of the sequence, after `other` rows of the other one.
  const auto run = [&](Ops& ops, std::int64_t first, std::int64_t n, std::int64_t other, float* out) {
    Floats input(q.begin() + kRows * kQWidth, q.begin() + (kRows + other) * kQWidth);
    input.insert(input.end(), q.begin() + first * kQWidth, q.begin() + (first + n) * kQWidth);
    Floats both(static_cast<std::size_t>((other + n) * kOutWidth));
    const std::int32_t offsets[3] = {0, static_cast<std::int32_t>(other), static_cast<std::int32_t>(other + n)};
    const std::int32_t context[2] = {kOther, static_cast<std::int32_t>(kBefore + first + n)};
    ops.mla_attend({.q = view(input, {other + n, kHeads, kQk}),
                    .kv_b = kv_b.w,
                    .pages = pages,
                    .batch = {2, offsets, context, table.data(), kPages},
                    .window_tokens = window,
                    .out = view(both, {other + n, kOutWidth})});
    std::memcpy(out, both.data() + other * kOutWidth, static_cast<std::size_t>(n * kOutWidth) * sizeof(float));
  };

  const bool slow = is_slow(isa) || (isa == "generic" && has_scales(absorbed.format));
  const auto one = make_cpu_ops({.isa = isa, .threads = 1});
  const auto two = make_cpu_ops({.isa = isa, .threads = 2});
  const auto five = make_cpu_ops({.isa = isa, .threads = 5});
  Floats whole(static_cast<std::size_t>(kRows * kOutWidth));
  run(*one, 0, kRows, 0, whole.data());
  for (Ops* ops : {one.get(), two.get(), five.get()}) {
    for (const std::int64_t other : {0, 30}) {
      if (other == 0 && ops == two.get()) continue;  // the longest test: each choice once is enough
      if (slow && (other == 0 || ops != five.get())) continue;
      for (const auto& cut : slow ? all_cuts({7}) : all_cuts({1, 7, 64})) {
        Floats out(whole.size());
        std::int64_t at = 0;
        for (const std::int64_t n : cut) {
          run(*ops, at, n, other, out.data() + at * kOutWidth);
          at += n;
        }
        expect_same(whole, out,
                    "attend, window " + std::to_string(window) + ", beside " + std::to_string(other) +
                        " rows, chunks of " + std::to_string(cut[0]));
      }
    }
  }
}

TEST_P(BatchInvariance, MlaAttend) { check_attend(GetParam(), KvCodec::kBF16, 0); }
TEST_P(BatchInvariance, MlaAttendWindow) { check_attend(GetParam(), KvCodec::kF32, 300); }
// The scales of the rows of W_UK meet the query before the product, and the latent becomes codes row by row.
TEST_P(BatchInvariance, MlaAttendInt8) {
  check_attend(GetParam(), KvCodec::kBF16, 0, {.format = WeightFormat::kI8, .group = 0});
}

// One row behind more chunks than a thread computes before they are merged.
TEST_P(BatchInvariance, MlaAttendFarBack) {
  constexpr std::int64_t kContext = 2300, kPages = (kContext + kPageTokens - 1) / kPageTokens;
  HostTensor cache(DType::kBF16, {kPages * kPageTokens, kKvRow});
  const Floats rows = random_floats(kPages * kPageTokens * kKvRow, 23);
  for (std::size_t i = 0; i < rows.size(); ++i) store_from_float(cache.view.data, DType::kBF16, i, rows[i]);
  std::vector<std::int32_t> table(kPages);
  for (std::size_t i = 0; i < kPages; ++i) table[i] = static_cast<std::int32_t>(i);
  const OwnedWeight kv_b = random_weight(kHeads * (kNope + kValue), kLatent, {.format = WeightFormat::kBF16}, 24);
  Floats q = random_floats(kHeads * kQk, 25);
  Floats first;
  for (const int threads : {1, 2, 5}) {
    const auto ops = make_cpu_ops({.isa = GetParam(), .threads = threads});
    Floats out(kHeads * kValue);
    const std::int32_t offsets[2] = {0, 1};
    const std::int32_t context[1] = {kContext};
    ops->mla_attend({.q = view(q, {1, kHeads, kQk}),
                     .kv_b = kv_b.w,
                     .pages = {.base = cache.view.data,
                               .page_stride_bytes = kPageTokens * kv_row_bytes(KvCodec::kBF16),
                               .codec = KvCodec::kBF16},
                     .batch = {1, offsets, context, table.data(), kPages},
                     .out = view(out, {1, kHeads * kValue})});
    if (threads == 1) first = out;
    expect_same(first, out, "attend, " + std::to_string(threads) + " threads");
  }
}

struct OwnedExpert {
  OwnedWeight gate, up, down;
  ExpertWeights w() const { return {gate.w, up.w, down.w}; }
};
OwnedExpert random_expert(std::uint32_t seed, const QuantSpec& spec = {.format = WeightFormat::kBF16},
                          std::int64_t inner = kInner) {
  return {random_weight(inner, kHidden, spec, seed), random_weight(inner, kHidden, spec, seed + 1),
          random_weight(kHidden, inner, spec, seed + 2)};
}

TEST_P(BatchInvariance, RouteAndMoe) {
  const Floats x = random_floats(kRows * kHidden, 30);
  const Floats router = random_floats(kExperts * kHidden, 31, 0.1F);
  const Floats bias = random_floats(kExperts, 32, 0.1F);
  std::vector<OwnedExpert> owned;
  std::vector<ExpertWeights> experts;
  for (std::uint32_t e = 0; e < kExperts; ++e) owned.push_back(random_expert(100 + 3 * e));
  for (const OwnedExpert& e : owned) experts.push_back(e.w());
  const OwnedExpert shared = random_expert(200);
  constexpr std::int64_t kWidth = kHidden + 2 * kTopK;
  check("route and moe", kWidth, [&](Ops& ops, std::int64_t first, std::int64_t n, float* out) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(n * kTopK));
    Floats weights(ids.size());
    Floats y(static_cast<std::size_t>(n * kHidden));
    const View rows = view(x, {n, kHidden}, first * kHidden);
    ops.route({.x = rows,
               .w = view(router, {kExperts, kHidden}),
               .bias = view(bias, {kExperts}),
               .top_k = kTopK,
               .ids = ids.data(),
               .weights = weights.data()});
    ops.moe({.x = rows,
             .top_k = kTopK,
             .ids = ids.data(),
             .weights = weights.data(),
             .experts = experts,
             .shared = shared.w(),
             .out = view(y, {n, kHidden})});
    for (std::int64_t t = 0; t < n; ++t) {
      float* row = out + t * kWidth;
      std::memcpy(row, y.data() + t * kHidden, kHidden * sizeof(float));
      for (std::int64_t k = 0; k < kTopK; ++k) {
        row[kHidden + k] = static_cast<float>(ids[static_cast<std::size_t>(t * kTopK + k)]);
        row[kHidden + kTopK + k] = weights[static_cast<std::size_t>(t * kTopK + k)];
      }
    }
  });
}

// One kernel of each kind: a width of blocks, a zero point, a codebook, narrow groups, decoded tiles.
constexpr QuantSpec kSpecs[] = {
    {WeightFormat::kI4, 128, 1, true},    {WeightFormat::kI4, 64, 1, false},       {WeightFormat::kI4, 32, 1, false},
    {WeightFormat::kI8, 0, 1, true},      {WeightFormat::kI8, 32, 1, true},        {WeightFormat::kNF4, 64, 1, true},
    {WeightFormat::kF4E2M1, 16, 1, true}, {WeightFormat::kF8E4M3, 128, 128, true}, {WeightFormat::kI8, 16, 1, false}};

TEST_P(BatchInvariance, BlockFormats) {
  for (const QuantSpec& spec : kSpecs) {
    for (const auto& [in, out_size] :
         {std::pair<std::int64_t, std::int64_t>{256, 19}, {2112, 3}, {2176, 3}, {100, 3}}) {
      if (in == 2112 && spec.group > 32) continue;  // a tail of one run of narrow groups
      const Floats x = random_floats(kRows * in, 1);
      const OwnedWeight w = random_weight(out_size, in, spec, 2);
      const auto n_in = in, n_out = out_size;
      check(spec.name() + ", in " + std::to_string(in), n_out,
            [&](Ops& ops, std::int64_t first, std::int64_t n, float* out) {
              ops.linear({.x = view(x, {n, n_in}, first * n_in), .w = w.w, .out = {out, DType::kF32, {n, n_out}}});
            });
    }
  }
}

TEST_P(BatchInvariance, BlockFormatsInExperts) {
  const Floats x = random_floats(kRows * kHidden, 60);
  Floats weights = random_floats(kRows * kTopK, 61);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(kRows * kTopK));
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>((i + i / 5) % 3);
  for (const QuantSpec& spec : {kSpecs[0], kSpecs[2], kSpecs[5]}) {  // the kernels are those of BlockFormats
    std::vector<OwnedExpert> owned;
    std::vector<ExpertWeights> experts;
    for (std::uint32_t e = 0; e < 4; ++e) owned.push_back(random_expert(300 + 3 * e, spec, 128));
    for (const OwnedExpert& e : owned) experts.push_back(e.w());
    check("moe " + spec.name(), kHidden, [&](Ops& ops, std::int64_t first, std::int64_t n, float* out) {
      ops.moe({.x = view(x, {n, kHidden}, first * kHidden),
               .top_k = kTopK,
               .ids = ids.data() + first * kTopK,
               .weights = weights.data() + first * kTopK,
               .experts = {experts.data(), 3},
               .shared = experts[3],
               .out = {out, DType::kF32, {n, kHidden}}});
    });
  }
}

TEST_P(BatchInvariance, MlpLmHeadAndMtp) {
  const Floats x = random_floats(kRows * kHidden, 40);
  const OwnedExpert mlp = random_expert(41);
  check("mlp", kHidden, [&](Ops& ops, std::int64_t first, std::int64_t n, float* out) {
    ops.mlp({.x = view(x, {n, kHidden}, first * kHidden), .mlp = mlp.w(), .out = {out, DType::kF32, {n, kHidden}}});
  });
  constexpr std::int64_t kVocab = 301;
  const OwnedWeight head = random_weight(kVocab, kHidden, WeightFormat::kBF16, 50);
  std::vector<std::int32_t> rows(kRows);
  for (std::size_t i = 0; i < rows.size(); ++i)
    rows[i] = static_cast<std::int32_t>(kRows - 1 - static_cast<std::int64_t>(i));
  check("lm_head", kVocab, [&](Ops& ops, std::int64_t first, std::int64_t n, float* out) {
    ops.lm_head({.x = view(x, {kRows, kHidden}),
                 .rows = rows.data() + first,
                 .w = head.w,
                 .valid_vocab = 290,
                 .logits = {out, DType::kF32, {n, kVocab}}});
  });
  const Floats embed = random_floats(kRows * kHidden, 51);
  const Floats norm = random_floats(kHidden, 52);
  const OwnedWeight eh = random_weight(kHidden, 2 * kHidden, WeightFormat::kBF16, 53);
  check("mtp_input", kHidden, [&](Ops& ops, std::int64_t first, std::int64_t n, float* out) {
    ops.mtp_input({.embed = view(embed, {n, kHidden}, first * kHidden),
                   .hidden = view(x, {n, kHidden}, first * kHidden),
                   .e_norm = view(norm, {kHidden}),
                   .h_norm = view(norm, {kHidden}),
                   .eh_proj = eh.w,
                   .out = {out, DType::kF32, {n, kHidden}}});
  });
}

INSTANTIATE_TEST_SUITE_P(Isa, BatchInvariance, testing::ValuesIn(every_table()), [](const auto& info) {
  std::string name;
  for (const char c : info.param) {
    if (std::isalnum(static_cast<unsigned char>(c)) != 0) name += c;
  }
  return name;
});

}  // namespace
}  // namespace glint
