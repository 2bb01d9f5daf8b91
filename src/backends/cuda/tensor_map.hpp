#pragma once
// Tensors as Hopper's copy engine knows them. In shared memory the eight 16-byte units of a box's 128 bytes are turned
// by the row; what lies beyond the tensor comes as zeros.

#include <cuda.h>

#include <cstdint>

namespace glint::cuda {

// The driver's maker of tensor maps, looked up once.
using EncodeTensor = decltype(&cuTensorMapEncodeTiled);
EncodeTensor encode_tensor();

// A row-major matrix of BF16 numbers, cut into boxes of `box_rows` rows and 64 columns. data and rows are aligned to 16
// bytes.
CUtensorMap matrix_map(const void* data, std::int64_t rows, std::int64_t cols, std::int64_t stride, int box_rows);

}  // namespace glint::cuda
