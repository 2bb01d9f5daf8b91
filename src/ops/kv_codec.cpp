#include "ops/kv_codec.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace glint {
namespace {

constexpr std::array<std::string_view, kKvCodecs.size()> kNames{"f32", "bf16", "f16", "fp8", "int8", "int4", "int16"};

float largest(const float* v, int n) {
  float top = 0;
  for (int i = 0; i < n; ++i) top = std::max(top, std::fabs(v[i]));
  return top;
}

bool in_range(const float* v, int n) {
  return std::all_of(v, v + n, [](float x) { return std::fabs(x) <= kKvLargest; });
}

int nearest_code(float v, int lowest, int highest) {
  return static_cast<int>(std::clamp(std::nearbyint(v), static_cast<float>(lowest), static_cast<float>(highest)));
}

// The latent's codes on their way into a row: the nearest code, the other neighbour, and what that one costs in squared
// error.
struct LatentCodes {
  std::array<int, kLatent> code;
  std::array<int, kLatent> other;
  std::array<float, kLatent> cost;
};

void put_integer(LatentCodes& to, int i, float steps, float step, int lowest, int highest) {
  const int code = nearest_code(steps, lowest, highest);
  const float off = steps - static_cast<float>(code);
  int other = off >= 0 ? code + 1 : code - 1;
  if (other > highest) other = code - 1;
  if (other < lowest) other = code + 1;
  const float far = steps - static_cast<float>(other);
  const float far2 = far * far;
  const float off2 = off * off;
  const auto at = static_cast<std::size_t>(i);
  to.code[at] = code;
  to.other[at] = other;
  to.cost[at] = (far2 - off2) * (step * step);
}

void put_fp8(LatentCodes& to, int i, float v) {
  constexpr int kHighest = 0x7e;  // 448
  const int byte = float_to_f8e4m3(v);
  const int code = byte & 0x7f;
  const float off = std::fabs(v) - f8e4m3_to_float(static_cast<std::uint8_t>(code));
  int other = off >= 0 ? code + 1 : code - 1;
  if (other > kHighest) other = code - 1;
  const float far = std::fabs(v) - f8e4m3_to_float(static_cast<std::uint8_t>(other));
  const float far2 = far * far;
  const float off2 = off * off;
  const auto at = static_cast<std::size_t>(i);
  to.code[at] = byte;
  to.other[at] = other | (byte & 0x80);
  to.cost[at] = far2 - off2;
}

// Makes the codes carry bits [first_bit, 64) of the side word.
void embed(LatentCodes& codes, std::uint64_t side, int first_bit) {
  for (int b = first_bit; b < kKvSideBits; ++b) {
    int parity = 0;
    auto cheapest = static_cast<std::size_t>(b);
    for (auto i = static_cast<std::size_t>(b); i < kLatent; i += kKvSideBits) {
      parity ^= codes.code[i] & 1;
      if (codes.cost[i] < codes.cost[cheapest]) cheapest = i;
    }
    const int wanted = static_cast<int>(~side >> b & 1);
    if (parity != wanted) codes.code[cheapest] = codes.other[cheapest];
  }
}

BF16 bf16_scale(float top, float steps) { return to_bf16(std::max(top / steps, kKvSmallestScale)); }

// 64 rotary codes; returns the side word with their scales and the latent's.
std::uint64_t encode_rotary(const float* v, BF16 latent_scale, std::uint8_t* codes) {
  std::uint64_t side = latent_scale.bits;
  for (int g = 0; g < kKvRopeGroups; ++g) {
    const float* group = v + g * kKvRopeGroup;
    const auto exact = std::bit_cast<std::uint32_t>(std::max(largest(group, kKvRopeGroup) / 127.0F, kKvSmallestScale));
    const std::uint32_t scale = (exact + 0x7ffffU) >> 19;  // upwards, so that no code is beyond 127
    side |= std::uint64_t{scale} << (kKvLatentScaleBits + g * kKvRopeScaleBits);
    const float inverse = 1.0F / std::bit_cast<float>(scale << 19);
    for (int i = 0; i < kKvRopeGroup; ++i)
      codes[g * kKvRopeGroup + i] = static_cast<std::uint8_t>(nearest_code(group[i] * inverse, -127, 127));
  }
  return side;
}

void decode_rotary(const std::uint8_t* codes, std::uint64_t side, float* v) {
  for (int i = 0; i < kRope; ++i) {
    const auto bits = static_cast<std::uint32_t>(side >> (kKvLatentScaleBits + i / kKvRopeGroup * kKvRopeScaleBits));
    v[i] = static_cast<float>(static_cast<std::int8_t>(codes[i])) * std::bit_cast<float>((bits & 0xfffU) << 19);
  }
}

float latent_scale(std::uint64_t side) { return to_float(BF16{static_cast<std::uint16_t>(side)}); }

std::uint64_t side_word(const std::array<int, kLatent>& codes) {
  std::uint64_t side = ~std::uint64_t{0};
  for (std::size_t i = 0; i < kLatent; ++i) side ^= std::uint64_t{codes[i] & 1U} << (i % kKvSideBits);
  return side;
}

// The smallest power of two under which no value exceeds 448.
BF16 fp8_scale(float top) {
  const auto u = std::bit_cast<std::uint32_t>(std::max(top / 448.0F, kKvSmallestScale));
  return to_bf16(std::bit_cast<float>((u + 0x7fffffU) & 0x7f800000U));
}

void encode_8(KvCodec codec, const float* v, std::uint8_t* row) {
  float latent[kLatent];
  std::copy_n(v, kLatent, latent);
  if (kv_is_rotated(codec)) kv_hadamard(latent);
  const float top = largest(latent, kLatent);
  const BF16 scale = codec == KvCodec::kFp8 ? fp8_scale(top) : bf16_scale(top, 127);
  const float inverse = 1.0F / to_float(scale);
  LatentCodes codes;
  for (int i = 0; i < kLatent; ++i) {
    if (codec == KvCodec::kFp8) put_fp8(codes, i, latent[i] * inverse);
    else put_integer(codes, i, latent[i] * inverse, 1, -127, 127);
  }
  embed(codes, encode_rotary(v + kLatent, scale, row + KvRow8::kRotary), 0);
  for (std::size_t i = 0; i < kLatent; ++i) row[i] = static_cast<std::uint8_t>(codes.code[i]);
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
  LatentCodes codes;
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
    for (int i = 0; i < KvRow4::kGroup; ++i)
      put_integer(codes, g * KvRow4::kGroup + i, group[i] * inverse, group_scale(best), -8, 7);
  }
  embed(codes, encode_rotary(v + kLatent, {}, row + KvRow4::kRotary), kKvLatentScaleBits);
  for (std::size_t i = 0; i < kLatent; ++i) {
    const int nibble = codes.code[i] + 8;
    std::uint8_t& byte = row[i / 32 * 16 + i % 16];
    byte = static_cast<std::uint8_t>(i % 32 < 16 ? nibble : byte | nibble << 4);
  }
}

