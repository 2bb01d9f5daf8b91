#pragma once
// Counted: wall time, bytes, flops and calls of every op, summed by its tag name.

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "ops/cost.hpp"
#include "ops/decorated.hpp"

namespace glint {

struct OpCount {
  std::string name;  // the tag's name, or the op's own where the tag has none
  std::string op;
  std::int64_t calls = 0;
  double seconds = 0;
  Cost cost;

  double gigabytes_per_second() const { return seconds > 0 ? cost.bytes / seconds * 1e-9 : 0; }
  double gigaflops_per_second() const { return seconds > 0 ? cost.flops / seconds * 1e-9 : 0; }
};

// Waits for the inner Ops after every op, so that an asynchronous backend's time lands on the op that took it; such a
// backend is slower under this decorator. Reads moe ids and attention batches on the host: host backends only for now.
class Counted final : public DecoratedOps<Counted> {
 public:
  using DecoratedOps::DecoratedOps;

  // Rows by falling time.
  std::vector<OpCount> table() const;
  // As text: a header line and a line a row.
  std::string report() const;
  void reset() { counts_.clear(); }

  template <typename Params, typename Run>
  void around(std::string_view op, const Params& p, Run run) {
    const double start = now_seconds();
    run();
    inner().synchronize();
    const double stop = now_seconds();
    add(op, p.tag, stop - start, glint::cost(p));
  }

 private:
  static double now_seconds();
  void add(std::string_view op, const OpTag& tag, double seconds, const Cost& cost);

  std::map<std::pair<std::string, std::string>, OpCount> counts_;  // by (name, op)
};

}  // namespace glint
