#include "backends/cpu/peaks.hpp"

#include <algorithm>
#include <cstring>

#include "backends/cpu/kernels.hpp"
#include "base/clock.hpp"
#include "base/thread_pool.hpp"
#include "tensor/tensor.hpp"

namespace glint {
namespace {

constexpr int kRuns = 8;

template <typename Fn>
double best_seconds(const Fn& fn) {
  double best = 1e9;
  for (int i = 0; i < kRuns; ++i) {
    const double start = now_s();
    fn();
    best = std::min(best, now_s() - start);
  }
  return best;
}

double gflop_s(float (*multiply)(std::int64_t), double flops_a_step, ThreadPool& pool) {
  // About 30 ms: a worker that has just been woken may share the caller's core for the first few (seen: half the peak).
  constexpr std::int64_t kSteps = 1'000'000;
  constexpr std::int64_t kItems = 16;  // a thread
  const std::int64_t items = kItems * pool.size();
  volatile float sink = 0;
  const double seconds = best_seconds([&] {
    pool.parallel_for(items, [&](std::int64_t, int) {
      const float sum = multiply(kSteps);
      if (sum < 0) sink = sum;
    });
  });
  return static_cast<double>(items * kSteps) * flops_a_step / seconds / 1e9;
}

}  // namespace

struct ReadProbe::Impl {
  const cpu::Table& table;
  ThreadPool pool;
  Buffer buffer;
};

namespace {
constexpr std::int64_t kProbeBytes = std::int64_t{512} << 20;  // an L3 has 32 to 256 MB, shared with others
constexpr std::int64_t kProbePiece = 1 << 20;
}  // namespace

ReadProbe::ReadProbe(int threads, const std::string& isa)
    : impl_(new Impl{cpu::find_table(isa), ThreadPool(threads), host_buffer(kProbeBytes)}) {
  char* data = static_cast<char*>(impl_->buffer.data());
  impl_->pool.parallel_for(kProbeBytes / kProbePiece,
                           [&](std::int64_t i, int) { std::memset(data + i * kProbePiece, 1, kProbePiece); });
}

ReadProbe::~ReadProbe() = default;

// Pieces are handed out as the threads ask, as the ops do it: a thread that is disturbed does less.
double ReadProbe::gb_s() {
  const char* data = static_cast<const char*>(impl_->buffer.data());
  volatile float sink = 0;
  const double start = now_s();
  impl_->pool.parallel_for(kProbeBytes / kProbePiece, [&](std::int64_t i, int) {
    const float sum = impl_->table.read(data + i * kProbePiece, kProbePiece);
    if (sum < 0) sink = sum;
  });
  return static_cast<double>(kProbeBytes) / (now_s() - start) / 1e9;
}

CpuPeaks measure_peaks(int threads, const std::string& isa) {
  const cpu::Table& table = cpu::find_table(isa);
  ThreadPool pool(threads);
  CpuPeaks peaks{.threads = pool.size(), .isa = table.name};
  const double flops = cpu::kPeakFlops * table.lanes;
  peaks.f32_gflop_s = gflop_s(table.multiply_f32, flops, pool);
  peaks.bf16_gflop_s =
      table.multiply_bf16 != nullptr ? gflop_s(table.multiply_bf16, 2 * flops, pool) : peaks.f32_gflop_s;
  ReadProbe probe(threads, isa);
  for (int i = 0; i < kRuns; ++i) peaks.read_gb_s = std::max(peaks.read_gb_s, probe.gb_s());
  return peaks;
}

}  // namespace glint
