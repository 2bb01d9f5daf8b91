#include "tensor/dtype.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/check.hpp"

namespace glint {
namespace {

constexpr std::array<std::pair<DType, std::string_view>, 8> kNames{{{DType::kF32, "F32"},
                                                                    {DType::kF16, "F16"},
                                                                    {DType::kBF16, "BF16"},
                                                                    {DType::kF8E4M3, "F8_E4M3"},
                                                                    {DType::kI8, "I8"},
                                                                    {DType::kU8, "U8"},
                                                                    {DType::kI32, "I32"},
                                                                    {DType::kI64, "I64"}}};

template <typename T>
T load(const void* data, std::size_t i) {
  T v;
  std::memcpy(&v, static_cast<const std::byte*>(data) + i * sizeof(T), sizeof(T));
  return v;
}

template <typename T>
void store(void* data, std::size_t i, T v) {
  std::memcpy(static_cast<std::byte*>(data) + i * sizeof(T), &v, sizeof(T));
}

}  // namespace

std::string_view dtype_name(DType t) {
  for (const auto& [dtype, name] : kNames) {
    if (dtype == t) return name;
  }
  return "?";
}

std::optional<DType> dtype_from_name(std::string_view safetensors_name) {
  for (const auto& [dtype, name] : kNames) {
    if (name == safetensors_name) return dtype;
  }
  return std::nullopt;
}

float to_float(F16 v) {
  const std::uint32_t sign = static_cast<std::uint32_t>(v.bits & 0x8000U) << 16;
  const std::uint32_t exponent = (v.bits >> 10) & 0x1fU;
  const std::uint32_t mantissa = v.bits & 0x3ffU;
  if (exponent == 0) {  // zero or subnormal: mantissa · 2^-24
    const float f = static_cast<float>(mantissa) * 0x1p-24F;
    return sign != 0 ? -f : f;
  }
  const std::uint32_t e = exponent == 31 ? 255U : exponent + 112U;
  return std::bit_cast<float>(sign | (e << 23) | (mantissa << 13));
}

F16 to_f16(float f) {
  const auto u = std::bit_cast<std::uint32_t>(f);
  const auto sign = static_cast<std::uint16_t>((u >> 16) & 0x8000U);
  const std::uint32_t a = u & 0x7fffffffU;
  if (a > 0x7f800000U) return {static_cast<std::uint16_t>(sign | 0x7e00U)};
  if (a >= 0x477ff000U) return {static_cast<std::uint16_t>(sign | 0x7c00U)};  // rounds to ≥ 65520: infinity
  if (a < 0x38800000U) {  // below 2^-14: subnormal half; the addition of 0.5 rounds at 2^-24 to nearest even
    const float magic = std::bit_cast<float>(a) + 0.5F;
    return {static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(magic) - 0x3f000000U))};
  }
  const std::uint32_t rounded = a + 0xfffU + ((a >> 13) & 1U);
  return {static_cast<std::uint16_t>(sign | ((rounded - 0x38000000U) >> 13))};
}

float f8e4m3_to_float(std::uint8_t bits) {
  const int exponent = (bits >> 3) & 15;
  const int mantissa = bits & 7;
  if (exponent == 15 && mantissa == 7) return std::nanf("");
  const float f = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (bits & 0x80) != 0 ? -f : f;
}

std::uint8_t float_to_f8e4m3(float f) {
  if (std::isnan(f)) return 0x7f;
  const int sign = std::signbit(f) ? 0x80 : 0;
  const float a = std::fabs(f);
  if (a >= 448.0F) return static_cast<std::uint8_t>(sign | 0x7e);
  int exponent = 0;
  std::frexp(a, &exponent);                  // a = m · 2^exponent with m in [0.5, 1)
  const int e = std::max(exponent - 1, -6);  // exponent of the leading bit, clamped to the subnormal range
  const int steps = static_cast<int>(std::nearbyint(std::ldexp(a, 3 - e)));  // multiples of 2^(e-3), to nearest even
  const int code = steps < 8 ? steps : ((e + 7) << 3) + (steps - 8);         // a carry to 16 rolls into the exponent
  return static_cast<std::uint8_t>(sign | code);
}

float load_as_float(const void* data, DType t, std::size_t i) {
  switch (t) {
    case DType::kF32:
      return load<float>(data, i);
    case DType::kF16:
      return to_float(load<F16>(data, i));
    case DType::kBF16:
      return to_float(load<BF16>(data, i));
    case DType::kF8E4M3:
      return f8e4m3_to_float(load<std::uint8_t>(data, i));
    case DType::kI8:
      return load<std::int8_t>(data, i);
    case DType::kU8:
      return load<std::uint8_t>(data, i);
    case DType::kI32:
      return static_cast<float>(load<std::int32_t>(data, i));
    case DType::kI64:
      return static_cast<float>(load<std::int64_t>(data, i));
  }
  return 0;
}

void store_from_float(void* data, DType t, std::size_t i, float v) {
  switch (t) {
    case DType::kF32:
      store(data, i, v);
      return;
    case DType::kF16:
      store(data, i, to_f16(v));
      return;
    case DType::kBF16:
      store(data, i, to_bf16(v));
      return;
    case DType::kF8E4M3:
      store(data, i, float_to_f8e4m3(v));
      return;
    default:
      CHECK(false, "store_from_float of integer type " + std::string(dtype_name(t)));
  }
}

}  // namespace glint
