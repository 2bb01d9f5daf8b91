#pragma once
// The CUDA backend: one GPU, weights in any format of weight.hpp, F32 and BF16 cache pages. Activations are F32 between
// ops; products round them to bf16 and sum in fp32. No CUDA header is needed to use it.
//
// A row's result does not depend on its neighbours as long as the same kernels run: up to 16 rows (decode) the sums
// have one fixed order whatever the batch, beyond that the tiled kernels have another. Attention cuts a sequence at
// multiples of a length that follows from its own context; only when a batch is so large that the partial results would
// not fit the workspace are the pieces longer.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ops/ops.hpp"

namespace glint {

struct CudaDevice {
  int index = 0;
  std::string name;
  int sm = 0;  // 90 for compute capability 9.0
  std::int64_t memory_bytes = 0;
  std::int64_t free_bytes = 0;
};

struct CudaOptions {
  int device = 0;
  bool dependent_launch = true;  // programmatic dependent launch, where the device has it
  bool graphs = true;            // replay a repeated step as a CUDA graph
  // sm_90a kernels for products of more than 16 rows. Off: not yet seen to run
  // (docs/experiments/2026-11-24-cuda-gemm.md).
  bool wgmma = false;
};

// Whether there is a driver and a device that this build has code for; otherwise says why not.
bool cuda_available(std::string* why_not);

std::vector<CudaDevice> cuda_devices();

// Throws Error when the device does not exist or this build has no code for it.
std::unique_ptr<Ops> make_cuda_ops(const CudaOptions& options);

}  // namespace glint
