#include "ops/counted.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>

namespace glint {

double Counted::now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Cost Counted::cost_of(const MlaAttendParams& p) {
  if (inner().host_memory()) return glint::cost(p);
  const auto n = static_cast<std::size_t>(p.batch.n_seqs);
  std::vector<std::int32_t> offsets(n + 1);
  std::vector<std::int32_t> contexts(n);
  inner().download(offsets.data(), p.batch.row_offsets, offsets.size() * sizeof(std::int32_t));
  inner().download(contexts.data(), p.batch.context_tokens, contexts.size() * sizeof(std::int32_t));
  MlaAttendParams host = p;
  host.batch.row_offsets = offsets.data();
  host.batch.context_tokens = contexts.data();
  return glint::cost(host);
}

Cost Counted::cost_of(const MoeParams& p) {
  if (inner().host_memory()) return glint::cost(p);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(p.x.shape[0] * p.top_k));
  inner().download(ids.data(), p.ids, ids.size() * sizeof(std::int32_t));
  MoeParams host = p;
  host.ids = ids.data();
  return glint::cost(host);
}

void Counted::add(std::string_view op, const OpTag& tag, double seconds, const Cost& cost) {
  const bool named = tag.name != nullptr && *tag.name != '\0';
  const std::string name = named ? tag.name : std::string(op);
  OpCount& row = counts_[{name, std::string(op)}];
  row.name = name;
  row.op = op;
  row.calls += 1;
  row.seconds += seconds;
  row.cost += cost;
}

std::vector<OpCount> Counted::table() const {
  std::vector<OpCount> rows;
  for (const auto& [key, row] : counts_) rows.push_back(row);
  std::stable_sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.seconds > b.seconds; });
  return rows;
}

std::string Counted::report() const {
  std::string text;
  char line[160];
  const auto append = [&](int n) { text.append(line, static_cast<std::size_t>(std::clamp(n, 0, 159))); };
  append(std::snprintf(line, sizeof(line), "%-20s %-12s %9s %12s %10s %10s\n", "name", "op", "calls", "ms", "GB/s",
                       "GFLOP/s"));
  for (const OpCount& r : table()) {
    append(std::snprintf(line, sizeof(line), "%-20.20s %-12.12s %9lld %12.3f %10.2f %10.2f\n", r.name.c_str(),
                         r.op.c_str(), static_cast<long long>(r.calls), r.seconds * 1e3, r.gigabytes_per_second(),
                         r.gigaflops_per_second()));
  }
  return text;
}

}  // namespace glint
