#pragma once
// The one case list: for every op the same shapes and random data for every backend, compared with the reference.
// A case is run twice from one seed, on the reference and on the tested backend, in two different memory layouts; its
// outputs are compared within the limit of their kind. What must not be read holds NaN, dead page-table entries hold an
// absurd index, outputs start as NaN and are followed by a guard, so that reading or writing astray shows.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "ops/stage.hpp"

namespace glint {

// How a backend multiplies: activations kept in fp32, or rounded to bf16, int8 or int16 on their way into a product.
enum class Precision : std::uint8_t { kF32, kBF16, kI8, kI16 };

struct Case {
  std::string name;  // "linear/bf16/T=7/2048→768"
  std::string op;
  std::uint64_t seed = 0;
  std::function<void(Stage&)> run;     // builds the data and calls the op once
  std::optional<WeightFormat> format;  // what the backend must support
  std::optional<QuantSpec> absorbed;   // the same of kv_b
  std::optional<KvCodec> codec;
  double slack = 1;  // multiplies the error limits of products
  const char* slack_reason = "";
};

// How far an output may be from the reference. Both are relative to the root mean square of the reference output.
struct Limit {
  double nmse = 0;     // mean squared error / mean square
  double max_abs = 0;  // largest error / root mean square
  std::string reason;
};

Limit limit_of(OutputKind kind, Precision precision, const Case& c);

struct CaseResult {
  bool ok = true;
  double nmse = 0;     // of the worst output
  double max_abs = 0;  // of the worst output, relative to the root mean square of the reference
  Limit limit;         // of that output
  std::string reason;  // empty if ok: which output, where, found and expected
};

// Every case, in the order of params.hpp.
const std::vector<Case>& all_cases();

// What a backend must reserve() to run all of them.
OpLimits case_limits();

bool supported(const Case& c, const Ops& ops);

// The caller has reserved case_limits().
std::vector<Output> run_outputs(const Case& c, Ops& ops, Layout layout);

CaseResult compare(const Case& c, const std::vector<Output>& tested, const std::vector<Output>& expected,
                   Precision precision);

// Reserves, runs and compares. The reference runs in the plain layout, the tested backend in the scattered one.
CaseResult run_case(const Case& c, Ops& tested, Ops& reference, Precision precision = Precision::kF32);

}  // namespace glint
