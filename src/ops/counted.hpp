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
// backend is slower under this decorator, and downloads what the costs follow from (moe ids, attention batches).
class Counted final : public DecoratedOps<Counted> {
 public:
  using DecoratedOps::DecoratedOps;

  // Rows by falling time.
  std::vector<OpCount> table() const;
  // As text: a header line and a line a row.
  std::string report() const;
  void reset() { counts_.clear(); }
  // While passive, ops pass through uncounted and unhindered.
  void set_passive(bool passive) { passive_ = passive; }

  bool decoder(const DecoderParams& p) override { return passive_ && inner().decoder(p); }

  template <typename Params, typename Run>
  void around(std::string_view op, const Params& p, Run run) {
    if (passive_) {
      run();
      return;
    }
    inner().start_timer();
    const double start = now_seconds();
    run();
    const double own = inner().stop_timer();
    inner().synchronize();
    add(op, p.tag, own >= 0 ? own : now_seconds() - start, cost_of(p));
  }

 private:
  static double now_seconds();
  template <typename Params>
  Cost cost_of(const Params& p) {
    return glint::cost(p);
  }
  Cost cost_of(const MlaAttendParams& p);
  Cost cost_of(const MoeParams& p);
  void add(std::string_view op, const OpTag& tag, double seconds, const Cost& cost);

  std::map<std::pair<std::string, std::string>, OpCount> counts_;  // by (name, op)
  bool passive_ = false;
};

}  // namespace glint
