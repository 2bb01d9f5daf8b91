// Times of attention on the GPU, one layer's worth of weights and as many layers of cache as defeat its level-2 cache:
// the whole op. Usage: cuda_attend_bench [decode] [batch] [prefill] [profile]

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "backends/cuda/cuda.hpp"
#include "ops/kv_codec.hpp"

namespace glint {
namespace {

constexpr std::int64_t kHeads = 20, kHidden = 2048;

std::uint32_t next(std::uint64_t& state) {
  state = state * 6364136223846793005ULL + 1442695040888963407ULL;
  return static_cast<std::uint32_t>(state >> 33);
}
std::vector<float> uniform(std::int64_t n, float scale, std::uint64_t seed) {
  std::vector<float> v(static_cast<std::size_t>(n));
  for (float& x : v) x = scale * (static_cast<float>(next(seed) >> 8) * 0x1p-22F - 1.0F);
  return v;
}

class Bench {
 public:
  Bench() : ops_(make_cuda_ops({})) {}

  struct Shape {
    KvCodec codec;
    std::int64_t seqs, rows, context;
    int window = 0;
    int repeats = 4;
  };
  void reserve(std::int64_t rows, std::int64_t context) {
    ops_->reserve({.max_rows = rows,
                   .max_logits = 1,
                   .max_context = context,
                   .hidden = kHidden,
                   .n_heads = kHeads,
                   .q_lora = 768,
                   .dense_inner = 1024,
                   .expert_inner = 1024,
                   .n_experts = 64,
                   .top_k = 4,
                   .vocab = 1024});
    const auto w = uniform(kHeads * (kNope + kValue) * kLatent, 0.1F, 1);
    std::vector<std::uint16_t> bits;
    for (const float x : w) bits.push_back(to_bf16(x).bits);
    weights_ = to_device(bits);
    kv_b_ = {
        .format = WeightFormat::kBF16, .rows = kHeads * (kNope + kValue), .cols = kLatent, .data = weights_.data()};
  }

  void run(const Shape& s) {
    const std::int64_t pages = (s.context + kPageTokens - 1) / kPageTokens, all = pages * s.seqs;
    const std::int64_t page_bytes = kPageTokens * kv_row_bytes(s.codec);
    const std::int64_t layers = std::clamp<std::int64_t>((400 << 20) / (all * page_bytes), 1, 16);
    const Buffer cache = ops_->allocate(static_cast<std::size_t>(layers * all * page_bytes));
    std::vector<std::int32_t> table, offsets{0}, contexts;
    for (std::int64_t i = 0; i < all; ++i) table.push_back(static_cast<std::int32_t>((i * 7919) % all));
    for (std::int64_t i = 0; i < s.seqs; ++i) {
      offsets.push_back(static_cast<std::int32_t>((i + 1) * s.rows));
      contexts.push_back(static_cast<std::int32_t>(s.context));
    }
    fill(cache, s.codec, layers * all);
    const std::int64_t rows = s.seqs * s.rows;
    const Buffer q = to_device(uniform(rows * kHeads * kQk, 1.0F, 3));
    const Buffer out = ops_->allocate(static_cast<std::size_t>(rows * kHeads * kValue * 4));
    const Buffer t = to_device(table), o = to_device(offsets), c = to_device(contexts);
    MlaAttendParams p;
    p.q = {q.data(), DType::kF32, {rows, kHeads, kQk}};
    p.kv_b = kv_b_;
    p.pages = {.page_stride_bytes = page_bytes, .codec = s.codec};
    p.batch = {.n_seqs = static_cast<int>(s.seqs),
               .row_offsets = static_cast<const std::int32_t*>(o.data()),
               .context_tokens = static_cast<const std::int32_t*>(c.data()),
               .page_table = static_cast<const std::int32_t*>(t.data()),
               .max_pages = static_cast<int>(pages)};
    p.window_tokens = s.window;
    p.out = {out.data(), DType::kF32, {rows, kHeads * kValue}};
    const auto pass = [&] {
      for (std::int64_t i = 0; i < layers; ++i) {
        p.pages.base = static_cast<std::byte*>(cache.data()) + i * all * page_bytes;
        ops_->mla_attend(p);
      }
    };
    pass();
    double best = 1e9;
    const int repeats = s.rows > 64 ? 2 : s.repeats;
    for (int i = 0; i < 3; ++i) {
      ops_->start_timer();
      for (int k = 0; k < repeats; ++k) pass();
      best = std::min(best, ops_->stop_timer() / static_cast<double>(repeats * layers));
    }
    std::vector<float> first(4);
    ops_->download(first.data(), out.data(), 16);
    const double bytes = static_cast<double>(s.seqs * s.context * kv_row_bytes(s.codec));
    const double seen =
        static_cast<double>(s.rows) * static_cast<double>(s.context) - static_cast<double>(s.rows * (s.rows - 1)) / 2;
    const double flops = static_cast<double>(s.seqs) * seen * kHeads * 1024;
    std::printf("%-5s %3d seqs %5d rows of %6d  %9.2f us  %7.1f GB/s  %7.1f expanded TFLOP/s  (%g)\n",
                std::string(kv_codec_name(s.codec)).c_str(), static_cast<int>(s.seqs), static_cast<int>(s.rows),
                static_cast<int>(s.context), best * 1e6, bytes / best * 1e-9, flops / best * 1e-12,
                static_cast<double>(first[1]));
    std::fflush(stdout);
  }

