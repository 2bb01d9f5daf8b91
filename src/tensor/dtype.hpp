#pragma once
// Element types, and the scalar conversions that give them their meaning.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace glint {

enum class DType : std::uint8_t { kF32, kF16, kBF16, kF8E4M3, kI8, kU8, kI32, kI64 };

// Bytes an element.
constexpr std::size_t dtype_bytes(DType t) {
  switch (t) {
    case DType::kI64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kF8E4M3:
    case DType::kI8:
    case DType::kU8:
      return 1;
  }
  return 0;
}

// The names that safetensors uses ("F32", "BF16", "F8_E4M3" …).
std::string_view dtype_name(DType t);
std::optional<DType> dtype_from_name(std::string_view safetensors_name);

// bfloat16 and half as storage; arithmetic happens in float.
struct BF16 {
  std::uint16_t bits;
};
struct F16 {
  std::uint16_t bits;
};

constexpr float to_float(BF16 v) { return std::bit_cast<float>(static_cast<std::uint32_t>(v.bits) << 16); }

// Round to nearest even; NaN stays a (quiet) NaN.
constexpr BF16 to_bf16(float f) {
  const auto u = std::bit_cast<std::uint32_t>(f);
  if ((u & 0x7fffffffU) > 0x7f800000U) return {static_cast<std::uint16_t>((u >> 16) | 0x40U)};
  return {static_cast<std::uint16_t>((u + 0x7fffU + ((u >> 16) & 1U)) >> 16)};
}

float to_float(F16 v);
F16 to_f16(float f);  // round to nearest even; overflow gives infinity

// OCP FP8 E4M3 (no infinities, NaN = 0x7f and 0xff, largest finite 448).
float f8e4m3_to_float(std::uint8_t bits);
std::uint8_t float_to_f8e4m3(float f);  // round to nearest even, saturating to ±448; NaN gives 0x7f

// Element i of an array of type t as a float. For reference code and tests; kernels have their own loads.
float load_as_float(const void* data, DType t, std::size_t i);
void store_from_float(void* data, DType t, std::size_t i, float v);

}  // namespace glint
