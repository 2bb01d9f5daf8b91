#include "backends/cuda/page_tensor.hpp"

#include <array>
#include <string>

#include "backends/cuda/tensor_map.hpp"
#include "base/check.hpp"

namespace glint::cuda {
CUtensorMap page_tensor(const void* pages, int row_bytes, std::initializer_list<std::int64_t> strides) {
  constexpr cuuint32_t kRows = 64;
  CUtensorMap map{};
  std::array<cuuint64_t, 4> sizes{static_cast<cuuint64_t>(row_bytes), kRows};
  std::array<cuuint64_t, 3> steps_in_bytes{static_cast<cuuint64_t>(row_bytes)};
  cuuint32_t rank = 2;
  for (const std::int64_t stride : strides) {
    steps_in_bytes.at(rank - 1) = static_cast<cuuint64_t>(stride);
    sizes.at(rank) = std::uint64_t{1} << (rank == 2 ? 28 : 10);
    ++rank;
  }
  const std::array<cuuint32_t, 4> box{128, kRows, 1, 1}, steps{1, 1, 1, 1};
  const CUresult result = encode_tensor()(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, rank, const_cast<void*>(pages),
                                          sizes.data(), steps_in_bytes.data(), box.data(), steps.data(),
                                          CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                          CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(result == CUDA_SUCCESS, "a tensor of cache pages: driver error " + std::to_string(static_cast<int>(result)) +
                                    ", row of " + std::to_string(row_bytes) + " bytes");
  return map;
}

}  // namespace glint::cuda
