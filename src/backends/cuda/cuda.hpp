#pragma once
// The CUDA backend: one GPU, weights in any format of weight.hpp, cache pages in any codec. Activations are F32 between
// ops; products round them to bf16 and sum in fp32. No CUDA header is needed to use it.
//
// A row's result does not depend on its neighbours as long as the same kernels run, each of which has one fixed order
// of sums whatever the batch: skinny kernels up to 16 rows (experts: 8), wide ones up to 128 rows of BF16 (Hopper:
// 512) and any number of codes (Hopper: 2,047), tiled ones beyond and for matrices that the others do not read; on
// Hopper gemm*, which copies by tensor maps and has codes decoded to BF16 first, where shapes and sizes allow it.
// From 513 rows of one sequence on, a query and attention's answer go from op to op in BF16 there, as the next op would
// round them; read as F32 they have been rounded.
// Attention cuts contexts into pieces so that all multiprocessors have equal work, hence by the batch. Its softmax
// weights are relative to whole powers of two, so that the pieces change the order of fp32 sums, by some 2^-22 of a
// row's latent, before that is rounded to bf16: an element may fall to the neighbouring bf16 number (2^-8).

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
  // All layers of a step of one row in one kernel, where the device and the weights allow it: faster than the ops one
  // by one at every context that was measured (docs/experiments/2026-11-2*-cuda-decode-step*.md).
  bool one_kernel = true;
};

// Whether there is a driver and a device that this build has code for; otherwise says why not.
bool cuda_available(std::string* why_not);

std::vector<CudaDevice> cuda_devices();

// Throws Error when the device does not exist or this build has no code for it.
std::unique_ptr<Ops> make_cuda_ops(const CudaOptions& options);

}  // namespace glint
