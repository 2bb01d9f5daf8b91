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

// Of a backend's products: with plain weights, with block formats, and attention's over any cache but F32.
// Where blocks are int8, FP8 weights and a kv_b in codes meet fp32 activations, and attention may have 16-bit integers
// where plain weights meet bf16.
struct Precisions {
  Precision plain, blocks, attention;
};
inline Precision precision_of(const Case& c, const Precisions& p) {
  const bool coded = c.op == "mla_attend" && c.codec != KvCodec::kF32 && p.attention == Precision::kI16;
  const Precision floats = coded ? Precision::kI16 : Precision::kF32;
  if (!c.format || !has_scales(*c.format)) return p.plain == Precision::kF32 ? floats : p.plain;
  if (p.blocks != Precision::kI8) return p.blocks;
  if (c.absorbed) return p.plain == Precision::kF32 ? floats : Precision::kI16;
  return c.format == WeightFormat::kF8E4M3 ? Precision::kF32 : Precision::kI8;
}

// Fails the current test for every case that is off, and prints the worst errors of each op.
inline void expect_all_cases(Ops& tested, const Precisions& precisions) {
  struct Worst {
    int cases = 0;
    CaseResult result;
    std::string name;
  };
  tested.reserve(case_limits());
  std::map<std::string, Worst> worst;
  for (const Case& c : all_cases()) {
    if (!supported(c, tested)) continue;
    const Precision precision = precision_of(c, precisions);
    const CaseResult r = compare(c, run_outputs(c, tested, Layout::kScattered), reference_outputs(c), precision);
    EXPECT_TRUE(r.ok) << tested.name() << ", " << c.name << ": " << r.reason;
    Worst& w = worst[precision == Precision::kI8 ? c.op + "/i8" : precision == Precision::kI16 ? c.op + "/i16" : c.op];
    if (w.cases++ == 0 || r.nmse > w.result.nmse) w.result = r, w.name = c.name;
  }
  EXPECT_GE(worst.size(), 11U) << "an op without cases";
  for (const auto& [op, w] : worst) {
    std::printf("  %-14s %3d cases, worst nmse %.2e (limit %.0e), max %.2e (limit %.0e): %s\n", op.c_str(), w.cases,
                w.result.nmse, w.result.limit.nmse, w.result.max_abs, w.result.limit.max_abs, w.name.c_str());
  }
}

inline void expect_all_cases(Ops& tested, Precision precision) {
  expect_all_cases(tested, {precision, precision, precision});
}

}  // namespace glint
