// Every bit pattern of the small formats, and the rounding between them. The expected values come from decoding the
// fields with ldexp and from a search over all finite values, not from the code under test.

#include "tensor/dtype.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

namespace glint {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
const float kNan = std::numeric_limits<float>::quiet_NaN();

struct Format {
  int exponent_bits;
  int mantissa_bits;
  bool has_infinity;  // false: E4M3, whose only NaN is all ones
};
constexpr Format kHalf{5, 10, true};
constexpr Format kBrain{8, 7, true};
constexpr Format kEight{4, 3, false};

// The value of a bit pattern by the definition of the format.
double decode(std::uint32_t bits, Format f) {
  const int bias = (1 << (f.exponent_bits - 1)) - 1;
  const auto mantissa = static_cast<int>(bits & ((1U << f.mantissa_bits) - 1));
  const auto exponent = static_cast<int>(bits >> f.mantissa_bits & ((1U << f.exponent_bits) - 1));
  const double sign = (bits >> (f.mantissa_bits + f.exponent_bits) & 1U) != 0 ? -1 : 1;
  const bool top = exponent == (1 << f.exponent_bits) - 1;
  if (top && f.has_infinity) return mantissa == 0 ? sign * kInf : kNan;
  if (top && mantissa == (1 << f.mantissa_bits) - 1) return kNan;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - f.mantissa_bits);
  return sign * std::ldexp((1 << f.mantissa_bits) + mantissa, exponent - bias - f.mantissa_bits);
}

// Bit for bit, so that -0 is not 0; all NaN are one.
testing::AssertionResult same(float found, double expected) {
  if (std::isnan(found) && std::isnan(expected)) return testing::AssertionSuccess();
  if (found == expected && std::signbit(found) == std::signbit(expected)) return testing::AssertionSuccess();
  return testing::AssertionFailure() << found << " instead of " << expected;
}

TEST(DType, NamesAndSizes) {
  constexpr std::pair<DType, std::size_t> kSizes[] = {{DType::kF32, 4},    {DType::kF16, 2}, {DType::kBF16, 2},
                                                      {DType::kF8E4M3, 1}, {DType::kI8, 1},  {DType::kU8, 1},
                                                      {DType::kI32, 4},    {DType::kI64, 8}};
  for (const auto& [type, size] : kSizes) {
    EXPECT_EQ(dtype_bytes(type), size);
    EXPECT_EQ(dtype_from_name(dtype_name(type)), type) << dtype_name(type);
  }
  EXPECT_EQ(dtype_from_name("F8_E4M3"), DType::kF8E4M3);
  EXPECT_EQ(dtype_from_name("bf16"), std::nullopt);
  EXPECT_EQ(dtype_from_name(""), std::nullopt);
}

TEST(DType, EveryF16PatternDecodesAndComesBack) {
  for (std::uint32_t b = 0; b <= 0xffff; ++b) {
    const auto bits = static_cast<std::uint16_t>(b);
    const float f = to_float(F16{bits});
    ASSERT_TRUE(same(f, decode(b, kHalf))) << "pattern " << b;
    const std::uint16_t back = to_f16(f).bits;
    if (std::isnan(f)) {
      ASSERT_TRUE(std::isnan(to_float(F16{back}))) << "pattern " << b;
    } else {
      ASSERT_EQ(back, bits);
    }
  }
}

TEST(DType, EveryBF16PatternDecodesAndComesBack) {
  for (std::uint32_t b = 0; b <= 0xffff; ++b) {
    const auto bits = static_cast<std::uint16_t>(b);
    const float f = to_float(BF16{bits});
    ASSERT_TRUE(same(f, decode(b, kBrain))) << "pattern " << b;
    const std::uint16_t back = to_bf16(f).bits;
    if (std::isnan(f)) {
      ASSERT_TRUE(std::isnan(to_float(BF16{back}))) << "pattern " << b;
    } else {
      ASSERT_EQ(back, bits);
    }
  }
}

TEST(DType, EveryE4M3PatternDecodesAndComesBack) {
  for (std::uint32_t b = 0; b <= 0xff; ++b) {
    const auto bits = static_cast<std::uint8_t>(b);
    const float f = f8e4m3_to_float(bits);
    ASSERT_TRUE(same(f, decode(b, kEight))) << "pattern " << b;
    if (std::isnan(f)) {
      ASSERT_EQ(float_to_f8e4m3(f), 0x7f);
    } else {
      ASSERT_EQ(float_to_f8e4m3(f), bits);
    }
  }
}

