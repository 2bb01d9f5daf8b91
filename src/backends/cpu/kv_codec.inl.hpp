// Cache rows of the short codecs. Included inside the kernel namespace. ops/kv_codec.cpp gives every step its meaning;
// encoders give the same bytes, and decoders the same floats up to the Hadamard transform, which they leave in place.
// The encoders are plain loops over whole arrays, which the compiler turns into vectors.

using Bits = std::uint32_t __attribute__((may_alias));

inline void hadamard(float* v) {
  for (std::int64_t h = kKvHadamardStride; h < kLatent; h *= 2) {
    for (std::int64_t i = 0; i < kLatent; i += 2 * h) {
      for (std::int64_t j = i; j < i + h; j += kLanes) {
        const V a = load(v + j), b = load(v + j + h);
        store(v + j, add(a, b));
        store(v + j + h, sub(a, b));
      }
    }
  }
  for (std::int64_t j = 0; j < kLatent; j += kLanes) store(v + j, mul(load(v + j), set1(kKvHadamardScale)));
}

inline float float_of(std::uint32_t bits) {
  float f;
  __builtin_memcpy(&f, &bits, sizeof f);
  return f;
}
inline std::uint32_t bits_of(float f) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &f, sizeof bits);
  return bits;
}

// max |v|, as bits: NaN and infinity are then the largest.
template <int N>
inline std::uint32_t largest_bits(const float* v) {
  std::uint32_t top = 0;
  for (int i = 0; i < N; ++i) {
    const std::uint32_t u = reinterpret_cast<const Bits*>(v)[i] & 0x7fffffffU;
    top = u > top ? u : top;
  }
  return top;
}
template <int N>
inline float largest(const float* v) {
  return float_of(largest_bits<N>(v));
}

// Nearest even for |x| < 2^22; what is beyond stays beyond the range of codes.
inline float round_code(float x, float low, float high) {
  const float r = (x + 12582912.0F) - 12582912.0F;
  return r < low ? low : r > high ? high : r;
}

// The upper half of the scale's bits.
inline std::uint32_t bf16_scale(float top, float steps) {
  const float s = top / steps;
  const std::uint32_t u = bits_of(s > kKvSmallestScale ? s : kKvSmallestScale);
  return (u + 0x7fffU + ((u >> 16) & 1U)) >> 16;
}

void encode_rotary(const float* v, std::uint32_t latent_scale, std::uint8_t* codes) {
  const std::uint32_t scales[kKvScales] = {latent_scale, 0, bf16_scale(largest<kKvRopeGroup>(v), 126),
                                           bf16_scale(largest<kKvRopeGroup>(v + kKvRopeGroup), 126)};
  for (int k = 0; k < kKvScales; ++k) {
    const float inverse = 1.0F / float_of(scales[2 + 16 * k / kKvRopeGroup] << 16);
    for (int i = 0; i < 16; ++i) {
      const int bit = static_cast<int>(scales[k] >> i & 1U);
      const float half = (v[16 * k + i] * inverse - static_cast<float>(bit)) * 0.5F;
      codes[16 * k + i] = static_cast<std::uint8_t>(2 * static_cast<int>(round_code(half, -64, 63)) + bit);
    }
  }
}

void encode_fp8(const float* v, std::uint8_t* row) {
  const float s = largest<kLatent>(v) / 448.0F;
  const std::uint32_t scale = (bits_of(s > kKvSmallestScale ? s : kKvSmallestScale) + 0x7fffffU) & 0x7f800000U;
  const float inverse = 1.0F / float_of(scale);
  float scaled[kLatent];
  for (int i = 0; i < kLatent; ++i) scaled[i] = v[i] * inverse;
  for (int i = 0; i < kLatent; ++i) {
    const std::uint32_t u = reinterpret_cast<const Bits*>(scaled)[i];
    const std::uint32_t magnitude = u & 0x7fffffffU;
    const std::uint32_t normal = ((magnitude + 0x7ffffU + ((magnitude >> 20) & 1U)) >> 20) - (120U << 3);
    // Below 2^-6 codes are multiples of 2^-9, the last place of 2^14.
    const std::uint32_t small = bits_of(float_of(magnitude) + 16384.0F) - bits_of(16384.0F);
    row[i] = static_cast<std::uint8_t>((magnitude < (121U << 23) ? small : normal) | (u >> 24 & 0x80U));
  }
  encode_rotary(v + kLatent, scale >> 16, row + KvRow8::kRotary);
}

void encode_int8(const float* v, std::uint8_t* row) {
  float latent[kLatent];
  __builtin_memcpy(latent, v, sizeof latent);
  hadamard(latent);
  const std::uint32_t scale = bf16_scale(largest<kLatent>(latent), 127);
  const float inverse = 1.0F / float_of(scale << 16);
  for (int i = 0; i < kLatent; ++i)
    row[i] = static_cast<std::uint8_t>(static_cast<int>(round_code(latent[i] * inverse, -127, 127)));
  encode_rotary(v + kLatent, scale, row + KvRow8::kRotary);
}

inline float group_scale(std::uint32_t code) { return float_of((code + (111U << 3)) << 20); }

