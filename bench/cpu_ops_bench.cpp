// Every heavy op of the CPU backend on the shapes of GLM-4.7-Flash: time, GB/s, GFLOP/s, share of the measured peak.
//   cpu_ops_bench [--threads N] [--isa NAME] [--op SUBSTRING] [--rows 1,4,32,512] [--context N] [--csv FILE]
//                 [--format bf16|int4|int8|nf4|fp8|int4-g64|int4-g32|int4-g32-sym|int4-g16|int8-g32|int8-g16]
//                 [--kv f32|bf16|f16|fp8|int8|int4] [--expert HIDDEN,INNER]
// Weights are sets far larger than L3 and used in turn, so that each run reads them from memory. The share is of the
// binding ceiling: bytes / read bandwidth or flops / multiply-add peak, whichever takes longer. Time is the median of
// wall times; `cpu` is the CPU time of all threads over threads · wall: below 1, something else ran on the cores, and
// `cpu us`, the median CPU time of a call over the threads, is what the call would take alone.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "backends/cpu/cpu.hpp"
#include "backends/cpu/peaks.hpp"
#include "base/clock.hpp"
#include "base/thread_pool.hpp"
#include "ops/cost.hpp"
#include "ops/kv_codec.hpp"
#include "tensor/codec.hpp"

