#pragma once
// The CPU backend's tables that a test can run.

#include <algorithm>
#include <string>
#include <vector>

#include "backends/cpu/cpu.hpp"
#include "backends/cpu/kernels.hpp"

namespace glint {

// Those of this machine, then the emulated ones, which are built of AVX2.
inline std::vector<std::string> every_table() {
  std::vector<std::string> names = cpu_isas();
  if (std::find(names.begin(), names.end(), "avx2") == names.end()) return names;
  for (const std::string& name : cpu::registered_tables()) names.push_back(name);
  return names;
}

}  // namespace glint
