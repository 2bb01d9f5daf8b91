// The AVX-512 kernels on top of SIMDe against the reference, and the choice of a table.

#include <gtest/gtest.h>

#include <algorithm>

#include "backends/cpu/cpu.hpp"
#include "backends/cpu/kernels.hpp"
#include "base/error.hpp"
#include "case_runner.hpp"
#include "ops/checked.hpp"

namespace glint {
namespace {

// Instructions that this machine may lack, each made of others: the same source, so the same algorithm.
TEST(CpuEmulated, TablesAgreeWithTheReference) {
  const std::vector<std::string> isas = cpu_isas();
  if (std::find(isas.begin(), isas.end(), "avx2") == isas.end()) GTEST_SKIP() << "the emulation is built of AVX2";
  const std::vector<std::string> names = cpu::registered_tables();
  if (names.empty()) GTEST_SKIP() << "built without: this machine has the instructions (GLINT_EMULATED)";
  const auto holds = [](const std::vector<std::string>& v, const std::string& s) {
    return std::find(v.begin(), v.end(), s) != v.end();
  };
  for (const std::string isa : {"avx512", "avx512bf16", "amx"}) {
    EXPECT_TRUE(holds(isas, isa) || holds(names, isa + "(emulated)")) << isa;
  }
  for (const std::string& name : names) {
    SCOPED_TRACE(name);
    Checked ops(make_cpu_ops({.isa = name, .threads = 2}));
    const Precision plain = name.starts_with("avx512(") ? Precision::kF32 : Precision::kBF16;
    expect_all_cases(ops, {plain, Precision::kI8, plain});
  }
}

TEST(Cpu, TheBestTableIsTheDefaultAndNeverAnEmulatedOne) {
  const auto best = make_cpu_ops({});
  EXPECT_EQ(best->name(), "cpu (" + cpu_isas().back() + ")");
  EXPECT_EQ(cpu_isas().front(), "generic");
  for (const std::string& name : cpu_isas()) EXPECT_EQ(name.find("emulated"), std::string::npos);
}

TEST(Cpu, UnknownTablesAndThreadCountsAreRefused) {
  try {
    make_cpu_ops({.isa = "neon"});
    FAIL();
  } catch (const Error& e) { EXPECT_NE(std::string(e.what()).find("generic"), std::string::npos) << e.what(); }
  EXPECT_THROW(make_cpu_ops({.threads = -1}), Error);
  EXPECT_THROW(make_cpu_ops({.threads = 100000}), Error);
}

TEST(Cpu, ReadsEveryWeightFormat) {
  const auto ops = make_cpu_ops({.threads = 1});
  for (const WeightFormat f : {WeightFormat::kF32, WeightFormat::kF16, WeightFormat::kBF16, WeightFormat::kF8E4M3,
                               WeightFormat::kI8, WeightFormat::kI4, WeightFormat::kNF4, WeightFormat::kF4E2M1})
    EXPECT_TRUE(ops->supports(f));
}

}  // namespace
}  // namespace glint
