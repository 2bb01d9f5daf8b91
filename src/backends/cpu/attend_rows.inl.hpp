// Cache rows as 16-bit codes. Included by attend_words.inl.hpp, which says what they are for, and attend_amx.inl.hpp.

inline constexpr std::int64_t kGroupRows = kLanes;  // rows that stay in L1 while the queries pass: 18 KB of 16

// max |v| of N values of 16 bits, as one.
template <std::int64_t N>
inline int largest_half(const void* values) {
  const auto* v = static_cast<const std::uint16_t*>(values);
  I top = zero_ints();
#pragma GCC unroll 16
  for (std::int64_t i = 0; i < N; i += 2 * kLanes) top = larger_half(top, v + i);
  return highest_half(top);
}

// A vector of codes: of values from v on and from v + kApart on.
template <typename T>
inline I codes_at(const T* v, float by) {
  return codes_of(load(v), load(v + kApart), set1(by));
}

// One part of a group's rows: its scales (NaN if a value is not finite) and what values are multiplied by.
struct PartScales {
  float scale[kGroupRows];
  float inverse[kGroupRows];

  void set(const float* most) {
    for (std::int64_t j = 0; j < kGroupRows; ++j) {  // by masks, which the compiler turns into vectors
      const std::uint32_t finite = -static_cast<std::uint32_t>(most[j] < __builtin_inff());
      const std::uint32_t some = finite & -static_cast<std::uint32_t>(most[j] >= kTiniest);
      inverse[j] = float_of(some & bits_of(kRowMost / most[j]));
      scale[j] = float_of((some & bits_of(most[j] / kRowMost)) | (~finite & bits_of(not_a_number())));
    }
  }
};

// The rows of a group in each kind of page: scales, and a vector of codes of a row, of the columns from `column` and
// from column + kApart on. Rows outside [lo, hi) are not read and have scales and codes of zero.
alignas(64) inline constexpr char kZeroRow[kKvRow * sizeof(F16)] = {};

// F16 and BF16, of both of which a larger |value| has larger bits.
template <typename T>
struct HalfRows {
  const T* row[kGroupRows];
  PartScales latent, rotary;

  HalfRows(KvCodec, const char* rows, std::int64_t lo, std::int64_t hi) {
    std::uint16_t tops[2][kGroupRows];
    for (std::int64_t j = 0; j < kGroupRows; ++j) {
      row[j] = reinterpret_cast<const T*>(j >= lo && j < hi ? rows + j * kKvRow * 2 : kZeroRow);
      tops[0][j] = static_cast<std::uint16_t>(largest_half<kLatent>(row[j]));
      tops[1][j] = static_cast<std::uint16_t>(largest_half<kRope>(row[j] + kLatent));
    }
    float most[2][kGroupRows];
    widen<T>(tops, most[0], 2 * kGroupRows);
    latent.set(most[0]);
    rotary.set(most[1]);
  }
  I latent_codes(std::int64_t j, std::int64_t c) const { return codes_at(row[j] + c, latent.inverse[j]); }
  I rotary_codes(std::int64_t j, std::int64_t c) const { return codes_at(row[j] + kLatent + c, rotary.inverse[j]); }
};

// INT16: codes as they lie.
struct CodedRows {
  const Code* row[kGroupRows];
  PartScales latent, rotary;  // without inverses

  CodedRows(KvCodec, const char* rows, std::int64_t lo, std::int64_t hi) {
    for (std::int64_t j = 0; j < kGroupRows; ++j) {
      row[j] = reinterpret_cast<const Code*>(j >= lo && j < hi ? rows + j * kKvRow * 2 : kZeroRow);
      const std::uint32_t side = lowest_bits_of_words(row[j]);
      latent.scale[j] = float_of(side << 16);
      rotary.scale[j] = float_of(side & 0xffff0000U);
    }
  }
  I latent_codes(std::int64_t j, std::int64_t c) const { return load_ints(row[j] + c); }
  I rotary_codes(std::int64_t j, std::int64_t c) const { return load_ints(row[j] + kLatent + c); }
};

// INT8: the latent part's codes as they are.
struct ByteRows {
  const std::uint8_t* row[kGroupRows];
  PartScales latent, rotary;
  float v[kGroupRows][kRope];

  ByteRows(KvCodec, const char* rows, std::int64_t lo, std::int64_t hi) {
    float most[kGroupRows] = {};
    for (std::int64_t j = 0; j < kGroupRows; ++j) {
      const bool seen = j >= lo && j < hi;
      row[j] = reinterpret_cast<const std::uint8_t*>(seen ? rows + j * KvRow8::kBytes : kZeroRow);
      if (!seen) {
        __builtin_memset(v[j], 0, sizeof v[j]);
        latent.scale[j] = 0;
        continue;
      }
      const std::uint64_t side = side_word_8(row[j]);
      decode_rotary(row[j] + KvRow8::kRotary, side, v[j]);
      latent.scale[j] = latent_scale(side);
      most[j] = largest<kRope>(v[j]);
    }
    rotary.set(most);
  }
  I latent_codes(std::int64_t j, std::int64_t c) const { return codes_of_bytes(row[j] + c); }
  I rotary_codes(std::int64_t j, std::int64_t c) const { return codes_at(v[j] + c, rotary.inverse[j]); }
};

// Any other codec, through floats.
struct FloatRows {
  PartScales latent, rotary;
  float v[kGroupRows][kKvRow];

  FloatRows(KvCodec codec, const char* rows, std::int64_t lo, std::int64_t hi) {
    float most[2][kGroupRows] = {};
    for (std::int64_t j = 0; j < kGroupRows; ++j) {
      if (j < lo || j >= hi) {
        __builtin_memset(v[j], 0, sizeof v[j]);
        continue;
      }
      kv_decode(codec, rows + j * kv_row_bytes(codec), v[j]);
      most[0][j] = largest<kLatent>(v[j]);
      most[1][j] = largest<kRope>(v[j] + kLatent);
    }
    latent.set(most[0]);
    rotary.set(most[1]);
  }
  I latent_codes(std::int64_t j, std::int64_t c) const { return codes_at(v[j] + c, latent.inverse[j]); }
  I rotary_codes(std::int64_t j, std::int64_t c) const { return codes_at(v[j] + kLatent + c, rotary.inverse[j]); }
};
