#pragma once
// The bytes of a cache row, given their meaning: 576 values (512 latent, 64 rotary) to a row and back. Scalar and
// readable; kernels have their own encoders and decoders and are checked against these, bit for bit.
//
//   F32   2,304 B  576 floats
//   BF16  1,152 B  576 bfloat16
//   F16   1,152 B  576 halves: eight times as fine as BF16. Finite values beyond 65,504 become that
//   INT16 1,152 B  [512 latent, int16 | 64 rotary, int16]  each part = code · scale
//   FP8     576 B  [512 latent, E4M3 | 64 rotary]           latent = code · scale, a power of two
//   INT8    576 B  [512 latent, int8 | 64 rotary]           H latent = code · scale
//   INT4    336 B  [256 latent, int4 | 16 scales | 64 rotary]  H latent = code · scale of its group
//
// Each part begins at a multiple of 16 bytes, and so does every row. There is no padding.
//
// Rotary part of the three short codecs: 64 int8 codes; code i stands for code · (rotary scale i / 16).
//
// Side word. A row's other scales, 64 bits, take no bytes of their own: bit b of the side word is the complement of the
// exclusive or of the lowest bits of the eight latent codes b, 64 + b … 448 + b. The encoder rounds every value to its
// nearest code and then, where the eight do not give the wanted bit, takes the other neighbour for the one of them that
// is nearest to the middle between two codes. That costs a tenth of the rounding error's variance; the decoder uses
// codes as they are. (Scales in the lowest bits of the rotary codes themselves cost four times as much error where it
// hurts most, see docs/experiments/2026-11-24-kv-codecs.md.)
//   bits  0 … 15  latent scale, a bfloat16 (FP8, INT8; INT4 leaves these bits to chance)
//   bits 16 … 63  four rotary scales of 12 bits: the upper bits of a float without its sign (8 exponent, 4 mantissa)
//
// INT16: codes of magnitude up to 2^14 - 1, which CPUs with products of int16 multiply where they lie (64 times as fine
// as BF16 next to a part's largest value, as fine at 1/64 of it, coarser below). Every 32 columns lie as 0-3, 16-19,
// 4-7, 20-23 …: the order in which vector code packs two vectors into one and takes two rows apart. The two scales,
// bfloat16, are in the lowest bits of the first 32 codes, in the order of memory: the latent's, then the rotary part's.
// A value whose code has the wrong bit takes the other neighbour.
//
// H: INT8 and INT4 hold the latent after a Hadamard transform, which spreads what a few channels hold over many, so
// that no outlier sets a scale alone. It mixes the 32 values whose indices are equal mod 16 (H₃₂ ⊗ I₁₆ / √32): vector
// and GPU code needs no shuffle for that. H is symmetric and orthogonal, hence q · c = (H q) · (H c), and a sum
// Σ w c = H Σ w (H c): attention transforms each query once and each answer once, and reads the codes as they lie.
//
// INT4: 16 groups of 32 values. Byte i of a group's 16 holds value i (low half) and value 16 + i (high half), each as
// code + 8 with codes -8 … 7. A group's scale is one byte, 5 bits of exponent e and 3 of mantissa m, without sign or
// subnormals: 2^(e-16) · (1 + m/8), that is 2^-16 … 61,440. Of the four scales from max|v| / 7.5 downwards the encoder
// takes the one with the smallest squared error: clipping the largest value is often worth it.
//
// A row with a value that is NaN or beyond 2^100 becomes all ones, as poison is. Rows of ones and rows of zeros have a
// side word of ones: their rotary part is NaN in each of the three short codecs, and so is every score with it. INT16's
// scales of a row of ones are NaN, of a row of zeros zero. E4M3 codes of NaN
// occur in rows of ones only.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "ops/params.hpp"

