// The case list on the GPU, and what only a device can get wrong: formats that the cases do not make, repeats, graphs.

#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>

#include "cuda/device_matrix.hpp"
#include "ops/kv_codec.hpp"

namespace glint {
namespace {

TEST(Cuda, DevicesAreListed) {
  NEED_GPU();
  const auto devices = cuda_devices();
  ASSERT_FALSE(devices.empty());
  for (const CudaDevice& d : devices) {
    std::printf("  %d: %s, sm_%d, %.1f of %.1f GiB free\n", d.index, d.name.c_str(), d.sm,
                static_cast<double>(d.free_bytes) / (1 << 30), static_cast<double>(d.memory_bytes) / (1 << 30));
    EXPECT_GT(d.memory_bytes, 0);
    EXPECT_GE(d.sm, 80);
  }
}

TEST(Cuda, UnknownDeviceIsRefused) {
  NEED_GPU();
  EXPECT_ANY_THROW(make_cuda_ops({.device = 1000}));
}

TEST(Cuda, CasesAgreeWithTheReference) {
  NEED_GPU();
  const auto ops = make_cuda_ops({});
  std::printf("  %s\n", ops->name().c_str());
  expect_all_cases(*ops, Precision::kBF16);
}

// Every kernel, on few cases: under compute-sanitizer each launch takes long.
TEST(Cuda, SomeCasesForASanitizer) {
  NEED_GPU();
  const auto ops = make_cuda_ops({});
  ops->reserve(case_limits());
  int n = 0;
  for (std::size_t i = 0; i < all_cases().size(); i += 5) {
    const Case& c = all_cases()[i];
    if (!supported(c, *ops)) continue;
    for (const Output& o : run_outputs(c, *ops, Layout::kScattered)) EXPECT_EQ(o.damage, "") << c.name;
    ++n;
  }
  EXPECT_GT(n, 50);
}

// Dependent launches overlap kernels: the answers must not change with them.
TEST(Cuda, DependentLaunchChangesNothing) {
  NEED_GPU();
  const auto overlapped = make_cuda_ops({.dependent_launch = true});
  const auto plain = make_cuda_ops({.dependent_launch = false});
  overlapped->reserve(case_limits());
  plain->reserve(case_limits());
  for (const Case& c : all_cases()) {
    if (!supported(c, *plain)) continue;
    const auto a = run_outputs(c, *overlapped, Layout::kScattered), b = run_outputs(c, *plain, Layout::kScattered);
    for (std::size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(0, std::memcmp(a[i].values.data(), b[i].values.data(), a[i].values.size() * sizeof(float)))
          << c.name << ": " << a[i].name;
    }
  }
}

TEST(Cuda, CopiesLargerThanTheirStagingArriveWhole) {
  NEED_GPU();
  const auto ops = make_cuda_ops({});
  constexpr std::size_t kWords = (std::size_t{21} << 20) / 4 + 3;  // more than both pinned halves
  std::vector<std::uint32_t> out(kWords), back(kWords);
  for (std::size_t i = 0; i < kWords; ++i) out[i] = static_cast<std::uint32_t>(i * 2654435761U);
  const Buffer a = ops->allocate(kWords * 4), b = ops->allocate(kWords * 4);
  ops->upload(a.data(), out.data(), kWords * 4);
  std::memset(out.data(), 0, 64);  // upload has taken its bytes by now
  ops->copy(b.data(), a.data(), kWords * 4);
  ops->download(back.data(), b.data(), kWords * 4);
  for (std::size_t i = 16; i < kWords; ++i) ASSERT_EQ(back[i], static_cast<std::uint32_t>(i * 2654435761U)) << i;
  ASSERT_EQ(back[5], 5 * 2654435761U);
}

// ---- block formats: linear and moe against decode_row ---------------------------------------------------------------

std::vector<float> times(const std::vector<float>& x, std::int64_t rows, const DeviceMatrix& m) {
  const std::int64_t cols = m.w.cols;
  std::vector<float> out;
  for (std::int64_t t = 0; t < rows; ++t) {
    for (std::int64_t o = 0; o < m.w.rows; ++o) {
      double sum = 0;
      for (std::int64_t c = 0; c < cols; ++c)
        sum += double{x[static_cast<std::size_t>(t * cols + c)]} * m.values[static_cast<std::size_t>(o * cols + c)];
      out.push_back(static_cast<float>(sum));
    }
  }
  return out;
}

TEST(CudaFormats, LinearAgreesWithTheDecoder) {
  NEED_GPU();
  const auto ops = make_cuda_ops({});
  OpLimits limits = case_limits();
  limits.dense_inner = 4096;
  ops->reserve(limits);
  Random random(7);
  for (const Quant& q : kQuants) {
    double worst = 0;
    for (const auto& [rows, cols] :
         {std::pair{200, 768}, std::pair{48, 2048}, std::pair{33, 256}, std::pair{19, 384}, std::pair{300, 1024}}) {
      const DeviceMatrix m = matrix(*ops, random, q.spec, rows, cols);
      for (const std::int64_t t : {1, 5, 9, 16, 17, 24, 33, 64, 65, 130, 257}) {
        const auto x = random.normals(t * cols, 1.0F);
        const Buffer dx = to_device(*ops, x.data(), x.size() * 4),
                     dy = ops->allocate(static_cast<std::size_t>(t * rows) * 4);
        ops->linear({.x = {dx.data(), DType::kF32, {t, cols}}, .w = m.w, .out = {dy.data(), DType::kF32, {t, rows}}});
        std::vector<float> y(static_cast<std::size_t>(t * rows));
        ops->download(y.data(), dy.data(), y.size() * 4);
        const double e = nmse(y, times(x, t, m));
        EXPECT_LT(e, kProductLimit) << q.name << ", T=" << t << ", " << cols << "→" << rows;
        worst = std::max(worst, e);
      }
    }
    std::printf("  %-16s worst nmse %.2e\n", q.name, worst);
  }
}

// The same tokens through the same experts as BF16 matrices of the decoded values: only the format differs.
TEST(CudaFormats, ExpertsAgreeWithTheirDecodedTwins) {
  NEED_GPU();
  const auto ops = make_cuda_ops({});
  ops->reserve(case_limits());
  const auto reference = make_reference_ops();
  reference->reserve(case_limits());
  Random random(8);
  constexpr std::int64_t kHidden = 256, kInner = 128, kExperts = 6;
  constexpr int kTopK = 2;
  for (const Quant& q : kQuants) {
    const ExpertTwins experts(*ops, random, q.spec, kExperts, kHidden, kInner, true);
    // Random choices, every row to the last experts (the others are empty), every second row without its second choice.
    enum class Routing { kRandom, kSkewed, kHoles };
    for (const auto& [t, routing] :
         {std::pair{1, Routing::kRandom}, std::pair{6, Routing::kRandom}, std::pair{17, Routing::kRandom},
          std::pair{30, Routing::kRandom}, std::pair{64, Routing::kSkewed}, std::pair{90, Routing::kHoles},
          std::pair{150, Routing::kRandom}, std::pair{150, Routing::kSkewed}, std::pair{300, Routing::kRandom}}) {
      const auto x = random.normals(t * kHidden, 1.0F);
      std::vector<std::int32_t> ids;
      std::vector<float> weights;
      for (std::int64_t i = 0; i < t; ++i) {
        auto order = random.permutation(kExperts);
        if (routing == Routing::kSkewed) order = {5, 4};
        if (routing == Routing::kHoles && i % 2 == 1) order[1] = -1;
        ids.insert(ids.end(), order.begin(), order.begin() + kTopK);
        for (int k = 0; k < kTopK; ++k) weights.push_back(0.1F + random.uniform());
      }
      EXPECT_LT(moe_error(*ops, *reference, experts, kTopK, x, ids, weights), 2 * kProductLimit)
          << q.name << ", T=" << t << ", " << static_cast<int>(routing);
    }
  }
}

struct AttentionShape {
  std::int64_t heads = 1;
  std::int64_t reserved_rows = 0, reserved_context = 0;
  int window = 0;  // tried besides 0
  std::vector<KvCodec> codecs;
};
// Rows are written by mla_append.
void expect_attention(const AttentionShape& shape, const std::vector<std::int32_t>& rows_of,
                      const std::vector<std::int32_t>& contexts) {
  const std::int64_t heads = shape.heads;
  const auto n_seqs = static_cast<int>(contexts.size());
  const auto ops = make_cuda_ops({});
  const auto reference = make_reference_ops();
  OpLimits limits = case_limits();
  limits.max_rows = std::max(limits.max_rows, shape.reserved_rows);
  limits.max_context = shape.reserved_context;
  ops->reserve(limits);
  reference->reserve(limits);
  Random random(11);
  std::vector<std::int32_t> offsets{0}, table;
  std::int32_t max_pages = 0, n_pages = 0;
  for (const std::int32_t r : rows_of) offsets.push_back(offsets.back() + r);
  for (const std::int32_t c : contexts) max_pages = std::max(max_pages, (c + kPageTokens - 1) / kPageTokens);
  for (const std::int32_t c : contexts) {
    const std::int32_t used = (c + kPageTokens - 1) / kPageTokens;
    for (std::int32_t i = 0; i < max_pages; ++i) table.push_back(i < used ? n_pages + i : -1);
    n_pages += used;
  }
  const std::int64_t rows = offsets.back();
  const auto q = random.normals(rows * heads * kQk, 1.0F);
  const auto w = random.normals(heads * (kNope + kValue) * kLatent, 0.05F);
  std::vector<std::uint16_t> w_bits;
  for (const float x : w) w_bits.push_back(to_bf16(x).bits);
  const Buffer dq = to_device(*ops, q.data(), q.size() * 4), dw = to_device(*ops, w_bits.data(), w_bits.size() * 2);
  const Buffer offsets_buffer = to_device(*ops, offsets.data(), offsets.size() * 4);
  const Buffer contexts_buffer = to_device(*ops, contexts.data(), contexts.size() * 4);
  const Buffer table_buffer = to_device(*ops, table.data(), table.size() * 4);
  const Buffer out = ops->allocate(static_cast<std::size_t>(rows * heads * kValue) * 4);
  constexpr std::int64_t kChunk = 256;
  for (const KvCodec codec : shape.codecs) {
    if (!ops->supports(codec)) continue;
    const std::int64_t stride = kPageTokens * kv_row_bytes(codec);
    std::vector<std::byte> pages(static_cast<std::size_t>(n_pages * stride), std::byte{0xff});
    const Buffer cache = to_device(*ops, pages.data(), pages.size());
    KvPages view{.base = cache.data(), .page_stride_bytes = stride, .codec = codec, .n_pages = n_pages};
    std::vector<std::int32_t> slots;
    for (int s = 0; s < n_seqs; ++s) {
      for (std::int32_t i = 0; i < contexts[static_cast<std::size_t>(s)]; ++i)
        slots.push_back(table[static_cast<std::size_t>(s * max_pages + i / kPageTokens)] * kPageTokens +
                        i % kPageTokens);
    }
    const auto values = random.normals(kChunk * kKvRow, 1.0F);
    const Buffer dv = to_device(*ops, values.data(), values.size() * 4);
    const Buffer ds = to_device(*ops, slots.data(), slots.size() * 4);
    for (std::size_t i = 0; i < slots.size(); i += kChunk) {
      const auto n = static_cast<std::int64_t>(std::min<std::size_t>(kChunk, slots.size() - i));
      ops->mla_append({.kv = {dv.data(), DType::kF32, {n, kKvRow}},
                       .slots = static_cast<const std::int32_t*>(ds.data()) + i,
                       .pages = view});
    }
    ops->download(pages.data(), cache.data(), pages.size());
    std::vector<int> windows{0};
    if (shape.window > 0) windows.push_back(shape.window);
    for (const int window : windows) {
      std::vector<float> want(static_cast<std::size_t>(rows * heads * kValue)), got(want.size());
      MlaAttendParams p;
      p.q = {q.data(), DType::kF32, {rows, heads, kQk}};
      p.kv_b = {
          .format = WeightFormat::kBF16, .rows = heads * (kNope + kValue), .cols = kLatent, .data = w_bits.data()};
      p.pages = view;
      p.pages.base = pages.data();
      p.batch = {.n_seqs = n_seqs,
                 .row_offsets = offsets.data(),
                 .context_tokens = contexts.data(),
                 .page_table = table.data(),
                 .max_pages = max_pages};
      p.window_tokens = window;
      p.out = {want.data(), DType::kF32, {rows, heads * kValue}};
      reference->mla_attend(p);
      p.q.data = dq.data();
      p.kv_b.data = dw.data();
      p.pages.base = cache.data();
      p.batch.row_offsets = static_cast<const std::int32_t*>(offsets_buffer.data());
      p.batch.context_tokens = static_cast<const std::int32_t*>(contexts_buffer.data());
      p.batch.page_table = static_cast<const std::int32_t*>(table_buffer.data());
      p.out.data = out.data();
      ops->mla_attend(p);
      ops->download(got.data(), out.data(), got.size() * 4);
      std::vector<float> again(got.size());
      ops->mla_attend(p);
      ops->download(again.data(), out.data(), again.size() * 4);
      EXPECT_EQ(0, std::memcmp(got.data(), again.data(), got.size() * 4)) << kv_codec_name(codec) << ": a repeat";
      const double e = nmse(got, want);
      std::printf("  %-5s window %3d: nmse %.2e\n", std::string(kv_codec_name(codec)).c_str(), window, e);
      EXPECT_LT(e, 1e-4) << kv_codec_name(codec);
    }
  }
}

// So many tokens that every block of the decode kernel takes more steps than it has stages, and meets sequence borders:
// the ring of copies wraps, and sequences are merged from pieces.
TEST(CudaAttention, ManySequencesThroughTheRing) {
  NEED_GPU();
  Random random(12);
  std::vector<std::int32_t> rows, contexts;
  for (int s = 0; s < 60; ++s) {
    rows.push_back(s % 9 == 4 ? 2 : 1);
    contexts.push_back(static_cast<std::int32_t>(s % 5 == 0 ? 1 + random.below(70) : 300 + random.below(1700)));
  }
  expect_attention({.heads = 5,
                    .reserved_context = 2048,
                    .window = 333,
                    .codecs = {KvCodec::kBF16, KvCodec::kFp8, KvCodec::kInt8, KvCodec::kInt4}},
                   rows, contexts);
}

// Several sequences a block, most of them whole within it, and more than a warp counts at a time.
TEST(CudaAttention, ManyShortSequences) {
  NEED_GPU();
  Random random(13);
  std::vector<std::int32_t> rows, contexts;
  for (int s = 0; s < 280; ++s) {
    rows.push_back(s % 50 == 7 ? 0 : 1);
    contexts.push_back(static_cast<std::int32_t>(1 + random.below(s % 8 == 0 ? 200 : 20)));
  }
  expect_attention({.heads = 20,
                    .reserved_rows = 280,
                    .reserved_context = 256,
                    .codecs = {KvCodec::kBF16, KvCodec::kFp8, KvCodec::kInt8, KvCodec::kInt4}},
                   rows, contexts);
}

// Drafts: four rows of 20 heads are several tiles a sequence. With a window the first page of a tile of later rows may
// hold nothing that they see, and the last page of a tile of early rows.
TEST(CudaAttention, DraftsOfManySequences) {
  NEED_GPU();
  Random random(14);
  std::vector<std::int32_t> rows, contexts;
  for (int s = 0; s < 90; ++s) {
    rows.push_back(s % 7 == 3 ? 1 : 4);
    const std::int32_t page = 64 * (3 + static_cast<std::int32_t>(random.below(9)));
    contexts.push_back(page + static_cast<std::int32_t>(random.below(4)) - (s % 2 == 0 ? 0 : 40));
  }
  expect_attention({.heads = 20,
                    .reserved_rows = 360,
                    .reserved_context = 1024,
                    .window = 65,
                    .codecs = {KvCodec::kBF16, KvCodec::kFp8, KvCodec::kInt8, KvCodec::kInt4}},
                   rows, contexts);
}

// Contexts beyond one block of expanded keys (8,192 tokens), cut by its end; the window leaves blocks without work.
TEST(CudaAttention, PrefillOverSeveralBlocks) {
  NEED_GPU();
  expect_attention({.heads = 1,
                    .reserved_rows = 450,
                    .reserved_context = 10000,
                    .window = 500,
                    .codecs = {KvCodec::kBF16, KvCodec::kInt8}},
                   {200, 3, 200}, {300, 100, 8900});
}

// One sequence of so many rows that the answer is handed on in BF16; over several blocks it waits in F32 in between.
TEST(CudaAttention, PrefillOfOneSequence) {
  NEED_GPU();
  for (const std::int32_t context : {600, 8900}) {
    expect_attention({.heads = context > 1000 ? 1 : 3,
                      .reserved_rows = 600,
                      .reserved_context = 10000,
                      .window = 500,
                      .codecs = {KvCodec::kBF16, KvCodec::kInt8}},
                     {context > 1000 ? 520 : 600}, {context});
  }
}

// More tiles than blocks: the ring of copies runs on from tile to tile.
TEST(Cuda, ManyTilesThroughTheRing) {
  NEED_GPU();
  const auto ops = make_cuda_ops({});
  ops->reserve(case_limits());
  Random random(12);
  constexpr std::int64_t kOut = 40000, kCols = 128;
  for (const Quant& q : {Quant{"bf16", {.format = WeightFormat::kBF16}}, kQuants[0], kQuants[2]}) {
    const DeviceMatrix m = matrix(*ops, random, q.spec, kOut, kCols);
    for (const std::int64_t t : {17, 40, 70}) {
      const auto x = random.normals(t * kCols, 1.0F);
      const Buffer dx = to_device(*ops, x.data(), x.size() * 4),
                   dy = ops->allocate(static_cast<std::size_t>(t * kOut) * 4);
      const auto want = times(x, t, m);
      std::vector<float> y(want.size());
      for (int repeat = 0; repeat < 3; ++repeat) {
        ops->linear({.x = {dx.data(), DType::kF32, {t, kCols}}, .w = m.w, .out = {dy.data(), DType::kF32, {t, kOut}}});
        ops->download(y.data(), dy.data(), y.size() * 4);
        EXPECT_LT(nmse(y, want), kProductLimit) << q.name << ", T=" << t;
      }
    }
  }
}

// A row's sum has one order for more than 16 rows as well.
TEST(Cuda, SomeRowsDoNotSeeEachOther) {
  NEED_GPU();
  const auto ops = make_cuda_ops({});
  ops->reserve(case_limits());
  Random random(10);
  for (const std::int64_t out : {100, 1000}) {
    const DeviceMatrix m = matrix(*ops, random, kQuants[0].spec, out, 1024);
    constexpr std::int64_t kRows = 200, kFew = 20;
    const auto x = random.normals(kRows * 1024, 1.0F);
    const Buffer dx = to_device(*ops, x.data(), x.size() * 4),
                 dy = ops->allocate(static_cast<std::size_t>(kRows * out) * 4);
    std::vector<float> all(static_cast<std::size_t>(kRows * out)), few(static_cast<std::size_t>(kFew * out));
    ops->linear(
        {.x = {dx.data(), DType::kF32, {kRows, 1024}}, .w = m.w, .out = {dy.data(), DType::kF32, {kRows, out}}});
    ops->download(all.data(), dy.data(), all.size() * 4);
    for (const std::int64_t first : {0, 50, 180}) {
      ops->linear({.x = {static_cast<const float*>(dx.data()) + first * 1024, DType::kF32, {kFew, 1024}},
                   .w = m.w,
                   .out = {dy.data(), DType::kF32, {kFew, out}}});
      ops->download(few.data(), dy.data(), few.size() * 4);
      EXPECT_EQ(0, std::memcmp(few.data(), all.data() + first * out, few.size() * 4)) << out << " from " << first;
    }
  }
}

// A row's sum has one order for up to 16 rows: alone or in company, the bits are the same.
TEST(Cuda, FewRowsDoNotSeeEachOther) {
  NEED_GPU();
  const auto ops = make_cuda_ops({});
  ops->reserve(case_limits());
  Random random(9);
  const DeviceMatrix m = matrix(*ops, random, kQuants[0].spec, 100, 768);
  const auto x = random.normals(16 * 768, 1.0F);
  const Buffer dx = to_device(*ops, x.data(), x.size() * 4), dy = ops->allocate(16 * 100 * 4);
  std::vector<float> together(16 * 100), alone(100);
  for (const std::int64_t n : {2, 8, 9, 16}) {
    ops->linear({.x = {dx.data(), DType::kF32, {n, 768}}, .w = m.w, .out = {dy.data(), DType::kF32, {n, 100}}});
    ops->download(together.data(), dy.data(), static_cast<std::size_t>(n) * 400);
    for (std::int64_t r = 0; r < n; ++r) {
      ops->linear({.x = {static_cast<const float*>(dx.data()) + r * 768, DType::kF32, {1, 768}},
                   .w = m.w,
                   .out = {dy.data(), DType::kF32, {1, 100}}});
      ops->download(alone.data(), dy.data(), 400);
      EXPECT_EQ(0, std::memcmp(alone.data(), together.data() + r * 100, 400)) << "row " << r << " of " << n;
    }
  }
}

}  // namespace
}  // namespace glint