// Between each two neighbours lo < hi (as bit patterns): the middle goes to the even pattern, the floats next to the
// middle to the nearer one.
template <typename Encode>
void check_rounding(Format f, std::uint32_t last_finite, Encode encode) {
  for (std::uint32_t lo = 0; lo < last_finite; ++lo) {
    const double below = decode(lo, f);
    const double above = decode(lo + 1, f);
    const auto middle = static_cast<float>((below + above) / 2);
    ASSERT_EQ(middle, (below + above) / 2) << "the middle is a float";
    const std::uint32_t even = lo % 2 == 0 ? lo : lo + 1;
    ASSERT_EQ(encode(middle), even) << "tie above " << lo;
    ASSERT_EQ(encode(std::nextafter(middle, -kInf)), lo) << "below the middle above " << lo;
    ASSERT_EQ(encode(std::nextafter(middle, kInf)), lo + 1) << "beyond the middle above " << lo;
    const std::uint32_t sign = 1U << (f.exponent_bits + f.mantissa_bits);
    ASSERT_EQ(encode(-middle), even | sign) << "negative tie above " << lo;
    ASSERT_EQ(encode(-std::nextafter(middle, kInf)), (lo + 1) | sign);
  }
}

TEST(DType, F16RoundsToNearestEven) {
  check_rounding(kHalf, 0x7bff, [](float v) { return std::uint32_t{to_f16(v).bits}; });
}

TEST(DType, BF16RoundsToNearestEven) {
  check_rounding(kBrain, 0x7f7f, [](float v) { return std::uint32_t{to_bf16(v).bits}; });
}

TEST(DType, E4M3RoundsToNearestEven) {
  check_rounding(kEight, 0x7e, [](float v) { return std::uint32_t{float_to_f8e4m3(v)}; });
}

TEST(DType, OverflowAndUnderflow) {
  // Half: 65504 is the largest; from 65520 on it is infinity.
  EXPECT_EQ(to_f16(65504.0F).bits, 0x7bff);
  EXPECT_EQ(to_f16(std::nextafter(65520.0F, 0.0F)).bits, 0x7bff);
  EXPECT_EQ(to_f16(65520.0F).bits, 0x7c00);
  EXPECT_EQ(to_f16(-1e30F).bits, 0xfc00);
  EXPECT_EQ(to_f16(kInf).bits, 0x7c00);
  EXPECT_EQ(to_f16(0x1p-25F).bits, 0);  // half of the smallest: a tie with zero
  EXPECT_EQ(to_f16(-0x1p-26F).bits, 0x8000);
  EXPECT_EQ(to_f16(1e-45F).bits, 0);
  // bfloat16 has float's range, less the last half step.
  EXPECT_EQ(to_bf16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_EQ(to_bf16(-kInf).bits, 0xff80);
  EXPECT_EQ(to_bf16(1e-45F).bits, 0);
  // E4M3 saturates.
  EXPECT_EQ(float_to_f8e4m3(448.0F), 0x7e);
  EXPECT_EQ(float_to_f8e4m3(1e9F), 0x7e);
  EXPECT_EQ(float_to_f8e4m3(-kInf), 0xfe);
  EXPECT_EQ(float_to_f8e4m3(0x1p-10F), 0);  // half of the smallest, 2^-9
  EXPECT_EQ(float_to_f8e4m3(-0.0F), 0x80);
}

TEST(DType, NanStaysNanWhateverItsPayload) {
  for (const std::uint32_t bits : {0x7f800001U, 0x7fc00000U, 0x7fffffffU, 0xff800001U, 0xffffffffU}) {
    const auto nan = std::bit_cast<float>(bits);
    EXPECT_TRUE(std::isnan(to_float(to_bf16(nan)))) << bits;
    EXPECT_TRUE(std::isnan(to_float(to_f16(nan)))) << bits;
    EXPECT_TRUE(std::isnan(f8e4m3_to_float(float_to_f8e4m3(nan)))) << bits;
    EXPECT_EQ(std::signbit(to_float(to_bf16(nan))), std::signbit(nan));
  }
}

TEST(DType, LoadAndStoreByType) {
  for (const DType t : {DType::kF32, DType::kF16, DType::kBF16, DType::kF8E4M3}) {
    std::vector<std::byte> memory(4 * dtype_bytes(t) + 1);
    std::byte* odd = memory.data() + 1;  // unaligned on purpose
    for (std::size_t i = 0; i < 4; ++i) store_from_float(odd, t, i, 1.5F * static_cast<float>(i) - 2.0F);
    for (std::size_t i = 0; i < 4; ++i)
      EXPECT_EQ(load_as_float(odd, t, i), 1.5F * static_cast<float>(i) - 2.0F) << dtype_name(t);
  }
  const std::int8_t i8[] = {-128, 127};
  const std::uint8_t u8[] = {0, 255};
  const std::int32_t i32[] = {-70000, 3};
  const std::int64_t i64[] = {1LL << 40, -1};
  EXPECT_EQ(load_as_float(i8, DType::kI8, 0), -128.0F);
  EXPECT_EQ(load_as_float(u8, DType::kU8, 1), 255.0F);
  EXPECT_EQ(load_as_float(i32, DType::kI32, 0), -70000.0F);
  EXPECT_EQ(load_as_float(i64, DType::kI64, 0), 0x1p40F);
  EXPECT_EQ(load_as_float(i64, DType::kI64, 1), -1.0F);
}

TEST(DTypeDeathTest, StoringAFloatAsAnIntegerIsABug) {
  std::int32_t v = 0;
  EXPECT_DEATH(store_from_float(&v, DType::kI32, 0, 1.0F), "I32");
}

}  // namespace
}  // namespace glint
