#include "ops/kv_codec.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.hpp"

namespace glint {
namespace {

constexpr std::array<std::string_view, kKvCodecs.size()> kNames{"f32", "bf16", "fp8", "int8", "int4"};

float largest(const float* v, int n) {
  float top = 0;
  for (int i = 0; i < n; ++i) top = std::max(top, std::fabs(v[i]));
  return top;
}

bool in_range(const float* v, int n) {
  return std::all_of(v, v + n, [](float x) { return std::fabs(x) <= kKvLargest; });
}

BF16 scale_for(float top, float steps) { return to_bf16(std::max(top / steps, kKvSmallestScale)); }

int nearest_code(float v, int lowest, int highest) {
  return static_cast<int>(std::clamp(std::nearbyint(v), static_cast<float>(lowest), static_cast<float>(highest)));
}

// 64 codes, and the scales in their lowest bits. scales[0] and [1] are the latent's.
void encode_rotary(const float* v, std::array<BF16, kKvScales> scales, std::int8_t* codes) {
  for (int g = 0; g < kRope / kKvRopeGroup; ++g)
    scales[static_cast<std::size_t>(2 + g)] = scale_for(largest(v + g * kKvRopeGroup, kKvRopeGroup), 126);
  for (int i = 0; i < kRope; ++i) {
    const float inverse = 1.0F / to_float(scales[static_cast<std::size_t>(2 + i / kKvRopeGroup)]);
    const int bit = scales[static_cast<std::size_t>(i / 16)].bits >> (i % 16) & 1;
    // Codes 2 n + bit: the largest value is at 126.3 of 127 steps (bfloat16's rounding of the scale included).
    codes[i] =
        static_cast<std::int8_t>(2 * nearest_code((v[i] * inverse - static_cast<float>(bit)) * 0.5F, -64, 63) + bit);
  }
}

std::array<float, kKvScales> scales_of(const std::int8_t* codes) {
  std::array<float, kKvScales> scales{};
  for (std::size_t k = 0; k < scales.size(); ++k) {
    unsigned bits = 0;
    for (std::size_t b = 0; b < 16; ++b) bits |= (static_cast<unsigned>(codes[16 * k + b]) & 1U) << b;
    scales[k] = to_float(BF16{static_cast<std::uint16_t>(bits)});
  }
  return scales;
}

void decode_rotary(const std::int8_t* codes, float* v) {
  const std::array<float, kKvScales> scales = scales_of(codes);
  for (int i = 0; i < kRope; ++i)
    v[i] = static_cast<float>(codes[i]) * scales[static_cast<std::size_t>(2 + i / kKvRopeGroup)];
}

// The smallest power of two under which no value exceeds 448.
BF16 fp8_scale(float top) {
  const auto u = std::bit_cast<std::uint32_t>(std::max(top / 448.0F, kKvSmallestScale));
  return to_bf16(std::bit_cast<float>((u + 0x7fffffU) & 0x7f800000U));
}

void encode_fp8(const float* v, std::uint8_t* row) {
  const BF16 scale = fp8_scale(largest(v, kLatent));
  const float inverse = 1.0F / to_float(scale);
  for (int i = 0; i < kLatent; ++i) row[i] = float_to_f8e4m3(v[i] * inverse);
  encode_rotary(v + kLatent, {scale}, reinterpret_cast<std::int8_t*>(row + KvRow8::kRotary));
}

void encode_int8(const float* v, std::uint8_t* row) {
  float latent[kLatent];
  std::copy_n(v, kLatent, latent);
  kv_hadamard(latent);
  const BF16 scale = scale_for(largest(latent, kLatent), 127);
  const float inverse = 1.0F / to_float(scale);
  for (int i = 0; i < kLatent; ++i) row[i] = static_cast<std::uint8_t>(nearest_code(latent[i] * inverse, -127, 127));
  encode_rotary(v + kLatent, {scale}, reinterpret_cast<std::int8_t*>(row + KvRow8::kRotary));
}

// INT4's group scales: exponent and mantissa are the upper bits of a float's, 111 lower in the exponent.
constexpr std::uint32_t kScaleBias = 111U << 3;
float group_scale(int code) { return std::bit_cast<float>((static_cast<std::uint32_t>(code) + kScaleBias) << 20); }
int nearest_group_scale(float s) {
  const auto u = std::bit_cast<std::uint32_t>(std::clamp(s, 0x1p-16F, 61440.0F));
  return static_cast<int>(((u + 0x80000U) >> 20) - kScaleBias);
}

// The squared error of a group under a scale; summed in a tree that vector code of any width can follow.
float group_error(const float* v, float scale) {
  const float inverse = 1.0F / scale;
  float e[16];
  for (int i = 0; i < 16; ++i) {
    const float a = v[i] - static_cast<float>(nearest_code(v[i] * inverse, -8, 7)) * scale;
    const float b = v[16 + i] - static_cast<float>(nearest_code(v[16 + i] * inverse, -8, 7)) * scale;
    const float aa = a * a;
    const float bb = b * b;
    e[i] = aa + bb;
  }
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) e[i] += e[i + half];
  }
  return e[0];
}

