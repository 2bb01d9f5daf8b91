#pragma once
// The CPU backend: F32 activations; F32, F16 and BF16 weights read where they lie; cache pages of every codec.
// One kernel source, compiled once per instruction set, chosen at run time. A row's result has the same bits however
// many other rows, chunks or threads a call has (docs/experiments/2026-11-24-cpu-kernels.md says how).

#include <memory>
#include <string>
#include <vector>

#include "ops/ops.hpp"

namespace glint {

struct CpuOptions {
  std::string isa;  // "": the best that this machine runs; else generic | avx2 | avx512 | avx512vnni | avx512bf16 | amx
  int threads = 0;  // 0: one a core that this process may use
};

// Throws Error when this machine cannot run the named table or the thread count is out of range.
std::unique_ptr<Ops> make_cpu_ops(const CpuOptions& options);

// The tables that this machine can run, worst first.
std::vector<std::string> cpu_isas();

}  // namespace glint