namespace glint {
namespace {

constexpr std::int64_t kHidden = 2048, kHeads = 20, kQLora = 768, kInner = 10240, kExpertInner = 1536, kExperts = 64;
constexpr std::int64_t kVocab = 154880;
constexpr int kTopK = 4;

struct Flags {
  int threads = 0;
  std::string isa;
  std::string op;
  std::vector<int> rows{1, 4, 32, 512};
  std::int64_t context = 2048;
  std::string csv;
  std::string format = "bf16";
  KvCodec kv = KvCodec::kBF16;
  std::int64_t expert_hidden = kHidden, expert_inner = kExpertInner;  // of moe and route; the tiny model: 256,64
};

// kv_b is BF16 in the formats that attention does not read along both axes.
QuantSpec spec_of(const std::string& name) {
  if (name == "int4") return {.format = WeightFormat::kI4, .group = 128};
  if (name == "int4-g64") return {.format = WeightFormat::kI4, .group = 64};
  if (name == "int4-g32") return {.format = WeightFormat::kI4, .group = 32, .symmetric = false};
  if (name == "int4-g32-sym") return {.format = WeightFormat::kI4, .group = 32};
  if (name == "int4-g16") return {.format = WeightFormat::kI4, .group = 16};
  if (name == "int8") return {.format = WeightFormat::kI8, .group = 0};
  if (name == "int8-g32") return {.format = WeightFormat::kI8, .group = 32};
  if (name == "int8-g16") return {.format = WeightFormat::kI8, .group = 16};
  if (name == "nf4") return {.format = WeightFormat::kNF4, .group = 64};
  if (name == "fp8") return {.format = WeightFormat::kF8E4M3, .group = 128, .group_rows = 128};
  return {.format = WeightFormat::kBF16};
}

double cpu_seconds() {
  timespec t{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Random values made once and copied: speed does not depend on them, but zeros and denormals would not do.
void fill(View v, float scale) {
  static std::vector<float> values = [] {
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    std::vector<float> r(1 << 16);
    for (float& x : r) x = normal(rng);
    return r;
  }();
  const std::int64_t n = v.shape.elements();
  for (std::int64_t i = 0; i < n; ++i) {
    const float x = scale * values[static_cast<std::size_t>(i * 7919 % 65536)];
    if (v.dtype == DType::kF32) v.as<float>()[i] = x;
    if (v.dtype == DType::kBF16) v.as<BF16>()[i] = to_bf16(x);
  }
}

class Bench {
 public:
  explicit Bench(const Flags& flags) : flags_(flags), ops_(make_cpu_ops({.isa = flags.isa, .threads = flags.threads})) {
    peaks_ = measure_peaks(flags.threads, flags.isa);
    const int most = *std::max_element(flags.rows.begin(), flags.rows.end());
    ops_->reserve({.max_rows = most,
                   .max_logits = most,
                   .max_context = flags.context + most,
                   .hidden = kHidden,
                   .n_heads = kHeads,
                   .q_lora = kQLora,
                   .dense_inner = kInner,
                   .expert_inner = kExpertInner,
                   .n_experts = kExperts,
                   .top_k = kTopK,
                   .vocab = kVocab});
    std::printf("%s, %d threads: read %.1f GB/s, f32 %.0f GFLOP/s, bf16 %.0f GFLOP/s\n", ops_->name().c_str(),
                peaks_.threads, peaks_.read_gb_s, peaks_.f32_gflop_s, peaks_.bf16_gflop_s);
    std::printf("%-12s %5s %10s %8s %8s %9s %9s %6s %10s %8s %8s\n", "op", "rows", "us", "GB/s", "GFLOP/s", "% read",
                "% bf16", "cpu", "cpu us", "GB/s", "GFLOP/s");
    if (!flags.csv.empty()) {
      csv_ = std::fopen(flags.csv.c_str(), "w");
      if (csv_ == nullptr) std::perror(flags.csv.c_str());
      if (csv_ != nullptr)
        std::fprintf(csv_,
                     "isa,threads,op,rows,context,us,gb_s,gflop_s,share_of_read,share_of_bf16,read_gb_s,bf16_gflop_s,"
                     "format,cpu_us,kv\n");
    }
  }
  ~Bench() {
    if (csv_ != nullptr) std::fclose(csv_);
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  void run_all() {
    for (const int rows : flags_.rows) {
      const double before = total_us_;
      const double cpu_before = total_cpu_us_;
      const Cost cost_before = total_;
      projections(rows);
      attend(rows);
      experts(rows);
      if (flags_.op.empty())
        report("moe layer", rows, total_us_ - before,
               {total_.bytes - cost_before.bytes, total_.flops - cost_before.flops}, 1, total_cpu_us_ - cpu_before);
      others(rows);
    }
  }

 private:
  View tensor(DType type, const Shape& shape, float scale) {
    keep_.emplace_back(type, shape);
    fill(keep_.back().view, scale);
    return keep_.back().view;
  }
  View activations(std::initializer_list<std::int64_t> dims) { return tensor(DType::kF32, Shape(dims), 1); }
  Weight weight(std::int64_t rows, std::int64_t cols) {
    const QuantSpec spec = spec_of(flags_.format);
    if (!has_scales(spec.format)) return plain_weight(rows, cols);
    QuantizedWeight q = allocate_quantized(spec, rows, cols);
    // Any code will do, but for FP8's NaN.
    static const std::vector<std::uint32_t> bits = [] {
      std::mt19937 rng(2);
      std::vector<std::uint32_t> r(1 << 14);
      for (std::uint32_t& b : r) b = static_cast<std::uint32_t>(rng()) & 0xbfbfbfbfU;
      return r;
    }();
    auto* codes = static_cast<char*>(q.codes.data());
    for (std::size_t i = 0; i < q.codes.bytes(); i += 4 * bits.size())
      std::memcpy(codes + i, bits.data(), std::min(4 * bits.size(), q.codes.bytes() - i));
    const auto fill_table = [&](const Buffer& b, float value) {
      for (std::size_t i = 0; i < b.bytes() / dtype_bytes(spec.scale_dtype); ++i)
        store_from_float(b.data(), spec.scale_dtype, i, value);
    };
    fill_table(q.scales, 1e-3F);
    if (q.w.mins != nullptr) fill_table(q.mins, -8e-3F);
    blocks_.push_back(std::move(q));
    return blocks_.back().w;
  }
  Weight plain_weight(std::int64_t rows, std::int64_t cols) {
    const View v = tensor(DType::kBF16, {rows, cols}, 1.0F / std::sqrt(static_cast<float>(cols)));
    return {WeightFormat::kBF16, rows, cols, v.data};
  }
  // As many copies of a weight set as make 400 MB.
  template <typename Make>
  auto copies(std::int64_t bytes, const Make& make) {
    std::vector<decltype(make())> sets;
    for (std::int64_t i = 0; i < std::max<std::int64_t>(1, (std::int64_t{400} << 20) / bytes); ++i)
      sets.push_back(make());
    return sets;
  }
  bool wanted(const char* op) const { return flags_.op.empty() || std::strstr(op, flags_.op.c_str()) != nullptr; }

  void time(const char* op, int rows, const Cost& cost, bool in_layer, const std::function<void(std::size_t)>& fn) {
    constexpr double kSeconds = 0.4;
    fn(0);
    std::vector<double> times;
    std::vector<double> cpu_times;
    const double begin = now_s();
    const double cpu = cpu_seconds();
    while (times.size() < 5 || (now_s() - begin < kSeconds && times.size() < 2000)) {
      const double cpu_start = cpu_seconds();
      const double start = now_s();
      fn(times.size() + 1);
      times.push_back(now_s() - start);
      cpu_times.push_back((cpu_seconds() - cpu_start) / peaks_.threads);
    }
    const double share = (cpu_seconds() - cpu) / ((now_s() - begin) * peaks_.threads);
    const double us = median(times) * 1e6;
    if (in_layer) {
      total_us_ += us;
      total_cpu_us_ += median(cpu_times) * 1e6;
      total_ += cost;
    }
    report(op, rows, us, cost, share, median(cpu_times) * 1e6);
  }

  static double median(std::vector<double>& v) {
    const auto middle = v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2);
    std::nth_element(v.begin(), middle, v.end());
    return *middle;
  }

  void report(const char* op, int rows, double us, const Cost& c, double cpu, double cpu_us) {
    const double gb = c.bytes / us / 1e3;
    const double gflop = c.flops / us / 1e3;
    std::printf("%-12s %5d %10.1f %8.1f %8.1f %8.0f%% %8.0f%% %6.2f %10.1f %8.1f %8.1f\n", op, rows, us, gb, gflop,
                gb / peaks_.read_gb_s * 100, gflop / peaks_.bf16_gflop_s * 100, cpu, cpu_us, c.bytes / cpu_us / 1e3,
                c.flops / cpu_us / 1e3);
    std::fflush(stdout);
    if (csv_ != nullptr)
      std::fprintf(csv_, "%s,%d,%s,%d,%lld,%.1f,%.2f,%.2f,%.3f,%.3f,%.2f,%.1f,%s,%.1f,%s\n", peaks_.isa.c_str(),
                   peaks_.threads, op, rows, static_cast<long long>(flags_.context), us, gb, gflop,
                   gb / peaks_.read_gb_s, gflop / peaks_.bf16_gflop_s, peaks_.read_gb_s, peaks_.bf16_gflop_s,
                   flags_.format.c_str(), cpu_us, std::string(kv_codec_name(flags_.kv)).c_str());
  }

  void projections(int rows) {
    clear();
    const View x = activations({rows, kHidden});
    if (wanted("rms_norm")) {
      const RmsNormParams p{.hidden = x,
                            .delta = activations({rows, kHidden}),
                            .weight = activations({kHidden}),
                            .out = activations({rows, kHidden})};
      time("rms_norm", rows, cost(p), true, [&](std::size_t) { ops_->rms_norm(p); });
    }
    if (wanted("mla_project")) {
      const auto sets = copies(9'600'000, [&] {
        return std::array{weight(kQLora, kHidden), weight(kHeads * kQk, kQLora), weight(kKvRow, kHidden)};
      });
      std::vector<std::int32_t> positions(static_cast<std::size_t>(rows));
      for (int t = 0; t < rows; ++t) positions[static_cast<std::size_t>(t)] = t;
      MlaProjectParams p{.x = x,
                         .positions = positions.data(),
                         .q_a = sets[0][0],
                         .q_a_norm = activations({kQLora}),
                         .q_b = sets[0][1],
                         .kv_a = sets[0][2],
                         .kv_a_norm = activations({kLatent}),
                         .q = activations({rows, kHeads, kQk}),
                         .kv = activations({rows, kKvRow})};
      time("mla_project", rows, cost(p), true, [&](std::size_t i) {
        p.q_a = sets[i % sets.size()][0];
        p.q_b = sets[i % sets.size()][1];
        p.kv_a = sets[i % sets.size()][2];
        ops_->mla_project(p);
      });
    }
    if (wanted("linear")) {  // o_proj
      clear();
      const auto sets = copies(2 * kHidden * kHeads * kValue, [&] { return weight(kHidden, kHeads * kValue); });
      LinearParams p{.x = activations({rows, kHeads * kValue}), .w = sets[0], .out = activations({rows, kHidden})};
      time("linear o", rows, cost(p), true, [&](std::size_t i) {
        p.w = sets[i % sets.size()];
        ops_->linear(p);
      });
    }
  }

  // A page of random rows as mla_append leaves them.
  std::vector<char> random_page(std::size_t bytes) {
    std::vector<char> page(bytes);
    std::int32_t slots[kPageTokens];
    for (std::int32_t i = 0; i < kPageTokens; ++i) slots[i] = i;
    const View rows = activations({kPageTokens, kKvRow});
    ops_->mla_append({.kv = rows, .slots = slots, .pages = {page.data(), static_cast<std::int64_t>(bytes), flags_.kv}});
    return page;
  }

  // One sequence. rows ≤ 4: the last `rows` tokens of `context`; more: a prefill from position 0.
  void attend(int rows) {
    if (!wanted("mla_attend")) return;
    clear();
    const std::int64_t context = rows <= 4 ? flags_.context : rows;
    const std::int64_t pages = (context + kPageTokens - 1) / kPageTokens;
    const std::size_t page_bytes = static_cast<std::size_t>(kPageTokens * kv_row_bytes(flags_.kv));
    std::vector<char> page = random_page(page_bytes);
    std::vector<std::vector<char>> caches;
    const auto sets = copies(kHeads * (kNope + kValue) * kLatent * 2, [&] {
      auto& cache = caches.emplace_back();
      for (std::int64_t i = 0; i < pages; ++i) cache.insert(cache.end(), page.begin(), page.end());
      constexpr std::int64_t kRows = kHeads * (kNope + kValue);
      return ops_->supports_absorbed(spec_of(flags_.format)) ? weight(kRows, kLatent) : plain_weight(kRows, kLatent);
    });
    std::vector<std::int32_t> table(static_cast<std::size_t>(pages));
    for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<std::int32_t>(i);
    const std::int32_t offsets[2] = {0, rows};
    const auto length = static_cast<std::int32_t>(context);
    MlaAttendParams p{.q = activations({rows, kHeads, kQk}),
                      .kv_b = sets[0],
                      .pages = {caches[0].data(), static_cast<std::int64_t>(page_bytes), flags_.kv},
                      .batch = {1, offsets, &length, table.data(), static_cast<int>(pages)},
                      .out = activations({rows, kHeads * kValue})};
    time("mla_attend", rows, cost(p), true, [&](std::size_t i) {
      p.kv_b = sets[i % sets.size()];
      p.pages.base = caches[i % sets.size()].data();
      ops_->mla_attend(p);
    });
  }

  ExpertWeights expert(std::int64_t hidden, std::int64_t inner) {
    return {weight(inner, hidden), weight(inner, hidden), weight(hidden, inner)};
  }

  void experts(int rows) {
    clear();
    const View x = activations({rows, flags_.expert_hidden});
    const auto n = static_cast<std::size_t>(rows * kTopK);
    std::vector<std::int32_t> ids(n);
    std::vector<float> weights(n);
    if (wanted("route")) {
      const RouteParams p{.x = x,
                          .w = activations({kExperts, flags_.expert_hidden}),
                          .bias = activations({kExperts}),
                          .ids = ids.data(),
                          .weights = weights.data()};
      time("route", rows, cost(p), true, [&](std::size_t) { ops_->route(p); });
    }
    if (!wanted("moe")) return;
    std::vector<ExpertWeights> experts;
    for (int e = 0; e < kExperts; ++e) experts.push_back(expert(flags_.expert_hidden, flags_.expert_inner));
    MoeParams p{.x = x,
                .top_k = kTopK,
                .ids = ids.data(),
                .weights = weights.data(),
                .experts = experts,
                .shared = expert(flags_.expert_hidden, flags_.expert_inner),
                .out = activations({rows, flags_.expert_hidden})};
    const auto choose = [&](std::size_t i) {  // other experts each time, so that one row finds none of them in a cache
      for (std::size_t k = 0; k < n; ++k) {
        ids[k] = static_cast<std::int32_t>((k * 13 + i * 4 * 13) % kExperts);
        weights[k] = 0.45F;
      }
    };
    choose(0);
    time("moe", rows, cost(p), true, [&](std::size_t i) {
      choose(i);
      ops_->moe(p);
    });
  }

  void others(int rows) {
    clear();
    const View x = activations({rows, kHidden});
    if (wanted("mlp")) {
      const auto sets = copies(6 * kInner * kHidden, [&] { return expert(kHidden, kInner); });
      MlpParams p{.x = x, .mlp = sets[0], .out = activations({rows, kHidden})};
      time("mlp", rows, cost(p), false, [&](std::size_t i) {
        p.mlp = sets[i % sets.size()];
        ops_->mlp(p);
      });
    }
    if (wanted("lm_head") && rows <= 32) {
      clear();
      const LmHeadParams p{.x = activations({rows, kHidden}),
                           .w = weight(kVocab, kHidden),
                           .valid_vocab = 154856,
                           .logits = activations({rows, kVocab})};
      time("lm_head", rows, cost(p), false, [&](std::size_t) { ops_->lm_head(p); });
    }
    if (wanted("mtp_input")) {
      clear();
      const auto sets = copies(4 * kHidden * kHidden, [&] { return weight(kHidden, 2 * kHidden); });
      MtpInputParams p{.embed = activations({rows, kHidden}),
                       .hidden = activations({rows, kHidden}),
                       .e_norm = activations({kHidden}),
                       .h_norm = activations({kHidden}),
                       .eh_proj = sets[0],
                       .out = activations({rows, kHidden})};
      time("mtp_input", rows, cost(p), false, [&](std::size_t i) {
        p.eh_proj = sets[i % sets.size()];
        ops_->mtp_input(p);
      });
    }
  }

  Flags flags_;
  std::unique_ptr<Ops> ops_;
  CpuPeaks peaks_;
  void clear() {
    keep_.clear();
    blocks_.clear();
  }

  std::vector<HostTensor> keep_;
  std::vector<QuantizedWeight> blocks_;
  double total_us_ = 0;
  double total_cpu_us_ = 0;
  Cost total_;
  std::FILE* csv_ = nullptr;
};

int run(int argc, char** argv) {
  Flags flags;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const std::string value = argv[i + 1];
    if (name == "--threads") flags.threads = std::atoi(value.c_str());
    if (name == "--isa") flags.isa = value;
    if (name == "--op") flags.op = value;
    if (name == "--context") flags.context = std::atoll(value.c_str());
    if (name == "--csv") flags.csv = value;
    if (name == "--format") flags.format = value;
    if (name == "--expert") {
      const std::size_t comma = std::min(value.find(','), value.size() - 1);
      flags.expert_hidden = std::atoll(value.c_str());
      flags.expert_inner = std::atoll(value.c_str() + comma + 1);
    }
    if (name == "--kv") flags.kv = kv_codec_from_name(value).value();
    if (name == "--rows") {
      flags.rows.clear();
      std::istringstream list(value);
      for (std::string n; std::getline(list, n, ',');) flags.rows.push_back(std::atoi(n.c_str()));
    }
  }
  Bench(flags).run_all();
  return 0;
}

}  // namespace
}  // namespace glint

int main(int argc, char** argv) { return glint::run(argc, argv); }
