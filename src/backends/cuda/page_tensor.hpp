#pragma once
// Pages of the cache as a tensor, from which kernels copy blocks of 128 bytes of a page's rows (Hopper's tensor
// copies).

#include <cuda.h>

#include <cstdint>
#include <initializer_list>

namespace glint::cuda {

// Bytes of a row, rows of a page, and what has these strides in bytes: pages, and layers. How many there are is not
// known here: no copy names one beyond. In shared memory the eight 16-byte units of a row's 128 bytes are turned by the
// row.
CUtensorMap page_tensor(const void* pages, int row_bytes, std::initializer_list<std::int64_t> strides);

}  // namespace glint::cuda
