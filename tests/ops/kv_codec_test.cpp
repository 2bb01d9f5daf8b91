#include "ops/kv_codec.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "ops/stage.hpp"

namespace glint {
namespace {

constexpr std::array kShort{KvCodec::kFp8, KvCodec::kInt8, KvCodec::kInt4};

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

// Means on these values: 0.026, 0.0076, 0.084 and 0.011; a single row may have an unlucky scale.
TEST(KvCodec, ErrorOfNormalValuesStaysWithinTheCodesSteps) {
  Random random(7);
  for (const float size : {1e-4F, 1.0F, 300.0F}) {
    for (int repeat = 0; repeat < 20; ++repeat) {
      const std::vector<float> values = random.normals(kKvRow, size);
      EXPECT_LT(error(round_trip(KvCodec::kFp8, values), values, 0, kLatent), 0.033) << size;
      EXPECT_LT(error(round_trip(KvCodec::kInt8, values), values, 0, kLatent), 0.012) << size;
      if (size > 1e-3F) { EXPECT_LT(error(round_trip(KvCodec::kInt4, values), values, 0, kLatent), 0.105) << size; }
      for (const KvCodec codec : kShort)
        EXPECT_LT(error(round_trip(codec, values), values, kLatent, kKvRow), 0.018) << kv_codec_name(codec);
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

TEST(KvCodec, ScalesTravelInTheLowestBitsOfTheRotaryCodes) {
  std::vector<float> values(kKvRow, 0.0F);
  values[kLatent + 3] = 126.0F * 0.5F;    // scale 2: 0.5 exactly
  values[kLatent + 40] = -126.0F * 2.0F;  // scale 3: 2
  values[0] = 448.0F * 4.0F;              // FP8's scale 0: 4
  const std::vector<std::uint8_t> row = encode(KvCodec::kFp8, values);
  std::uint16_t scales[kKvScales] = {};
  for (int i = 0; i < kRope; ++i)
    scales[i / 16] = static_cast<std::uint16_t>(scales[i / 16] |
                                                (row[static_cast<std::size_t>(KvRow8::kRotary + i)] & 1) << (i % 16));
  EXPECT_EQ(to_float(BF16{scales[0]}), 4.0F);
  EXPECT_EQ(scales[1], 0);
  EXPECT_EQ(to_float(BF16{scales[2]}), 0.5F);
  EXPECT_EQ(to_float(BF16{scales[3]}), 2.0F);
  EXPECT_EQ(row[0], 0x7e);  // 448
  EXPECT_EQ(round_trip(KvCodec::kFp8, values)[0], values[0]);
  EXPECT_NEAR(round_trip(KvCodec::kFp8, values)[kLatent + 3], 63.0F, 0.5F);
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
  EXPECT_EQ(row[16], (0 << 4) | 15);             // -8 above, 7 below
  EXPECT_EQ(row[16 + 5], (8 << 4) | 9);
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

TEST(KvCodec, ZerosStayZeroUpToTheScaleBits) {
  for (const KvCodec codec : kShort) {
    for (const float v : round_trip(codec, std::vector<float>(kKvRow, 0.0F))) EXPECT_LT(std::fabs(v), 1e-20F);
  }
}

TEST(KvCodec, WhatIsNotFiniteBecomesAPoisonedRow) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const KvCodec codec : kShort) {
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
