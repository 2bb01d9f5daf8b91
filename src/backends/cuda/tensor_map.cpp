#include "backends/cuda/tensor_map.hpp"

#include <array>
#include <string>

#include "backends/cuda/kernels.hpp"
#include "base/check.hpp"

namespace glint::cuda {

EncodeTensor encode_tensor() {
  static const auto function = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found),
          "cuTensorMapEncodeTiled");
    CHECK(found == cudaDriverEntryPointSuccess, "this driver has no tensor copies (cuTensorMapEncodeTiled)");
    return reinterpret_cast<EncodeTensor>(entry);
  }();
  return function;
}

CUtensorMap matrix_map(const void* data, std::int64_t rows, std::int64_t cols, std::int64_t stride, int box_rows) {
  CUtensorMap map{};
  const std::array<cuuint64_t, 2> sizes{static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const std::array<cuuint64_t, 1> steps_in_bytes{static_cast<cuuint64_t>(stride) * 2};
  const std::array<cuuint32_t, 2> box{64, static_cast<cuuint32_t>(box_rows)}, steps{1, 1};
  const CUresult result = encode_tensor()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data),
                                          sizes.data(), steps_in_bytes.data(), box.data(), steps.data(),
                                          CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                          CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(result == CUDA_SUCCESS, "a matrix as a tensor: driver error " + std::to_string(static_cast<int>(result)) +
                                    ", " + std::to_string(rows) + " × " + std::to_string(cols));
  return map;
}

}  // namespace glint::cuda
