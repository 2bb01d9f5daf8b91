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

inline float not_below(float x, float low) { return x > low ? x : low; }

// The upper half of the scale's bits.
inline std::uint32_t bf16_scale(float top, float steps) {
  const std::uint32_t u = bits_of(not_below(top / steps, kKvSmallestScale));
  return (u + 0x7fffU + ((u >> 16) & 1U)) >> 16;
}

// Nearest codes, the other neighbours, and what these cost.
struct LatentCodes {
  std::int32_t code[kLatent];
  std::int32_t other[kLatent];
  float cost[kLatent];
};

// Chooses by masks: a branch on either side of which floats are computed would not become vector code.
inline std::uint32_t choose(bool first, std::uint32_t a, std::uint32_t b) {
  const std::uint32_t mask = 0U - static_cast<std::uint32_t>(first);
  return (a & mask) | (b & ~mask);
}
template <int N>
inline void put_integers(LatentCodes& to, int first, const float* v, float inverse, float step, int lowest,
                         int highest) {
  const float low = static_cast<float>(lowest), high = static_cast<float>(highest), step2 = step * step;
  for (int i = 0; i < N; ++i) {
    const float steps = v[i] * inverse;
    const float code = round_code(steps, low, high);
    const float off = steps - code;
    const float way = float_of(choose(off >= 0, bits_of(1.0F), bits_of(-1.0F)));
    const float next = code + way, back = code - way;
    const bool beyond = static_cast<bool>(static_cast<int>(next > high) | static_cast<int>(next < low));
    const float other = float_of(choose(beyond, bits_of(back), bits_of(next)));
    const float far = steps - other;
    to.code[first + i] = static_cast<std::int32_t>(code);
    to.other[first + i] = static_cast<std::int32_t>(other);
    to.cost[first + i] = (far * far - off * off) * step2;
  }
}

inline float f8_magnitude(std::uint32_t code) {
  const float small = static_cast<float>(static_cast<std::int32_t>(code)) * 0x1p-9F;
  return float_of(choose(code < 8, bits_of(small), (code << 20) + (120U << 23)));
}
inline void put_fp8(LatentCodes& to, const float* v, float inverse) {
  float scaled[kLatent];
  for (int i = 0; i < kLatent; ++i) scaled[i] = v[i] * inverse;
  for (int i = 0; i < kLatent; ++i) {
    const std::uint32_t u = reinterpret_cast<const Bits*>(scaled)[i];
    const std::uint32_t sign = u >> 24 & 0x80U, magnitude = u & 0x7fffffffU;
    const std::uint32_t normal = ((magnitude + 0x7ffffU + ((magnitude >> 20) & 1U)) >> 20) - (120U << 3);
    // Below 2^-6 codes are multiples of 2^-9, the last place of 2^14.
    const std::uint32_t small = bits_of(float_of(magnitude) + 16384.0F) - bits_of(16384.0F);
    const std::uint32_t code = choose(magnitude < (121U << 23), small, normal);
    const float off = float_of(magnitude) - f8_magnitude(code);
    const std::uint32_t next = off >= 0 ? code + 1 : code - 1;
    const std::uint32_t other = next > 0x7eU ? code - 1 : next;
    const float far = float_of(magnitude) - f8_magnitude(other);
    to.code[i] = static_cast<std::int32_t>(code | sign);
    to.other[i] = static_cast<std::int32_t>(other | sign);
    to.cost[i] = far * far - off * off;
  }
}

inline void embed(LatentCodes& codes, std::uint64_t side, int first_bit) {
  std::int32_t parity[kKvSideBits], best[kKvSideBits];
  float cost[kKvSideBits];
  for (int b = 0; b < kKvSideBits; ++b) {
    parity[b] = codes.code[b];
    best[b] = b;
    cost[b] = codes.cost[b];
  }
  for (int i = kKvSideBits; i < kLatent; i += kKvSideBits) {
    for (int b = 0; b < kKvSideBits; ++b) {
      const bool cheaper = codes.cost[i + b] < cost[b];
      parity[b] ^= codes.code[i + b];
      best[b] = cheaper ? i + b : best[b];
      cost[b] = cheaper ? codes.cost[i + b] : cost[b];
    }
  }
  for (int b = first_bit; b < kKvSideBits; ++b) {
    const auto wanted = static_cast<std::int32_t>(~side >> b & 1U);
    if ((parity[b] & 1) != wanted) codes.code[best[b]] = codes.other[best[b]];
  }
}

