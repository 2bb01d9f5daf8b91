#include "ops/cases.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/case_list.hpp"

namespace glint {
namespace {

struct Difference {
  double nmse = 0;
  double max_abs = 0;
  std::size_t worst = 0;  // index of max_abs
  std::string broken;     // a difference that no limit allows
};

std::string number(double v) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.6g", v);
  return text;
}

// Index i of a dense shape as "[2, 17]".
std::string position(const Shape& shape, std::size_t i) {
  auto rest = static_cast<std::int64_t>(i);
  std::string s;
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    s = std::to_string(rest % shape[axis]) + (s.empty() ? "" : ", ") + s;
    rest /= shape[axis];
  }
  return "[" + s + "]";
}

Difference difference(const Output& tested, const Output& expected) {
  Difference d;
  double error = 0;
  double square = 0;
  double largest = 0;
  const std::size_t n = expected.values.size();
  for (std::size_t i = 0; i < n; ++i) {
    const double t = tested.values[i];
    const double e = expected.values[i];
    const bool same = t == e || (std::isnan(t) && std::isnan(e) && expected.kind == OutputKind::kExact);
    if (same && !std::isfinite(e)) continue;  // -infinity of padded logits, poison left alone
    if (!std::isfinite(t) || !std::isfinite(e)) {
      d.broken = position(expected.shape, i) + ": found " + number(t) + ", expected " + number(e);
      return d;
    }
    const double delta = std::fabs(t - e);
    error += delta * delta;
    square += e * e;
    if (delta > largest) largest = delta, d.worst = i;
  }
  if (error == 0) return d;
  if (square == 0) square = std::numeric_limits<double>::min();  // all zeros expected: nothing else is near
  d.nmse = error / square;
  d.max_abs = largest / std::sqrt(square / static_cast<double>(n));
  return d;
}

}  // namespace

Limit limit_of(OutputKind kind, Precision precision, const Case& c) {
  const std::string because = c.slack == 1 ? "" : std::string("; ") + c.slack_reason;
  switch (kind) {
    case OutputKind::kExact:
      return {0, 0, "copied, or rounded once to nearest even"};
    case OutputKind::kFloat:
      return {1e-11, 3e-5, "fp32 arithmetic, only the order of summation differs"};
    case OutputKind::kProduct:
      if (precision == Precision::kF32)
        return {2e-11 * c.slack, 4e-5 * std::sqrt(c.slack), "fp32 products summed in another order" + because};
      if (precision == Precision::kI8) {
        const bool gated = c.op == "moe" || c.op == "mlp";
        return {(gated ? 6e-4 : 2.5e-4) * c.slack, (gated ? 0.2 : 0.1) * std::sqrt(c.slack),
                std::string("activations rounded to int8, a scale every 16 to 128 columns: of normal values an error "
                            "of 4e-5 of their square, ") +
                    (gated ? "of silu(gate) · up, whose tails are longer, 2e-4; "
                           : "of values times a norm's weight (the cases draw both) 1.3e-4, more in a few outputs; ") +
                    "NF4's codebook as integers adds 2e-5" + because};
      }
      if (precision == Precision::kI16)
        return {1e-7 * c.slack, 5e-3 * std::sqrt(c.slack),
                "attention in 16-bit integers: what rounding the cache to F16 would cost" + because};
      return {5e-5 * c.slack, 5e-2 * std::sqrt(c.slack),
              "activations rounded to bf16 (8 bits: 2^-9 relative) before up to three products in a row" + because};
  }
  return {};
}

const std::vector<Case>& all_cases() {
  static const std::vector<Case> cases = [] {
    std::vector<Case> list;
    add_dense_cases(list);
    add_attention_cases(list);
    add_expert_cases(list);
    add_many_rows_cases(list);
    add_prefill_cases(list);
    add_many_rows_expert_cases(list);
    add_narrow_group_cases(list);
    add_absorbed_cases(list);
    for (std::size_t i = 0; i < list.size(); ++i) list[i].seed = 1000 + i;
    return list;
  }();
  return cases;
}

OpLimits case_limits() {
  return {.max_rows = 420,
          .max_logits = 17,
          .max_context = 1000,
          .hidden = 2048,
          .n_heads = 20,
          .q_lora = 768,
          .dense_inner = 10240,
          .expert_inner = 1536,
          .n_experts = 64,
          .top_k = 8,
          .vocab = 8192};
}

bool supported(const Case& c, const Ops& ops) {
  return (!c.format || ops.supports(*c.format)) && (!c.absorbed || ops.supports_absorbed(*c.absorbed)) &&
         (!c.codec || ops.supports(*c.codec));
}

std::vector<Output> run_outputs(const Case& c, Ops& ops, Layout layout) {
  Stage stage(ops, c.seed, layout);
  c.run(stage);
  ops.synchronize();
  return stage.collect();
}

CaseResult compare(const Case& c, const std::vector<Output>& tested, const std::vector<Output>& expected,
                   Precision precision) {
  CHECK(tested.size() == expected.size() && !expected.empty(), c.name + " has no outputs to compare");
  CaseResult result;
  double worst = -1;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const Output& e = expected[i];
    CHECK(tested[i].values.size() == e.values.size(), c.name + ": sizes of " + e.name);
    const Limit limit = limit_of(e.kind, precision, c);
    const Difference d = difference(tested[i], e);
    std::string reason;
    if (!tested[i].damage.empty()) {
      reason = tested[i].damage;
    } else if (!d.broken.empty()) {
      reason = d.broken;
    } else if (d.nmse > limit.nmse || d.max_abs > limit.max_abs) {
      reason = "nmse " + number(d.nmse) + " (limit " + number(limit.nmse) + "), max " + number(d.max_abs) + " (limit " +
               number(limit.max_abs) + "); worst at " + position(e.shape, d.worst) + ": found " +
               number(tested[i].values[d.worst]) + ", expected " + number(e.values[d.worst]) +
               "; limit: " + limit.reason;
    }
    // The output nearest to its limit, or beyond it, is the one that is told.
    const double share = !reason.empty()  ? std::numeric_limits<double>::infinity()
                         : limit.nmse > 0 ? d.nmse / limit.nmse
                                          : 0;
    if (share <= worst) continue;
    worst = share;
    result = {reason.empty(), d.nmse, d.max_abs, limit, reason.empty() ? "" : e.name + " " + reason};
  }
  return result;
}

CaseResult run_case(const Case& c, Ops& tested, Ops& reference, Precision precision) {
  tested.reserve(case_limits());
  reference.reserve(case_limits());
  return compare(c, run_outputs(c, tested, Layout::kScattered), run_outputs(c, reference, Layout::kPlain), precision);
}

}  // namespace glint