void encode_int4(const float* v, std::uint8_t* row) {
  float latent[kLatent];
  std::copy_n(v, kLatent, latent);
  kv_hadamard(latent);
  for (int g = 0; g < KvRow4::kGroups; ++g) {
    const float* group = latent + g * KvRow4::kGroup;
    const int widest = nearest_group_scale(largest(group, KvRow4::kGroup) / 7.5F);
    int best = widest;
    float best_error = std::numeric_limits<float>::infinity();
    for (int code = widest; code > widest - 4 && code >= 0; --code) {
      const float error = group_error(group, group_scale(code));
      if (error < best_error) best = code, best_error = error;
    }
    row[KvRow4::kScales + g] = static_cast<std::uint8_t>(best);
    const float inverse = 1.0F / group_scale(best);
    for (int i = 0; i < 16; ++i) {
      const int low = nearest_code(group[i] * inverse, -8, 7) + 8;
      const int high = nearest_code(group[16 + i] * inverse, -8, 7) + 8;
      row[KvRow4::kCodes + 16 * g + i] = static_cast<std::uint8_t>(low | high << 4);
    }
  }
  encode_rotary(v + kLatent, {}, reinterpret_cast<std::int8_t*>(row + KvRow4::kRotary));
}

void decode_int4(const std::uint8_t* row, float* v) {
  for (int g = 0; g < KvRow4::kGroups; ++g) {
    const float scale = group_scale(row[KvRow4::kScales + g]);
    for (int i = 0; i < 16; ++i) {
      const int byte = row[KvRow4::kCodes + 16 * g + i];
      v[g * KvRow4::kGroup + i] = static_cast<float>((byte & 15) - 8) * scale;
      v[g * KvRow4::kGroup + 16 + i] = static_cast<float>((byte >> 4) - 8) * scale;
    }
  }
  kv_hadamard(v);
  decode_rotary(reinterpret_cast<const std::int8_t*>(row + KvRow4::kRotary), v + kLatent);
}

void decode_8(KvCodec codec, const std::uint8_t* row, float* v) {
  const auto* rotary = reinterpret_cast<const std::int8_t*>(row + KvRow8::kRotary);
  const float scale = scales_of(rotary)[0];
  for (int i = 0; i < kLatent; ++i) {
    const float code =
        codec == KvCodec::kFp8 ? f8e4m3_to_float(row[i]) : static_cast<float>(static_cast<std::int8_t>(row[i]));
    v[i] = code * scale;
  }
  if (kv_is_rotated(codec)) kv_hadamard(v);
  decode_rotary(rotary, v + kLatent);
}

}  // namespace

std::string_view kv_codec_name(KvCodec codec) { return kNames[static_cast<std::size_t>(codec)]; }

std::optional<KvCodec> kv_codec_from_name(std::string_view name) {
  for (const KvCodec codec : kKvCodecs) {
    if (kv_codec_name(codec) == name) return codec;
  }
  return std::nullopt;
}

void kv_hadamard(float* v) {
  for (int h = kKvHadamardStride; h < kLatent; h *= 2) {
    for (int i = 0; i < kLatent; ++i) {
      if ((i & h) != 0) continue;
      const float a = v[i];
      const float b = v[i + h];
      v[i] = a + b;
      v[i + h] = a - b;
    }
  }
  for (int i = 0; i < kLatent; ++i) v[i] *= kKvHadamardScale;
}

void encode_kv_row(KvCodec codec, const float* values, void* row) {
  auto* bytes = static_cast<std::uint8_t*>(row);
  if (codec == KvCodec::kF32 || codec == KvCodec::kBF16) {
    const DType dtype = codec == KvCodec::kF32 ? DType::kF32 : DType::kBF16;
    for (std::size_t i = 0; i < kKvRow; ++i) store_from_float(row, dtype, i, values[i]);
    return;
  }
  if (!in_range(values, kKvRow)) {
    std::memset(row, 0xff, static_cast<std::size_t>(kv_row_bytes(codec)));
    return;
  }
  if (codec == KvCodec::kFp8) return encode_fp8(values, bytes);
  if (codec == KvCodec::kInt8) return encode_int8(values, bytes);
  CHECK(codec == KvCodec::kInt4);
  encode_int4(values, bytes);
}

void decode_kv_row(KvCodec codec, const void* row, float* values) {
  const auto* bytes = static_cast<const std::uint8_t*>(row);
  if (codec == KvCodec::kF32 || codec == KvCodec::kBF16) {
    const DType dtype = codec == KvCodec::kF32 ? DType::kF32 : DType::kBF16;
    for (std::size_t i = 0; i < kKvRow; ++i) values[i] = load_as_float(row, dtype, i);
    return;
  }
  if (codec == KvCodec::kInt4) return decode_int4(bytes, values);
  decode_8(codec, bytes, values);
}

}  // namespace glint