 private:
  template <typename T>
  Buffer to_device(const std::vector<T>& v) {
    Buffer b = ops_->allocate(v.size() * sizeof(T));
    ops_->upload(b.data(), v.data(), v.size() * sizeof(T));
    return b;
  }
  void fill(const Buffer& cache, KvCodec codec, std::int64_t pages) {
    constexpr std::int64_t kRows = 4096;
    const Buffer kv = to_device(uniform(kRows * kKvRow, 2.0F, 2));
    std::vector<std::int32_t> slots(static_cast<std::size_t>(kRows));
    for (std::int64_t i = 0; i < kRows; ++i) slots[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i);
    const Buffer slot = to_device(slots);
    const std::int64_t page_bytes = kPageTokens * kv_row_bytes(codec);
    for (std::int64_t page = 0; page < pages; page += kRows / kPageTokens) {
      const std::int64_t n = std::min<std::int64_t>(kRows, (pages - page) * kPageTokens);
      ops_->mla_append({.kv = {kv.data(), DType::kF32, {n, kKvRow}},
                        .slots = static_cast<const std::int32_t*>(slot.data()),
                        .pages = {.base = static_cast<std::byte*>(cache.data()) + page * page_bytes,
                                  .page_stride_bytes = page_bytes,
                                  .codec = codec}});
    }
  }

  std::unique_ptr<Ops> ops_;
  Buffer weights_;
  Weight kv_b_;
};

}  // namespace
}  // namespace glint

int main(int argc, char** argv) {
  using glint::KvCodec;
  const auto wanted = [&](const char* name) {
    bool any = argc == 1;
    for (int i = 1; i < argc; ++i) any = any || std::strcmp(argv[i], name) == 0;
    return any;
  };
  glint::Bench bench;
  if (wanted("decode")) {
    bench.reserve(64, 131072);
    for (const std::int64_t context : {64, 4096, 32768, 131072}) {
      for (const std::int64_t seqs : {1, 8, 64}) {
        if (seqs * context > 8 * 131072) continue;
        for (const KvCodec codec : {KvCodec::kBF16, KvCodec::kFp8, KvCodec::kInt8, KvCodec::kInt4})
          bench.run({codec, seqs, 1, context});
      }
    }
    for (const std::int64_t seqs : {16, 32, 64}) bench.run({KvCodec::kBF16, seqs, 1, 32768});
    bench.run({KvCodec::kBF16, 1, 2, 32768});
    bench.run({KvCodec::kBF16, 8, 4, 32768});
  }
  if (wanted("batch")) {
    bench.reserve(256, 4096);
    for (const std::int64_t seqs : {32, 64, 128, 256}) {
      for (const std::int64_t context : {64, 1024}) {
        for (const KvCodec codec : {KvCodec::kBF16, KvCodec::kFp8, KvCodec::kInt8, KvCodec::kInt4})
          bench.run({codec, seqs, 1, context});
      }
    }
  }
  // Few launches, for a profiler.
  if (argc > 1 && wanted("profile")) {
    bench.reserve(256, 131072);
    for (const std::int64_t context : {64, 1024}) {
      for (const std::int64_t seqs : {64, 256}) bench.run({KvCodec::kBF16, seqs, 1, context, 0, 1});
    }
    for (const KvCodec codec : {KvCodec::kBF16, KvCodec::kFp8, KvCodec::kInt8, KvCodec::kInt4}) {
      bench.run({codec, 1, 1, 64, 0, 1});
      bench.run({codec, 1, 1, 131072, 0, 1});
      bench.run({codec, 8, 1, 32768, 0, 1});
    }
  }
  if (wanted("prefill")) {
    bench.reserve(2048, 204800);
    for (const std::int64_t rows : {256, 512, 2048}) bench.run({KvCodec::kBF16, 1, rows, rows});
    for (const std::int64_t context : {4096, 6144, 8192, 32768}) bench.run({KvCodec::kBF16, 1, 2048, context});
    bench.run({KvCodec::kInt4, 1, 2048, 8192});
    bench.run({KvCodec::kBF16, 4, 512, 512});
  }
}
