#pragma once
// A weight matrix in any storage format, as the linear ops read it.

#include <cstdint>

#include "tensor/tensor.hpp"

namespace glint {

// How the values of a weight matrix are stored. A backend says by Ops::supports which formats it reads.
// Block formats have scales: one covers `group` consecutive columns of `group_rows` rows.
//   kF8E4M3  one code a byte: value = scale · e4m3(code)
//   kI8      one signed code a byte: value = scale · code, or scale · code + min
//   kI4      two codes u (0..15) a byte, the even column in the LOW nibble: scale · (u - 8), or scale · u + min
//   kNF4     two codes a byte, the even column in the HIGH nibble (bitsandbytes): value = scale · kNf4Codebook[u]
//   kF4E2M1  two codes a byte, the even column in the LOW nibble (NVFP4, MXFP4): value = scale · kF4Codebook[u]
// The code layouts of kI8 and kI4 are those of compressed-tensors (int-quantized, pack-quantized), so that such files
// are used in place.
enum class WeightFormat : std::uint8_t { kF32, kF16, kBF16, kF8E4M3, kI8, kI4, kNF4, kF4E2M1 };

constexpr int weight_code_bits(WeightFormat f) {
  switch (f) {
    case WeightFormat::kF32:
      return 32;
    case WeightFormat::kF16:
    case WeightFormat::kBF16:
      return 16;
    case WeightFormat::kF8E4M3:
    case WeightFormat::kI8:
      return 8;
    case WeightFormat::kI4:
    case WeightFormat::kNF4:
    case WeightFormat::kF4E2M1:
      return 4;
  }
  return 0;
}

constexpr bool has_scales(WeightFormat f) { return weight_code_bits(f) <= 8; }

// W is [rows, cols], row-major, and acts as y = x · Wᵀ: `cols` is the contraction length, contiguous in memory.
// Four-bit formats need an even `cols`.
struct Weight {
  WeightFormat format = WeightFormat::kBF16;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  const void* data = nullptr;       // codes or values
  const void* scales = nullptr;     // [ceil(rows / group_rows), ceil(cols / group)] of scale_dtype; block formats only
  const void* mins = nullptr;       // same shape and dtype as scales; null: symmetric
  DType scale_dtype = DType::kF32;  // F32, F16 or BF16
  std::int64_t group = 0;           // columns a scale covers; block formats: 1 … cols
  std::int64_t group_rows = 1;      // rows a scale covers: 1, or 128 in FP8's 128×128 blocks

  explicit operator bool() const { return data != nullptr; }

  std::int64_t row_bytes() const { return cols * weight_code_bits(format) / 8; }
  std::int64_t groups_a_row() const { return has_scales(format) ? (cols + group - 1) / group : 0; }
  std::int64_t scale_bytes() const {  // of scales and mins together
    if (!has_scales(format)) return 0;
    const std::int64_t n = (rows + group_rows - 1) / group_rows * groups_a_row();
    return n * static_cast<std::int64_t>(dtype_bytes(scale_dtype)) * (mins != nullptr ? 2 : 1);
  }
  // Bytes that one full read of the matrix moves.
  std::int64_t bytes() const { return rows * row_bytes() + scale_bytes(); }

  // Rows [begin, begin + count) of the same matrix; begin a multiple of group_rows.
  Weight slice_rows(std::int64_t begin, std::int64_t count) const {
    CHECK(begin >= 0 && count >= 0 && begin + count <= rows && begin % group_rows == 0);
    Weight w = *this;
    w.rows = count;
    w.data = static_cast<const std::byte*>(data) + begin * row_bytes();
    const std::int64_t skip = begin / group_rows * groups_a_row() * static_cast<std::int64_t>(dtype_bytes(scale_dtype));
    if (scales != nullptr) w.scales = static_cast<const std::byte*>(scales) + skip;
    if (mins != nullptr) w.mins = static_cast<const std::byte*>(mins) + skip;
    return w;
  }
};

}  // namespace glint
