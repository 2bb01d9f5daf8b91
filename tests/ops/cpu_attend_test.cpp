// The attention kernels alone, against sums in double over what the pages hold: the wide limit of bf16 products, which
// the cases of mla_attend have on such tables, would not notice what 16-bit codes lose.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "backends/cpu/cpu.hpp"
#include "backends/cpu/kernels.hpp"
#include "every_table.hpp"

namespace glint {
namespace {

constexpr std::int64_t kQueries = cpu::kQueryBlock, kPositions = 200;
constexpr std::int64_t kPages = (kPositions + kPageTokens - 1) / kPageTokens;

// Tables whose attention is in 16-bit codes.
bool has_codes(const std::string& isa) {
  return isa == "avx2" || isa == "avx512vnni" || isa.starts_with("avx512bf16") || isa.starts_with("amx");
}

// Channels of 12 times the size, as real latents have, and larger rotary parts; one row of zeros.
void usual_row(std::int64_t j, std::mt19937& rng, float* row) {
  std::normal_distribution<float> normal;
  for (std::int64_t c = 0; c < kKvRow; ++c)
    row[c] = j == 17 ? 0 : normal(rng) * (c % 97 == 5 ? 12.0F : c >= kLatent ? 4.0F : 1.0F);
}
using RowMaker = void (*)(std::int64_t j, std::mt19937& rng, float* row);

// Pages in descending order; slots without a token are all ones, which is NaN in every codec.
struct Cache {
  KvCodec codec;
  std::vector<char> bytes = std::vector<char>(static_cast<std::size_t>(kPages * kPageTokens * kv_row_bytes(codec)), -1);
  std::vector<std::int32_t> table;
  std::vector<float> values = std::vector<float>(kPositions * kKvRow);  // as decoded

  explicit Cache(KvCodec of, RowMaker make = usual_row) : codec(of) {
    for (std::int32_t p = 0; p < kPages; ++p) table.push_back(static_cast<std::int32_t>(kPages) - 1 - p);
    std::mt19937 rng(3);
    for (std::int64_t j = 0; j < kPositions; ++j) {
      float row[kKvRow];
      make(j, rng, row);
      encode_kv_row(codec, row, at(j));
      decode_kv_row(codec, at(j), values.data() + j * kKvRow);
    }
  }
  char* at(std::int64_t j) {
    return bytes.data() + (table[j / kPageTokens] * kPageTokens + j % kPageTokens) * kv_row_bytes(codec);
  }
};

struct Queries {
  std::vector<float> q = std::vector<float>(kQueries * kKvRow);
  std::vector<std::int64_t> first, last;

