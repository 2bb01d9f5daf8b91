#pragma once
// Runs the whole case list on one backend. The reference's answers are computed once a process.

#include <gtest/gtest.h>

#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "backends/reference/reference.hpp"
#include "ops/cases.hpp"

namespace glint {

inline const std::vector<Output>& reference_outputs(const Case& c) {
  static std::map<std::string, std::vector<Output>> cache;
  const auto it = cache.find(c.name);
  if (it != cache.end()) return it->second;
  const auto reference = make_reference_ops();
  reference->reserve(case_limits());
  return cache[c.name] = run_outputs(c, *reference, Layout::kPlain);
}

// Fails the current test for every case that is off, and prints the worst errors of each op.
inline void expect_all_cases(Ops& tested, Precision precision) {
  struct Worst {
    int cases = 0;
    CaseResult result;
    std::string name;
  };
  tested.reserve(case_limits());
  std::map<std::string, Worst> worst;
  for (const Case& c : all_cases()) {
    if (!supported(c, tested)) continue;
    const CaseResult r = compare(c, run_outputs(c, tested, Layout::kScattered), reference_outputs(c), precision);
    EXPECT_TRUE(r.ok) << tested.name() << ", " << c.name << ": " << r.reason;
    Worst& w = worst[c.op];
    if (w.cases++ == 0 || r.nmse > w.result.nmse) w.result = r, w.name = c.name;
  }
  EXPECT_EQ(worst.size(), 11U) << "an op without cases";
  for (const auto& [op, w] : worst) {
    std::printf("  %-12s %3d cases, worst nmse %.2e (limit %.0e), max %.2e (limit %.0e): %s\n", op.c_str(), w.cases,
                w.result.nmse, w.result.limit.nmse, w.result.max_abs, w.result.limit.max_abs, w.name.c_str());
  }
}

}  // namespace glint
