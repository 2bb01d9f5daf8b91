#pragma once
// A weight matrix in any storage format, as the linear ops read it.

#include <cstdint>

#include "tensor/tensor.hpp"

namespace glint {

// How the values of a weight matrix are stored. Block formats (INT4, INT8, NF4, FP8 with scales) join this list with
// their documented layouts; a backend says by Ops::supports which it reads.
enum class WeightFormat : std::uint8_t { kF32, kF16, kBF16 };

// W is [rows, cols], row-major, and acts as y = x · Wᵀ: `cols` is the contraction length, contiguous in memory.
struct Weight {
  WeightFormat format = WeightFormat::kBF16;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  const void* data = nullptr;

  explicit operator bool() const { return data != nullptr; }
  // Bytes that one full read of the matrix moves.
  std::int64_t bytes() const { return rows * cols * (format == WeightFormat::kF32 ? 4 : 2); }
  // Rows [begin, begin + count) of the same matrix.
  Weight slice_rows(std::int64_t begin, std::int64_t count) const {
    CHECK(begin >= 0 && begin + count <= rows);
    Weight w = *this;
    w.rows = count;
    w.data = static_cast<const std::byte*>(data) + begin * cols * (format == WeightFormat::kF32 ? 4 : 2);
    return w;
  }
};

}  // namespace glint
