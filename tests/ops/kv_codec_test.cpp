#include "ops/kv_codec.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "ops/stage.hpp"

namespace glint {
namespace {

constexpr std::array kShort{KvCodec::kFp8, KvCodec::kInt8, KvCodec::kInt4};
constexpr std::array kCoded{KvCodec::kFp8, KvCodec::kInt8, KvCodec::kInt4, KvCodec::kInt16};

std::vector<std::uint8_t> encode(KvCodec codec, const std::vector<float>& values) {
  std::vector<std::uint8_t> row(static_cast<std::size_t>(kv_row_bytes(codec)), 0xaa);
  encode_kv_row(codec, values.data(), row.data());
  return row;
}

std::vector<float> round_trip(KvCodec codec, const std::vector<float>& values) {
  std::vector<float> out(kKvRow);
  decode_kv_row(codec, encode(codec, values).data(), out.data());
  return out;
}

// Root mean square error over [from, to), relative to the values' own.
double error(const std::vector<float>& a, const std::vector<float>& b, int from, int to) {
  double e = 0, s = 0;
  for (std::size_t i = static_cast<std::size_t>(from); i < static_cast<std::size_t>(to); ++i) {
    e += (a[i] - b[i]) * (a[i] - b[i]);
    s += b[i] * b[i];
  }
  return std::sqrt(e / s);
}

TEST(KvCodec, NamesGoBothWays) {
  for (const KvCodec codec : kKvCodecs) EXPECT_EQ(kv_codec_from_name(kv_codec_name(codec)), codec);
  EXPECT_EQ(kv_codec_name(KvCodec::kInt4), "int4");
  EXPECT_EQ(kv_codec_from_name("int5"), std::nullopt);
}

TEST(KvCodec, ShortRowsSaveHalfAndSeventyPercent) {
  EXPECT_EQ(kv_row_bytes(KvCodec::kBF16), 1152);
  EXPECT_EQ(kv_row_bytes(KvCodec::kFp8), 576);
  EXPECT_EQ(kv_row_bytes(KvCodec::kInt8), 576);
  EXPECT_EQ(kv_row_bytes(KvCodec::kInt4), 336);
}

// Means on these values: 0.027, 0.008, 0.094 and 0.0047; a single row may have an unlucky scale.
TEST(KvCodec, ErrorOfNormalValuesStaysWithinTheCodesSteps) {
  Random random(7);
  for (const float size : {1e-4F, 1.0F, 300.0F}) {
    for (int repeat = 0; repeat < 20; ++repeat) {
      const std::vector<float> values = random.normals(kKvRow, size);
      EXPECT_LT(error(round_trip(KvCodec::kFp8, values), values, 0, kLatent), 0.033) << size;
      EXPECT_LT(error(round_trip(KvCodec::kInt8, values), values, 0, kLatent), 0.012) << size;
      if (size > 1e-3F) { EXPECT_LT(error(round_trip(KvCodec::kInt4, values), values, 0, kLatent), 0.11) << size; }
      for (const KvCodec codec : kShort)
        EXPECT_LT(error(round_trip(codec, values), values, kLatent, kKvRow), 0.008) << kv_codec_name(codec);
    }
  }
}

// One channel of 50 times the others' size: the transform shares it out, and the others keep two thirds of their worth.
TEST(KvCodec, AnOutlierDoesNotDrownTheOthers) {
  Random random(8);
  std::vector<float> values = random.normals(kKvRow, 1.0F);
  values[77] = 50;
  std::vector<float> out = round_trip(KvCodec::kInt8, values);
  EXPECT_NEAR(out[77], 50, 0.5);
  out[77] = values[77] = 0;
  EXPECT_LT(error(out, values, 0, kLatent), 0.05);
}

std::uint64_t side_word(const std::vector<std::uint8_t>& codes) {
  std::uint64_t side = ~std::uint64_t{0};
  for (std::size_t i = 0; i < kLatent; ++i) side ^= std::uint64_t{codes[i] & 1U} << (i % 64);
  return side;
}

TEST(KvCodec, ScalesTravelInTheSideWord) {
  Random random(10);
  std::vector<float> values = random.normals(kKvRow, 1.0F);
  values[3] = 448.0F * 4.0F;  // FP8's scale: 4
  for (std::size_t g = 0; g < 4; ++g) values[kLatent + 16 * g + 5] = -127.0F * std::exp2(static_cast<float>(g) - 1);
  const std::vector<std::uint8_t> row = encode(KvCodec::kFp8, values);
  const std::uint64_t side = side_word(row);
  EXPECT_EQ(to_float(BF16{static_cast<std::uint16_t>(side)}), 4.0F);
  for (int g = 0; g < 4; ++g) {
    const auto bits = static_cast<std::uint32_t>(side >> (16 + 12 * g) & 0xfff) << 19;
    EXPECT_EQ(std::bit_cast<float>(bits), std::exp2(static_cast<float>(g) - 1));
    EXPECT_EQ(static_cast<std::int8_t>(row[static_cast<std::size_t>(KvRow8::kRotary + 16 * g + 5)]), -127);
  }
}

// Of 512 codes about 32 are not the nearest, and those are the ones near the middle between two.
TEST(KvCodec, TheSideWordMovesFewCodesAndLittle) {
  Random random(11);
  const std::vector<float> values = random.normals(kKvRow, 1.0F);
  std::vector<float> rotated = values;
  kv_hadamard(rotated.data());
  const std::vector<std::uint8_t> row = encode(KvCodec::kInt8, values);
  const float scale = to_float(BF16{static_cast<std::uint16_t>(side_word(row))});
  int moved = 0;
  for (std::size_t i = 0; i < kLatent; ++i) {
    const float off = std::fabs(rotated[i] / scale - static_cast<float>(static_cast<std::int8_t>(row[i])));
    EXPECT_LT(off, 0.95F);
    moved += off > 0.5F;
  }
  EXPECT_GT(moved, 10);
  EXPECT_LT(moved, 60);
}

// A step is 1/16,382 of a part's largest value, or up to 1/128 more: scales are bfloat16. Codes that carry scales may
// be a whole step off, others half.
TEST(KvCodec, Int16CodesAreHalfAStepOffAtMostAndThoseWithScalesAWholeOne) {
  Random random(12);
  for (const float size : {1e-4F, 1.0F, 300.0F}) {
    std::vector<float> values = random.normals(kKvRow, size);
    values[7] *= 20;  // columns 0 to 31 carry the scales
    const std::vector<float> out = round_trip(KvCodec::kInt16, values);
    const std::vector<std::uint8_t> row = encode(KvCodec::kInt16, values);
    int moved = 0;
    for (const auto& [from, to] : {std::pair{0, kLatent}, std::pair{kLatent, kKvRow}}) {
      float top = 0;
      for (int i = from; i < to; ++i) top = std::max(top, std::fabs(values[static_cast<std::size_t>(i)]));
      const float step = top / (KvRow16::kMost - 1);
      for (int i = from; i < to; ++i) {
        const auto at = static_cast<std::size_t>(i);
        std::int16_t code;
        std::memcpy(&code, row.data() + 2 * static_cast<std::size_t>(KvRow16::place(i)), sizeof code);
        EXPECT_LE(std::abs(code), KvRow16::kMost);
        const float off = std::fabs(out[at] - values[at]) / step;
        EXPECT_LE(off, i < KvRow16::kBlock ? 1.01F : 0.51F) << i;
        moved += off > 0.51F;
      }
      EXPECT_LT(error(out, values, from, to), 7e-4);
    }
    EXPECT_GT(moved, 5);  // about half of 32
  }
}

TEST(KvCodec, Int16PlacesGoBothWaysAndFoursStayTogether) {
  for (int i = 0; i < kKvRow; ++i) {
    EXPECT_EQ(KvRow16::column(KvRow16::place(i)), i);
    EXPECT_EQ(KvRow16::place(i) / 4, KvRow16::place(i / 4 * 4) / 4);
  }
  EXPECT_EQ(KvRow16::place(16), 4);
  EXPECT_EQ(KvRow16::place(4), 8);
  EXPECT_EQ(KvRow16::place(35), 35);
}

TEST(KvCodec, Int4GroupsHoldValueIAndSixteenPlusI) {
  std::vector<float> rotated(kKvRow, 0.0F);  // what the row shall hold after the transform
  rotated[32] = 7.0F;
  rotated[32 + 16] = -8.0F;
  rotated[32 + 5] = 1.0F;
  std::vector<float> values = rotated;
  kv_hadamard(values.data());
  const std::vector<std::uint8_t> row = encode(KvCodec::kInt4, values);
  EXPECT_EQ(row[KvRow4::kScales + 1], 16 << 3);  // 2^0
  EXPECT_EQ(row[16], (0 << 4) | 15);             // -8 above, 7 below; the side word may move zeros, not these
  EXPECT_EQ(row[16 + 5] & 15, 9);
}

TEST(KvCodec, HadamardIsItsOwnInverse) {
  Random random(9);
  const std::vector<float> values = random.normals(kLatent, 1.0F);
  std::vector<float> twice = values;
  kv_hadamard(twice.data());
  double square = 0;
  for (const float v : twice) square += v * v;
  double before = 0;
  for (const float v : values) before += v * v;
  EXPECT_NEAR(square / before, 1, 1e-5);
  kv_hadamard(twice.data());
  for (std::size_t i = 0; i < kLatent; ++i) EXPECT_NEAR(twice[i], values[i], 1e-5);
}

TEST(KvCodec, ZerosStayNearZero) {
  for (const KvCodec codec : kCoded) {
    for (const float v : round_trip(codec, std::vector<float>(kKvRow, 0.0F)))
      EXPECT_LT(std::fabs(v), codec == KvCodec::kInt4 ? 2e-5F : 1e-20F);
  }
}

TEST(KvCodec, WhatIsNotFiniteBecomesAPoisonedRow) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const KvCodec codec : kCoded) {
    for (const float bad : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN(), 3e38F}) {
      for (const std::size_t place : {std::size_t{5}, std::size_t{kLatent + 9}}) {
        std::vector<float> values(kKvRow, 1.0F);
        values[place] = bad;
        const std::vector<std::uint8_t> row = encode(codec, values);
        EXPECT_TRUE(std::all_of(row.begin(), row.end(), [](std::uint8_t b) { return b == 0xff; }));
        const std::vector<float> out = round_trip(codec, values);
        EXPECT_TRUE(std::all_of(out.begin() + kLatent, out.end(), [](float v) { return std::isnan(v); }));
      }
    }
  }
}

}  // namespace
}  // namespace glint