void decode_int4(const std::uint8_t* row, float* v) {
  std::array<int, kLatent> codes;
  for (std::size_t i = 0; i < kLatent; ++i) {
    const int byte = row[i / 32 * 16 + i % 16];
    codes[i] = (i % 32 < 16 ? byte & 15 : byte >> 4) - 8;
    v[i] = static_cast<float>(codes[i]) * group_scale(row[KvRow4::kScales + i / KvRow4::kGroup]);
  }
  kv_hadamard(v);
  decode_rotary(row + KvRow4::kRotary, side_word(codes), v + kLatent);
}

void decode_8(KvCodec codec, const std::uint8_t* row, float* v) {
  std::array<int, kLatent> codes;
  std::copy_n(row, kLatent, codes.begin());
  const std::uint64_t side = side_word(codes);
  const float scale = latent_scale(side);
  for (int i = 0; i < kLatent; ++i) {
    const float code =
        codec == KvCodec::kFp8 ? f8e4m3_to_float(row[i]) : static_cast<float>(static_cast<std::int8_t>(row[i]));
    v[i] = code * scale;
  }
  if (kv_is_rotated(codec)) kv_hadamard(v);
  decode_rotary(row + KvRow8::kRotary, side, v + kLatent);
}

// A part's scale, rounded up so that no code is beyond KvRow16::kMost, whichever neighbour it takes.
BF16 scale_16(float top) {
  const auto u = std::bit_cast<std::uint32_t>(std::max(top / (KvRow16::kMost - 1), kKvSmallestScale));
  return {static_cast<std::uint16_t>((u + 0xffffU) >> 16)};
}

