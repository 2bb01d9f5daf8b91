#pragma once
// ggml's tensor types: how large their blocks are, and what a block says.

#include <cstdint>
#include <optional>
#include <string_view>

#include "tensor/weight.hpp"

namespace glint {

// By their number in a file. Glint reads the ones that gguf_readable lists; the others are known by name and size, so
// that a message can say what a file holds.
enum class GgufType : std::uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

// A block is `values` consecutive values of one row in `bytes` bytes.
struct GgufBlock {
  std::string_view name;
  std::int64_t values = 1;
  std::int64_t bytes = 0;
};

// Nothing for a number that ggml does not have.
std::optional<GgufBlock> gguf_block(GgufType type);
std::string_view gguf_type_name(GgufType type);  // "Q4_K"; "?" for an unknown number
bool gguf_readable(GgufType type);
inline constexpr std::string_view kGgufReadable = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K";

// Reads `n` values (whole blocks) of any readable type as floats: what the format's documentation says, each product
// and sum rounded once. Scalar and readable: the meaning against which everything else is tested.
void decode_gguf(GgufType type, const std::byte* blocks, std::int64_t n, float* out);

// How Glint stores a matrix of that type. Floats stay as they are; blocks are taken apart into codes, scales and mins:
//   Q8_0        kI8, group 32                    the same values
//   Q4_0        kI4, group 32                    the same values (the nibbles change place)
//   Q4_1        kI4 with mins, group 32          the same values
//   Q5_0        kI8, group 32, codes -16 … 15    the same values
//   Q5_1        kI8 with mins, group 32          the same values
//   Q4_K        kI4 with mins, group 32          scale = d·sc and min = -dmin·m, each rounded to F16
//   Q5_K        kI8 with mins, group 32          likewise
//   Q6_K        kI8, group 16, codes -32 … 31    scale = d·sc rounded to F16
// Scales are F16, as in the file. The products of the K types have up to 18 significant bits and F16 keeps 11 (10 when
// it is subnormal, below 6e-5: there the step is 6e-8): a scale moves by at most 1/2048 of itself, so that a value
// moves by less than 15/4096 of a 4-bit step. F32 scales would be exact and cost 2 bits a weight more.
struct GgufTarget {
  WeightFormat format = WeightFormat::kF32;
  std::int64_t group = 0;  // 0: no scales
  bool mins = false;
};
GgufTarget gguf_target(GgufType type);

// Where the parts of rows [first, …) go; pointers to the first row.
struct GgufParts {
  std::byte* codes = nullptr;
  std::uint16_t* scales = nullptr;  // F16 bits
  std::uint16_t* mins = nullptr;
};
// Takes `rows` rows of `cols` values apart into gguf_target's layout; block types only. False when a scale or a min is
// not a finite F16.
bool repack_gguf(GgufType type, const std::byte* blocks, std::int64_t rows, std::int64_t cols, const GgufParts& parts);

// Rounds `n` finite values (whole blocks) to Q8_0, Q4_0, Q4_K, F16, BF16 or F32, for the exporter. Q8_0 and Q4_0 by
// ggml's rule; Q4_K by the range of each 32 values.
void encode_gguf(GgufType type, const float* values, std::int64_t n, std::byte* out);
bool gguf_encodable(GgufType type);

}  // namespace glint
