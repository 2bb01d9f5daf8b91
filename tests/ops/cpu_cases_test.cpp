// Every case on every table of the CPU backend that this machine can run.

#include <gtest/gtest.h>

#include <cctype>
#include <string>

#include "backends/cpu/cpu.hpp"
#include "case_runner.hpp"

namespace glint {
namespace {

class CpuCases : public testing::TestWithParam<std::string> {};

TEST_P(CpuCases, AgreeWithTheReference) {
  // Only the bf16 dot product of AVX-512-BF16, which amx has too, rounds activations; there and with AVX2 attention has
  // 16-bit codes. With VNNI alone products have them as well.
  const bool bf16 = GetParam().starts_with("avx512bf16") || GetParam().starts_with("amx");
  const bool vnni = GetParam().starts_with("avx512vnni");
  const Precision plain = bf16 ? Precision::kBF16 : vnni ? Precision::kI16 : Precision::kF32;
  const Precision attention = GetParam() == "avx2" ? Precision::kI16 : plain;
  for (const int threads : {1, 3}) {
    // How work is divided is the same for all, and BatchInvariance compares one thread with two on each.
    if (threads == 1 && GetParam() != cpu_isas().back()) continue;
    const auto ops = make_cpu_ops({.isa = GetParam(), .threads = threads});
    expect_all_cases(*ops, {plain, Precision::kI8, attention});
  }
}

INSTANTIATE_TEST_SUITE_P(EveryIsa, CpuCases, testing::ValuesIn(cpu_isas()), [](const auto& info) {
  std::string name = info.param;  // "avx512(emulated)": letters and digits only
  std::erase_if(name, [](unsigned char c) { return std::isalnum(c) == 0; });
  return name;
});

}  // namespace
}  // namespace glint