void encode_16(const float* v, std::int16_t* row) {
  const BF16 latent = scale_16(largest(v, kLatent));
  const BF16 rotary = scale_16(largest(v + kLatent, kRope));
  const std::uint32_t side = latent.bits | std::uint32_t{rotary.bits} << 16;
  for (int i = 0; i < kKvRow; ++i) {
    const float inverse = 1.0F / to_float(i < kLatent ? latent : rotary);
    const float steps = v[i] * inverse;
    int code = nearest_code(steps, -KvRow16::kMost, KvRow16::kMost);
    const int place = KvRow16::place(i);
    if (place < KvRow16::kBlock && (code & 1) != static_cast<int>(side >> place & 1))
      code += steps - static_cast<float>(code) >= 0 ? 1 : -1;
    row[place] = static_cast<std::int16_t>(code);
  }
}

void decode_16(const std::int16_t* row, float* v) {
  std::uint32_t side = 0;
  for (int i = 0; i < KvRow16::kBlock; ++i) side |= (static_cast<std::uint32_t>(row[i]) & 1U) << i;
  const float latent = to_float(BF16{static_cast<std::uint16_t>(side)});
  const float rotary = to_float(BF16{static_cast<std::uint16_t>(side >> 16)});
  for (int i = 0; i < kKvRow; ++i) v[i] = static_cast<float>(row[KvRow16::place(i)]) * (i < kLatent ? latent : rotary);
}

// The element type of a row without codes.
std::optional<DType> plain_type(KvCodec codec) {
  switch (codec) {
    case KvCodec::kF32:
      return DType::kF32;
    case KvCodec::kBF16:
      return DType::kBF16;
    case KvCodec::kF16:
      return DType::kF16;
    default:
      return std::nullopt;
  }
}

constexpr float kLargestHalf = 65504.0F;

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
  if (const auto dtype = plain_type(codec)) {
    for (std::size_t i = 0; i < kKvRow; ++i) {
      const bool clamped = codec == KvCodec::kF16 && std::isfinite(values[i]);
      store_from_float(row, *dtype, i, clamped ? std::clamp(values[i], -kLargestHalf, kLargestHalf) : values[i]);
    }
    return;
  }
  if (!in_range(values, kKvRow)) {
    std::memset(row, 0xff, static_cast<std::size_t>(kv_row_bytes(codec)));
    return;
  }
  if (codec == KvCodec::kInt4) return encode_int4(values, bytes);
  if (codec == KvCodec::kInt16) return encode_16(values, static_cast<std::int16_t*>(row));
  encode_8(codec, values, bytes);
}

void decode_kv_row(KvCodec codec, const void* row, float* values) {
  const auto* bytes = static_cast<const std::uint8_t*>(row);
  if (const auto dtype = plain_type(codec)) {
    for (std::size_t i = 0; i < kKvRow; ++i) values[i] = load_as_float(row, *dtype, i);
    return;
  }
  if (codec == KvCodec::kInt4) return decode_int4(bytes, values);
  if (codec == KvCodec::kInt16) return decode_16(static_cast<const std::int16_t*>(row), values);
  decode_8(codec, bytes, values);
}

}  // namespace glint