// Codes to codes[64]; returns the side word.
inline std::uint64_t encode_rotary(const float* v, std::uint32_t latent_scale, std::uint8_t* codes) {
  std::uint64_t side = latent_scale;
  for (int g = 0; g < kKvRopeGroups; ++g) {
    const float* group = v + g * kKvRopeGroup;
    const std::uint32_t exact = bits_of(not_below(largest<kKvRopeGroup>(group) / 127.0F, kKvSmallestScale));
    const std::uint32_t scale = (exact + 0x7ffffU) >> 19;
    side |= static_cast<std::uint64_t>(scale) << (kKvLatentScaleBits + g * kKvRopeScaleBits);
    const float inverse = 1.0F / float_of(scale << 19);
    for (int i = 0; i < kKvRopeGroup; ++i)
      codes[g * kKvRopeGroup + i] =
          static_cast<std::uint8_t>(static_cast<int>(round_code(group[i] * inverse, -127, 127)));
  }
  return side;
}

inline void encode_8(KvCodec codec, const float* v, std::uint8_t* row) {
  LatentCodes codes;
  std::uint32_t scale;
  if (codec == KvCodec::kFp8) {
    scale = (bits_of(not_below(largest<kLatent>(v) / 448.0F, kKvSmallestScale)) + 0x7fffffU) >> 23 << 7;
    put_fp8(codes, v, 1.0F / float_of(scale << 16));
  } else {
    float latent[kLatent];
    __builtin_memcpy(latent, v, sizeof latent);
    hadamard(latent);
    scale = bf16_scale(largest<kLatent>(latent), 127);
    put_integers<kLatent>(codes, 0, latent, 1.0F / float_of(scale << 16), 1, -127, 127);
  }
  embed(codes, encode_rotary(v + kLatent, scale, row + KvRow8::kRotary), 0);
  for (int i = 0; i < kLatent; ++i) row[i] = static_cast<std::uint8_t>(codes.code[i]);
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

inline void encode_int4(const float* v, std::uint8_t* row) {
  float latent[kLatent];
  __builtin_memcpy(latent, v, sizeof latent);
  hadamard(latent);
  LatentCodes codes;
  for (int g = 0; g < KvRow4::kGroups; ++g) {
    const float* group = latent + g * KvRow4::kGroup;
    float s = not_below(largest<KvRow4::kGroup>(group) / 7.5F, 0x1p-16F);
    s = s > 61440.0F ? 61440.0F : s;
    const std::uint32_t widest = ((bits_of(s) + 0x80000U) >> 20) - (111U << 3);
    std::uint32_t best = widest;
    float best_error = 3.0e38F;
    for (std::uint32_t down = 0; down < 4 && down <= widest; ++down) {
      const float error = group_error(group, group_scale(widest - down));
      if (error < best_error) best = widest - down, best_error = error;
    }
    row[KvRow4::kScales + g] = static_cast<std::uint8_t>(best);
    const float scale = group_scale(best);
    put_integers<KvRow4::kGroup>(codes, g * KvRow4::kGroup, group, 1.0F / scale, scale, -8, 7);
  }
  embed(codes, encode_rotary(v + kLatent, 0, row + KvRow4::kRotary), kKvLatentScaleBits);
  for (int g = 0; g < KvRow4::kGroups; ++g) {
    const std::int32_t* code = codes.code + g * KvRow4::kGroup;
    for (int i = 0; i < 16; ++i) row[16 * g + i] = static_cast<std::uint8_t>((code[i] + 8) | (code[16 + i] + 8) << 4);
  }
}

// Nearest even; finite values beyond 65,504 become that.
inline std::uint32_t half_bits(std::uint32_t u) {
  const std::uint32_t sign = u >> 16 & 0x8000U, top = u & 0x7fffffffU;
  const std::uint32_t magnitude = top > 0x477fe000U ? 0x477fe000U : top;
  const std::uint32_t normal = ((magnitude + 0xfffU + ((magnitude >> 13) & 1U)) >> 13) - (112U << 10);
  // Below 2^-14 halves are multiples of 2^-24, the last place of 0.5.
  const std::uint32_t small = bits_of(float_of(magnitude) + 0.5F) - bits_of(0.5F);
  const std::uint32_t finite = magnitude < (113U << 23) ? small : normal;
  return sign | (top > 0x7f800000U ? 0x7e00U : top == 0x7f800000U ? 0x7c00U : finite);
}

inline void encode_f16(const float* v, void* to) {
#ifdef __F16C__
  if (largest_bits<kKvRow>(v) <= 0x477fe000U) {  // 65,504: the instruction would round what is beyond to infinity
    for (int i = 0; i < kKvRow; i += 8)
      _mm_storeu_si128(static_cast<__m128i*>(to) + i / 8, _mm256_cvtps_ph(_mm256_loadu_ps(v + i), 0));
    return;
  }
#endif
  std::uint16_t halves[kKvRow];
  for (int i = 0; i < kKvRow; ++i)
    halves[i] = static_cast<std::uint16_t>(half_bits(reinterpret_cast<const Bits*>(v)[i]));
  __builtin_memcpy(to, halves, sizeof halves);
}

// The codes of a part, in the order of columns, and its scale; by how much the first 32 codes are off.
template <int N>
inline std::uint32_t put_words(const float* v, std::int16_t* codes, float* off) {
  const float top = not_below(largest<N>(v) / (KvRow16::kMost - 1), kKvSmallestScale);
  const std::uint32_t scale = (bits_of(top) + 0xffffU) >> 16;
  const float inverse = 1.0F / float_of(scale << 16);
  float code[N];
  for (int i = 0; i < N; ++i) code[i] = round_code(v[i] * inverse, -KvRow16::kMost, KvRow16::kMost);
  for (int i = 0; i < N; ++i) codes[i] = static_cast<std::int16_t>(static_cast<std::int32_t>(code[i]));
  for (int i = 0; i < KvRow16::kBlock; ++i) off[i] = v[i] * inverse - code[i];
  return scale;
}
inline void encode_16(const float* v, void* to) {
  std::int16_t codes[kKvRow], row[kKvRow];
  float off[KvRow16::kBlock], unused[KvRow16::kBlock];
  const std::uint32_t latent = put_words<kLatent>(v, codes, off);
  const std::uint32_t side = latent | put_words<kRope>(v + kLatent, codes + kLatent, unused) << 16;
  for (int i = 0; i < KvRow16::kBlock; ++i) {
    const bool right = (static_cast<std::uint32_t>(codes[i]) & 1U) == (side >> KvRow16::place(i) & 1U);
    codes[i] = static_cast<std::int16_t>(codes[i] + (right ? 0 : off[i] >= 0 ? 1 : -1));
  }
  for (int b = 0; b < kKvRow; b += KvRow16::kBlock) {  // fours
    for (int i = 0; i < KvRow16::kBlock; i += 4)
      __builtin_memcpy(row + b + i, codes + b + KvRow16::column(i), 4 * sizeof(std::int16_t));
  }
  __builtin_memcpy(to, row, sizeof row);
}

void kv_encode(KvCodec codec, const float* values, void* to) {
  if (codec == KvCodec::kF16) return encode_f16(values, to);
  auto* row = static_cast<std::uint8_t*>(to);
  if (largest_bits<kKvRow>(values) > bits_of(kKvLargest)) {
    __builtin_memset(row, 0xff, static_cast<std::size_t>(kv_row_bytes(codec)));
    return;
  }
  switch (codec) {
    case KvCodec::kFp8:
    case KvCodec::kInt8:
      return encode_8(codec, values, row);
    case KvCodec::kInt4:
      return encode_int4(values, row);
    case KvCodec::kInt16:
      return encode_16(values, to);
    default:  // copied by the op
      return;
  }
}

// The lowest bits of eight bytes as eight bits. The product moves the bit of byte i to bit 56 + i.
inline std::uint64_t lowest_bits(std::uint64_t bytes) {
  return (bytes & 0x0101010101010101U) * 0x0102040810204080U >> 56;
}

// The exclusive or of N bytes at equal index mod M, as words.
template <int N, int M>
inline void fold_bytes(const std::uint8_t* row, std::uint64_t (&folded)[M / 8]) {
  std::uint8_t sum[M];
  __builtin_memcpy(sum, row, M);
  for (int i = M; i < N; i += M) {
    for (int b = 0; b < M; ++b) sum[b] = static_cast<std::uint8_t>(sum[b] ^ row[i + b]);
  }
  __builtin_memcpy(folded, sum, M);
}

inline std::uint64_t side_word_8(const std::uint8_t* row) {
  std::uint64_t folded[8], side = 0;
  fold_bytes<kLatent, kKvSideBits>(row, folded);
  for (int i = 0; i < 8; ++i) side |= lowest_bits(folded[i]) << (8 * i);
  return ~side;
}
// 16 bytes hold 16 codes in their lower halves, then 16 in their upper ones.
inline std::uint64_t side_word_4(const std::uint8_t* row) {
  std::uint64_t folded[4], side = 0;
  fold_bytes<kLatent / 2, kKvSideBits / 2>(row, folded);
  for (int i = 0; i < 4; ++i) {
    const int at = i / 2 * 32 + i % 2 * 8;
    side |= lowest_bits(folded[i]) << at | lowest_bits(folded[i] >> 4) << (at + 16);
  }
  return ~side;
}
inline float latent_scale(std::uint64_t side) { return float_of(static_cast<std::uint32_t>(side) << 16); }

inline void decode_rotary(const std::uint8_t* codes, std::uint64_t side, float* to) {
  side >>= kKvLatentScaleBits;
  for (int g = 0; g < kKvRopeGroups; ++g, side >>= kKvRopeScaleBits) {
    const V scale = set1(float_of((static_cast<std::uint32_t>(side) & 0xfffU) << 19));
#pragma GCC unroll 4
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
  decode_rotary(row + KvRow4::kRotary, side_word_4(row), to + kLatent);
}

// The lowest bits of the first 32 codes: both scales.
inline std::uint32_t side_word_16(const void* from) {
  const auto* row = static_cast<const std::int16_t*>(from);
  std::uint32_t side = 0;
  for (int i = 0; i < KvRow16::kBlock; ++i) side |= (static_cast<std::uint32_t>(row[i]) & 1U) << i;
  return side;
}
inline void decode_16(const void* from, float* to) {
  const std::uint32_t side = side_word_16(from);
  std::int16_t codes[kKvRow];
  for (int b = 0; b < kKvRow; b += KvRow16::kBlock) {
    for (int i = 0; i < KvRow16::kBlock; i += 4)
      __builtin_memcpy(codes + b + KvRow16::column(i), static_cast<const std::int16_t*>(from) + b + i,
                       4 * sizeof(std::int16_t));
  }
  const float latent = float_of(side << 16), rotary = float_of(side & 0xffff0000U);
  for (int i = 0; i < kLatent; ++i) to[i] = static_cast<float>(codes[i]) * latent;
  for (int i = kLatent; i < kKvRow; ++i) to[i] = static_cast<float>(codes[i]) * rotary;
}

// A cache row as floats [576].
inline void kv_decode(KvCodec codec, const void* from, float* to) {
  const auto* row = static_cast<const std::uint8_t*>(from);
  switch (codec) {
    case KvCodec::kF32:
      return widen<float>(from, to, kKvRow);
    case KvCodec::kBF16:
      return widen<BF16>(from, to, kKvRow);
    case KvCodec::kF16:
      return widen<F16>(from, to, kKvRow);
    case KvCodec::kFp8: {
      const std::uint64_t side = side_word_8(row);
      const V scale = set1(latent_scale(side) * 0x1p8F);
      for (int i = 0; i < kLatent; i += kLanes) store(to + i, mul(load_f8(row + i), scale));
      return decode_rotary(row + KvRow8::kRotary, side, to + kLatent);
    }
    case KvCodec::kInt8: {
      const std::uint64_t side = side_word_8(row);
      const V scale = set1(latent_scale(side));
      for (int i = 0; i < kLatent; i += kLanes) store(to + i, mul(load_int8(row + i), scale));
      return decode_rotary(row + KvRow8::kRotary, side, to + kLatent);
    }
    case KvCodec::kInt4:
      return decode_int4(row, to);
    case KvCodec::kInt16:
      return decode_16(row, to);
  }
}