namespace glint {

inline constexpr std::array kKvCodecs{KvCodec::kF32,  KvCodec::kBF16, KvCodec::kF16,  KvCodec::kFp8,
                                      KvCodec::kInt8, KvCodec::kInt4, KvCodec::kInt16};

// "f32", "bf16", "f16", "fp8", "int8", "int4", "int16": the values of --kv.
std::string_view kv_codec_name(KvCodec codec);
std::optional<KvCodec> kv_codec_from_name(std::string_view name);

// FP8 and INT8.
struct KvRow8 {
  static constexpr int kCodes = 0;
  static constexpr int kRotary = kLatent;
  static constexpr int kBytes = kLatent + kRope;
};
// INT16.
struct KvRow16 {
  static constexpr int kMost = 16383;  // of codes
  static constexpr int kBlock = 32;    // columns that are stored together
  // Which column a code is of, and where a column's code is.
  static constexpr int column(int place) {
    const int in = place % kBlock;
    return place - in + in / 8 * 4 + in % 4 + in % 8 / 4 * 16;
  }
  static constexpr int place(int column) {
    const int in = column % kBlock;
    return column - in + in % 16 / 4 * 8 + in % 4 + in / 16 * 4;
  }
};
// INT4.
struct KvRow4 {
  static constexpr int kGroup = 32;
  static constexpr int kGroups = kLatent / kGroup;
  static constexpr int kCodes = 0;
  static constexpr int kScales = kLatent / 2;
  static constexpr int kRotary = kScales + kGroups;
  static constexpr int kBytes = kRotary + kRope;
};
inline constexpr int kKvSideBits = 64;   // of the side word: latent codes of equal index mod 64 carry a bit together
inline constexpr int kKvRopeGroup = 16;  // rotary values a scale
inline constexpr int kKvRopeGroups = kRope / kKvRopeGroup;
inline constexpr int kKvRopeScaleBits = 12;
inline constexpr int kKvLatentScaleBits = 16;
inline constexpr int kKvHadamardStride = 16;             // values of equal index mod 16 are mixed
inline constexpr float kKvHadamardScale = 0.176776695F;  // 1 / √32

static_assert(KvRow8::kBytes == kv_row_bytes(KvCodec::kFp8) && KvRow8::kBytes == kv_row_bytes(KvCodec::kInt8));
static_assert(KvRow4::kBytes == kv_row_bytes(KvCodec::kInt4));
static_assert(KvRow8::kBytes == 576 && KvRow4::kBytes == 336);
static_assert(KvRow8::kRotary % 16 == 0 && KvRow8::kBytes % 16 == 0);
static_assert(KvRow4::kScales % 16 == 0 && KvRow4::kRotary % 16 == 0 && KvRow4::kBytes % 16 == 0);
static_assert(kKvLatentScaleBits + kKvRopeGroups * kKvRopeScaleBits == kKvSideBits);
static_assert(kLatent % kKvSideBits == 0);
// At most half and 30 % of a BF16 row, scales counted.
static_assert(2 * KvRow8::kBytes <= kv_row_bytes(KvCodec::kBF16));
static_assert(10 * KvRow4::kBytes <= 3 * kv_row_bytes(KvCodec::kBF16));

inline constexpr float kKvLargest = 0x1p100F;         // a row with a larger value becomes NaN
inline constexpr float kKvSmallestScale = 0x1p-100F;  // of a bfloat16 scale, so that its inverse is finite

// True if rows of that codec hold H latent.
constexpr bool kv_is_rotated(KvCodec codec) { return codec == KvCodec::kInt8 || codec == KvCodec::kInt4; }

// values [576] → kv_row_bytes(codec) bytes, and back (H undone).
void encode_kv_row(KvCodec codec, const float* values, void* row);
void decode_kv_row(KvCodec codec, const void* row, float* values);

// H in place, values [512]: butterflies over the strides 16, 32 … 256 in this order, then the scale.
void kv_hadamard(float* values);

}  // namespace glint
