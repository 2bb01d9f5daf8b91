// Cases of mla_project, mla_append and mla_attend.

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/case_list.hpp"

namespace glint {
namespace {

struct ProjectShape {
  std::int64_t T, hidden, q_lora, heads;
};

void add_project(std::vector<Case>& list, const Stored& format, ProjectShape d) {
  const auto run = [=](Stage& s) {
    // Positions of two sequences, one of them far out: an angle in fp32 would be visibly wrong there.
    std::vector<std::int32_t> positions;
    for (std::int64_t t = 0; t < d.T; ++t)
      positions.push_back(static_cast<std::int32_t>(t % 2 == 0 ? t / 2 : 202000 + t));
    MlaProjectParams p{.tag = kCaseTag};
    p.x = s.input({d.T, d.hidden});
    p.positions = s.array(positions);
    p.q_a = s.weight(d.q_lora, d.hidden, format.spec);
    p.q_a_norm = s.input({d.q_lora});
    p.q_b = s.weight(d.heads * kQk, d.q_lora, format.spec);
    p.kv_a = s.weight(kKvRow, d.hidden, format.spec);
    p.kv_a_norm = s.input({kLatent});
    p.q = s.output("q", {d.T, d.heads, kQk}, OutputKind::kProduct);
    p.kv = s.output("kv", {d.T, kKvRow}, OutputKind::kProduct);
    s.ops().mla_project(p);
  };
  list.push_back({.name = case_name("mla_project", {text(format), text("T", d.T), text("H", d.hidden),
                                                    text("q_lora", d.q_lora), text("N", d.heads)}),
                  .op = "mla_project",
                  .run = run,
                  .format = format.spec.format});
}

void add_append(std::vector<Case>& list, KvCodec codec, std::int64_t T) {
  const auto run = [=](Stage& s) {
    constexpr std::int64_t kPages = 4;
    std::vector<float> values = s.random.normals(T * kKvRow, 3.0F);
    // Ties of the rounding to bf16, both ways, and values that overflow or vanish in it.
    constexpr float kHard[] = {1.00390625F, 1.01171875F, -1.00390625F, 3.4e38F, 1e-40F, -0.0F};
    std::copy(std::begin(kHard), std::end(kHard), values.begin());
    // Rows of all magnitudes, rows with one outlier, a row of zeros: each finds other scales in the short codecs.
    for (std::int64_t t = 1; t < T; ++t) {
      float* row = values.data() + t * kKvRow;
      const float size = std::pow(10.0F, static_cast<float>(t % 13) - 6.0F);
      for (int i = 0; i < kKvRow; ++i) row[i] *= t == 5 ? 0.0F : size;
      if (t % 2 == 0) row[t * 37 % kKvRow] *= 100.0F;
    }
    if (T > 7) values[static_cast<std::size_t>(7 * kKvRow + 100)] = std::numeric_limits<float>::infinity();
    const PagePool pool = s.pool(codec, kPages, {});
    MlaAppendParams p{.tag = kCaseTag};
    p.pages = pool.pages;
    s.output_pool("pages", pool);
    std::vector<std::int32_t> slots = s.random.permutation(kPages * kPageTokens);
    slots.resize(static_cast<std::size_t>(T));
    for (std::size_t t = 0; t < slots.size(); ++t) slots[t] = t % 5 == 3 ? -1 : pool.slot(slots[t]);
    p.slots = s.array(slots);
    p.kv = s.input({T, kKvRow}, values);
    s.ops().mla_append(p);
  };
  list.push_back(
      {.name = case_name("mla_append", {text(codec), text("T", T)}), .op = "mla_append", .run = run, .codec = codec});
}

struct Sequence {
  std::int32_t rows;     // of this step
  std::int32_t context;  // cached tokens, these rows included
};

struct AttendShape {
  std::int64_t heads;
  KvCodec codec = KvCodec::kBF16;
  QuantSpec format = {.format = WeightFormat::kBF16};
  int window = 0;
  float q_scale = 1.0F;
};

constexpr std::int32_t kAbsurdPage = 2147480000;  // in dead entries of the page table

void run_attend(Stage& s, const AttendShape& a, const std::vector<Sequence>& sequences) {
  AttendBatch batch;
  batch.n_seqs = static_cast<int>(sequences.size());
  std::vector<std::int32_t> offsets{0};
  std::vector<std::int32_t> contexts;
  std::vector<CachedRow> cached;
  std::int64_t n_pages = 0;
  for (const Sequence& q : sequences) {
    offsets.push_back(offsets.back() + q.rows);
    contexts.push_back(q.context);
    for (std::int64_t i = 0; i < q.context; ++i)
      cached.push_back({n_pages * kPageTokens + i, s.random.normals(kKvRow, 1.0F)});
    const std::int64_t used = (q.context + kPageTokens - 1) / kPageTokens;
    batch.max_pages = std::max(batch.max_pages, static_cast<int>(used) + 1);
    n_pages += used;
  }
  const PagePool pool = s.pool(a.codec, n_pages, cached);
  std::vector<std::int32_t> table;
  std::int64_t next = 0;
  for (const Sequence& q : sequences) {
    for (int i = 0; i < batch.max_pages; ++i)
      table.push_back(i < (q.context + kPageTokens - 1) / kPageTokens ? pool.page(next++) : kAbsurdPage);
  }
  const std::int64_t T = offsets.back();
  batch.row_offsets = s.array(offsets);
  batch.context_tokens = s.array(contexts);
  batch.page_table = s.array(table);

  MlaAttendParams p{.tag = kCaseTag};
  p.q = s.input({T, a.heads, kQk}, a.q_scale);
  p.kv_b = s.weight(a.heads * (kNope + kValue), kLatent, a.format);
  p.pages = pool.pages;
  p.batch = batch;
  p.window_tokens = a.window;
  p.out = s.output("out", {T, a.heads * kValue}, OutputKind::kProduct);
  s.ops().mla_attend(p);
}

void add_attend(std::vector<Case>& list, const AttendShape& a, const std::vector<Sequence>& sequences) {
  std::string rows;
  for (const Sequence& q : sequences)
    rows += (rows.empty() ? "" : "+") + std::to_string(q.rows) + "of" + std::to_string(q.context);
  Case c{.name = case_name("mla_attend",
                           {text(a.codec), text(a.format), text("N", a.heads), text("window", a.window), rows}),
         .op = "mla_attend",
         .run = [=](Stage& s) { run_attend(s, a, sequences); },
         .format = a.format.format,
         .absorbed = a.format,
         .codec = a.codec};
  if (a.q_scale > 1) {
    c.name += "/sharp";
    c.slack = 100;
    c.slack_reason = "scores of this size turn their own rounding into that of a softmax weight";
  }
  list.push_back(c);
}

}  // namespace

void add_attention_cases(std::vector<Case>& list) {
  constexpr auto kBF16 = WeightFormat::kBF16;
  for (const WeightFormat f : kAllFormats) {
    for (const std::int64_t T : {1, 3, 7}) add_project(list, f, {T, 256, 128, 4});
  }
  for (const std::int64_t T : {17, 64, 65}) add_project(list, kBF16, {T, 256, 128, 4});
  for (const std::int64_t heads : {20, 10, 5, 4}) add_project(list, kBF16, {3, 2048, 768, heads});
  for (const std::int64_t T : {1, 17, 64}) add_project(list, kBF16, {T, 2048, 768, 20});
  for (const QuantSpec& q : kBlockSpecs) add_project(list, q, {3, 256, 128, 2});
  add_project(list, QuantSpec{}, {17, 2048, 768, 4});
  for (const WeightFormat f : kAllFormats) add_project(list, f, {5, 100, 40, 3});

  for (const KvCodec codec : kKvCodecs) {
    for (const std::int64_t T : {1, 3, 7, 17, 64, 65}) add_append(list, codec, T);
  }

  for (const KvCodec codec : {KvCodec::kF16, KvCodec::kFp8, KvCodec::kInt8, KvCodec::kInt4, KvCodec::kInt16}) {
    // The page walk is that of the codecs below; here are whole and partial pages, groups of rows, and both paths.
    for (const std::int32_t context : {1, 65, 1000}) add_attend(list, {20, codec}, {{1, context}});
    for (const std::int64_t heads : {5, 4}) {
      add_attend(list, {.heads = heads, .codec = codec}, {{17, 217}, {1, 65}, {0, 70}, {3, 3}});
      add_attend(list, {.heads = heads, .codec = codec, .window = 100}, {{65, 265}, {7, 7}});
    }
    add_attend(list, {.heads = 4, .codec = codec, .q_scale = 30.0F}, {{1, 257}, {17, 130}});
  }
  for (const KvCodec codec : {KvCodec::kF32, KvCodec::kBF16}) {
    for (const std::int64_t heads : {20, 4}) {  // decode
      for (const std::int32_t context : {1, 63, 64, 65, 257, 1000}) add_attend(list, {heads, codec}, {{1, context}});
    }
    for (const int window : {0, 100}) {
      for (const std::int32_t T : {3, 7, 17, 64, 65}) {  // prefill: whole, then onto 200 cached tokens
        add_attend(list, {.heads = 4, .codec = codec, .window = window}, {{T, T}});
        add_attend(list, {.heads = 4, .codec = codec, .window = window}, {{T, T + 200}});
      }
      const std::vector<Sequence> ragged{{1, 65}, {7, 7}, {1, 1}, {17, 257}, {0, 70}, {64, 64}, {1, 1000}};
      add_attend(list, {.heads = 4, .codec = codec, .window = window}, ragged);
      add_attend(list, {.heads = 5, .codec = codec, .window = window}, ragged);
    }
  }
  for (const std::int64_t heads : {20, 10, 5}) {
    add_attend(list, {.heads = heads}, {{1, 65}, {1, 257}, {3, 64}, {1, 1}});
    add_attend(list, {.heads = heads, .window = 100}, {{17, 257}});
  }
  add_attend(list, {.heads = 4, .window = 1}, {{5, 70}});
  add_attend(list, {.heads = 4}, {{300, 300}});
  list.back().slack = 2;
  list.back().slack_reason = "the first rows are sums of few values, eight times the root mean square of all";
  for (const WeightFormat f : kAllFormats) add_attend(list, {.heads = 3, .format = {.format = f}}, {{2, 66}, {1, 3}});
  for (const int window : {0, 100})
    add_attend(list, {.heads = 4, .window = window, .q_scale = 30.0F}, {{1, 257}, {17, 130}});
}

// kv_b in codes: few rows and many, each kind of scale, and what only the reference reads.
void add_absorbed_cases(std::vector<Case>& list) {
  const auto int8 = [](DType scale) { return QuantSpec{WeightFormat::kI8, 0, 1, true, scale}; };
  for (const DType scale : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const std::int32_t T : {1, 8, 17, 65})
      add_attend(list, {.heads = 4, .format = int8(scale)}, {{T, T + 200}, {0, 70}, {3, 3}});
  }
  for (const KvCodec codec : kKvCodecs) {
    add_attend(list, {.heads = 20, .codec = codec, .format = int8(DType::kBF16)}, {{1, 1000}});
    add_attend(list, {.heads = 3, .codec = codec, .format = int8(DType::kBF16), .window = 100}, {{200, 333}, {1, 65}});
  }
  add_attend(list, {.heads = 4, .format = int8(DType::kBF16), .q_scale = 30.0F}, {{1, 257}, {17, 130}});
  for (const QuantSpec& q : kBlockSpecs) {
    if (q.group_rows == 1) add_attend(list, {.heads = 2, .format = q}, {{2, 66}});
  }
}

// Sequences with many rows, which a backend may expand: alone, with a prefix, in company, over several blocks.
void add_prefill_cases(std::vector<Case>& list) {
  for (const KvCodec codec : kKvCodecs) {
    for (const int window : {0, 100}) {
      add_attend(list, {.heads = 3, .codec = codec, .window = window}, {{200, 333}});
      add_attend(list, {.heads = 3, .codec = codec, .window = window}, {{3, 700}, {220, 720}, {0, 70}, {192, 1000}});
    }
  }
  add_attend(list, {.heads = 20}, {{257, 1000}});
  add_attend(list, {.heads = 5, .window = 1}, {{256, 256}});
  add_attend(list, {.heads = 2, .q_scale = 30.0F}, {{193, 450}, {100, 130}});
}

}  // namespace glint
