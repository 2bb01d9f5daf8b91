#pragma once
// Random matrices in block formats, made as codes and scales without ever being floats: a model that takes 17 GB needs
// no more than that while it is made.

#include <cstddef>
#include <cstdint>

#include "tensor/codec.hpp"

namespace glint {

// Where the parts of a matrix lie in its memory: codes, scales, mins, each aligned.
struct BlockLayout {
  std::size_t scales = 0;
  std::size_t mins = 0;   // equal to `bytes` when there are none
  std::size_t bytes = 0;  // in all
};
BlockLayout block_layout(const QuantSpec& spec, std::int64_t rows, std::int64_t cols);

// The matrix whose memory begins at `base` (the backend's).
Weight block_weight(const QuantSpec& spec, std::int64_t rows, std::int64_t cols, const void* base);

// Fills host memory of that layout: codes as quantised normal values have them, scales near `deviation` over the codes'
// own deviation, so that the values have about that standard deviation. The same (stream) gives the same bytes.
void fill_block(const QuantSpec& spec, std::int64_t rows, std::int64_t cols, float deviation, std::uint64_t stream,
                void* base);

}  // namespace glint