  Queries() {
    std::mt19937 rng(4);
    std::normal_distribution<float> normal(0, 1.0F / 24);
    for (float& v : q) v = normal(rng);
    std::fill(q.begin() + 5 * kKvRow, q.begin() + 6 * kKvRow, 0.0F);
    for (std::int64_t i = 0; i < kQueries; ++i) {
      last.push_back(kPositions - (kQueries - 1 - i) / 2);
      first.push_back(i % 3 == 0 ? 0 : last.back() - 90);
    }
  }
  // Queries [from, from + n).
  std::vector<float> run(const std::string& isa, Cache& cache, std::int64_t from, std::int64_t n) const {
    const cpu::Table& table = cpu::find_table(isa);
    std::vector<float> rotated(q.begin() + from * kKvRow, q.begin() + (from + n) * kKvRow);
    const bool rotate = kv_is_rotated(cache.codec);
    for (std::int64_t i = 0; rotate && i < n; ++i) kv_hadamard(rotated.data() + i * kKvRow);
    std::vector<float> latent(static_cast<std::size_t>(n * kLatent)), top(static_cast<std::size_t>(n)), sum = top;
    std::vector<float> scratch(cpu::kAttendScratch, std::numeric_limits<float>::quiet_NaN());
    const cpu::AttendState state{top.data(), sum.data(), latent.data()};
    table.attend({.q = rotated.data(),
                  .n = n,
                  .first = first.data() + from,
                  .last = last.data() + from,
                  .begin = 0,
                  .end = cpu::kChunk,
                  .pages = {cache.bytes.data(), kPageTokens * kv_row_bytes(cache.codec), cache.codec},
                  .page_table = cache.table.data(),
                  .out = state,
                  .scratch = scratch.data()});
    std::vector<float> out = latent;
    for (std::int64_t i = 0; i < n; ++i) {
      table.attend_finish(state, i, out.data() + i * kLatent);
      if (rotate) kv_hadamard(out.data() + i * kLatent);
    }
    return out;
  }
  std::vector<double> exact(const Cache& cache) const {
    std::vector<double> out(kQueries * kLatent);
    for (std::int64_t i = 0; i < kQueries; ++i) {
      double total = 0;
      for (std::int64_t j = first[i]; j < last[i]; ++j) {
        const float* row = cache.values.data() + j * kKvRow;
        double s = 0;
        for (std::int64_t c = 0; c < kKvRow; ++c) s += static_cast<double>(q[i * kKvRow + c]) * row[c];
        const double weight = std::exp(s);
        total += weight;
        for (std::int64_t c = 0; c < kLatent; ++c) out[i * kLatent + c] += weight * row[c];
      }
      for (std::int64_t c = 0; c < kLatent; ++c) out[i * kLatent + c] /= total;
    }
    return out;
  }
};

template <typename T>
double nmse(const std::vector<T>& found, const std::vector<double>& expected) {
  double error = 0, square = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    error += (found[i] - expected[i]) * (found[i] - expected[i]);
    square += expected[i] * expected[i];
  }
  return error / square;
}

// Below `halves` with these random numbers; 1.5 leaves room for another library's. An F32 cache is the measure of the
// others and is read in floats by every table.
TEST(CpuAttend, CodesLoseNoMoreThanACacheOfHalves) {
  const Queries queries;
  const double halves = nmse(queries.exact(Cache(KvCodec::kF16)), queries.exact(Cache(KvCodec::kF32)));
  EXPECT_GT(halves, 1e-8);
  EXPECT_LT(halves, 3e-7);
  for (const KvCodec codec : kKvCodecs) {
    Cache cache(codec);
    const std::vector<double> expected = queries.exact(cache);
    for (const std::string& isa : every_table()) {
      const bool codes = has_codes(isa) && codec != KvCodec::kF32;
      const double lost = nmse(queries.run(isa, cache, 0, kQueries), expected);
      EXPECT_LT(lost, codes ? 1.5 * halves : 1e-11) << isa << ", " << kv_codec_name(codec);
      if (codes) std::printf("  %s, %s: %.1e, halves %.1e\n", isa.c_str(), kv_codec_name(codec).data(), lost, halves);
    }
  }
}

// Rows, queries and weights whose codes add up to the most that a lane may hold, all of one sign; then as few values as
// possible, which are limited by the largest code instead. A sum that overflowed would be wrong in its first digit.
TEST(CpuAttend, TheLargestSumsFit) {
  const RowMaker even = [](std::int64_t j, std::mt19937&, float* row) {
    for (std::int64_t c = 0; c < kKvRow; ++c)
      row[c] = ((c * 7 + 3) % 5 < 2 ? -1.0F : 1.0F) * (j % 3 == 0 ? 1.0F : 3.0F);
  };
  const RowMaker single = [](std::int64_t j, std::mt19937&, float* row) {
    std::fill(row, row + kKvRow, 0.0F);
    row[5] = row[kLatent + 3] = j == 100 ? 8.0F : 1.0F;
  };
  for (const RowMaker make : {even, single}) {
    for (const KvCodec codec : {KvCodec::kF32, KvCodec::kF16, KvCodec::kBF16, KvCodec::kFp8, KvCodec::kInt16}) {
      Cache cache(codec, make);
      Queries queries;
      for (std::int64_t i = 0; i < kQueries; ++i) {  // the signs of row 0, so that all products are positive
        for (std::int64_t c = 0; c < kKvRow; ++c) {
          const float sign = cache.values[c] > 0 ? 1.0F : cache.values[c] < 0 ? -1.0F : 0.0F;
          queries.q[i * kKvRow + c] = sign * (make == single ? 2.0F : i % 2 == 0 ? 1.0F / 4096 : 1.0F / 256);
        }
      }
      const std::vector<double> expected = queries.exact(cache);
      for (const std::string& isa : every_table()) {
        const double lost = nmse(queries.run(isa, cache, 0, kQueries), expected);
        EXPECT_LT(lost, has_codes(isa) ? 1e-7 : 1e-11) << isa << ", " << kv_codec_name(codec);
      }
    }
  }
}

TEST(CpuAttend, AQueryHasTheSameBitsAloneAndAmongOthers) {
  const Queries queries;
  for (const KvCodec codec : kKvCodecs) {
    Cache cache(codec);
    for (const std::string& isa : every_table()) {
      const std::vector<float> all = queries.run(isa, cache, 0, kQueries);
      for (const std::int64_t n : {1, 2, 7, 20}) {
        for (std::int64_t from = 0; from + n <= kQueries; from += 13) {
          const std::vector<float> some = queries.run(isa, cache, from, n);
          EXPECT_EQ(std::memcmp(some.data(), all.data() + from * kLatent, some.size() * sizeof(float)), 0)
              << isa << ", " << kv_codec_name(codec) << ", queries " << from << " and " << n - 1 << " more";
        }
      }
    }
  }
}

TEST(CpuAttend, WhatIsNotFiniteShows) {
  const auto is_nan = [](float v) { return std::isnan(v); };
  constexpr std::int64_t kBadRow = kPositions - 10, kBadQuery = 30;
  for (const KvCodec codec : kKvCodecs) {
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      Queries queries;
      Cache cache(codec);
      queries.q[kBadQuery * kKvRow + 7] = bad;
      for (const std::string& isa : every_table()) {
        const std::vector<float> out = queries.run(isa, cache, 0, kQueries);
        for (std::int64_t i = 0; i < kQueries; ++i) {
          EXPECT_EQ(std::any_of(out.begin() + i * kLatent, out.begin() + (i + 1) * kLatent, is_nan), i == kBadQuery)
              << isa << ", " << kv_codec_name(codec) << ", query " << i;
        }
      }
    }
    Queries queries;
    Cache cache(codec);
    std::fill_n(cache.at(kBadRow), kv_row_bytes(codec), static_cast<char>(-1));
    for (const std::string& isa : every_table()) {
      const std::vector<float> out = queries.run(isa, cache, 0, kQueries);
      for (std::int64_t i = 0; i < kQueries; ++i) {
        if (queries.last[i] <= kBadRow) continue;
        EXPECT_TRUE(std::all_of(out.begin() + i * kLatent, out.begin() + (i + 1) * kLatent, is_nan))
            << isa << ", " << kv_codec_name(codec) << ", query " << i;
      }
    }
  }
}

}  // namespace
}  // namespace glint