// The squared error of 32 values under a scale; the tree is that of sum().
inline float group_error(const float* v, float scale) {
  const float inverse = 1.0F / scale;
  float e[16];
  for (int i = 0; i < 16; ++i) {
    const float a = v[i] - round_code(v[i] * inverse, -8, 7) * scale;
    const float b = v[16 + i] - round_code(v[16 + i] * inverse, -8, 7) * scale;
    e[i] = a * a + b * b;
  }
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) e[i] += e[i + half];
  }
  return e[0];
}

void encode_int4(const float* v, std::uint8_t* row) {
  float latent[kLatent];
  __builtin_memcpy(latent, v, sizeof latent);
  hadamard(latent);
  for (int g = 0; g < KvRow4::kGroups; ++g) {
    const float* group = latent + g * KvRow4::kGroup;
    float s = largest<KvRow4::kGroup>(group) / 7.5F;
    s = s < 0x1p-16F ? 0x1p-16F : s > 61440.0F ? 61440.0F : s;
    const std::uint32_t widest = ((bits_of(s) + 0x80000U) >> 20) - (111U << 3);
    std::uint32_t best = widest;
    float best_error = 3.0e38F;
    for (std::uint32_t down = 0; down < 4 && down <= widest; ++down) {
      const float error = group_error(group, group_scale(widest - down));
      if (error < best_error) best = widest - down, best_error = error;
    }
    row[KvRow4::kScales + g] = static_cast<std::uint8_t>(best);
    const float inverse = 1.0F / group_scale(best);
    std::uint8_t* codes = row + KvRow4::kCodes + 16 * g;
    for (int i = 0; i < 16; ++i) {
      const int low = static_cast<int>(round_code(group[i] * inverse, -8, 7)) + 8;
      const int high = static_cast<int>(round_code(group[16 + i] * inverse, -8, 7)) + 8;
      codes[i] = static_cast<std::uint8_t>(low | high << 4);
    }
  }
  encode_rotary(v + kLatent, 0, row + KvRow4::kRotary);
}

void kv_encode(KvCodec codec, const float* values, void* to) {
  auto* row = static_cast<std::uint8_t*>(to);
  if (largest_bits<kKvRow>(values) > bits_of(kKvLargest)) {
    __builtin_memset(row, 0xff, codec == KvCodec::kInt4 ? KvRow4::kBytes : KvRow8::kBytes);
    return;
  }
  switch (codec) {
    case KvCodec::kFp8:
      return encode_fp8(values, row);
    case KvCodec::kInt8:
      return encode_int8(values, row);
    case KvCodec::kInt4:
      return encode_int4(values, row);
    default:  // copied by the op
      return;
  }
}

// Scale k of a row: the lowest bits of 16 codes. The product moves the bit of byte i to bit 56 + i.
inline float row_scale(const std::uint8_t* codes, int k) {
  constexpr std::uint64_t kLowest = 0x0101010101010101U, kGather = 0x0102040810204080U;
  std::uint64_t word[2];
  __builtin_memcpy(word, codes + 16 * k, sizeof word);
  const std::uint64_t low = (word[0] & kLowest) * kGather >> 56, high = (word[1] & kLowest) * kGather >> 56;
  return float_of(static_cast<std::uint32_t>(low | high << 8) << 16);
}

inline void decode_rotary(const std::uint8_t* codes, float* to) {
  for (int g = 0; g < kRope / kKvRopeGroup; ++g) {
    const V scale = set1(row_scale(codes, 2 + g));
#pragma GCC unroll 8
    for (int i = g * kKvRopeGroup; i < (g + 1) * kKvRopeGroup; i += kLanes)
      store(to + i, mul(load_int8(codes + i), scale));
  }
}

inline void decode_int4(const std::uint8_t* row, float* to) {
  for (int g = 0; g < KvRow4::kGroups; ++g) {
    const float s = group_scale(row[KvRow4::kScales + g]);
    const V scale = set1(s), offset = set1(-8 * s);  // both products are exact, so the order does not matter
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += kLanes) {
      V low, high;
      load_int4(row + KvRow4::kCodes + 16 * g + i, &low, &high);
      store(to + g * KvRow4::kGroup + i, fma(low, scale, offset));
      store(to + g * KvRow4::kGroup + 16 + i, fma(high, scale, offset));
    }
  }
  decode_rotary(row + KvRow4::kRotary, to + kLatent);
}

// A cache row as floats [576].
inline void kv_decode(KvCodec codec, const void* from, float* to) {
  const auto* row = static_cast<const std::uint8_t*>(from);
  switch (codec) {
    case KvCodec::kF32:
      return widen<float>(from, to, kKvRow);
    case KvCodec::kBF16:
      return widen<BF16>(from, to, kKvRow);
    case KvCodec::kFp8: {
      const V scale = set1(row_scale(row + KvRow8::kRotary, 0) * 0x1p8F);
      for (int i = 0; i < kLatent; i += kLanes) store(to + i, mul(load_f8(row + i), scale));
      return decode_rotary(row + KvRow8::kRotary, to + kLatent);
    }
    case KvCodec::kInt8: {
      const V scale = set1(row_scale(row + KvRow8::kRotary, 0));
      for (int i = 0; i < kLatent; i += kLanes) store(to + i, mul(load_int8(row + i), scale));
      return decode_rotary(row + KvRow8::kRotary, to + kLatent);
    }
    case KvCodec::kInt4:
      return decode_int4(row, to);
  }
}
