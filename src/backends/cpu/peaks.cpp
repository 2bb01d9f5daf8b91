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

// Pieces are handed out as the threads ask, as the ops do it: a thread that is disturbed does less.
double read_gb_s(const cpu::Table& table, ThreadPool& pool) {
  constexpr std::int64_t kBytes = std::int64_t{512} << 20;  // an L3 has 32 to 256 MB, shared with others
  constexpr std::int64_t kPiece = 1 << 20;
  const Buffer buffer = host_buffer(kBytes);
  char* data = static_cast<char*>(buffer.data());
  pool.parallel_for(kBytes / kPiece, [&](std::int64_t i, int) { std::memset(data + i * kPiece, 1, kPiece); });
  volatile float sink = 0;
  const double seconds = best_seconds([&] {
    pool.parallel_for(kBytes / kPiece, [&](std::int64_t i, int) {
      const float sum = table.read(data + i * kPiece, kPiece);
      if (sum < 0) sink = sum;
    });
  });
  return static_cast<double>(kBytes) / seconds / 1e9;
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

CpuPeaks measure_peaks(int threads, const std::string& isa) {
  const cpu::Table& table = cpu::find_table(isa);
  ThreadPool pool(threads);
  CpuPeaks peaks{.threads = pool.size(), .isa = table.name};
  const double flops = cpu::kPeakFlops * table.lanes;
  peaks.f32_gflop_s = gflop_s(table.multiply_f32, flops, pool);
  peaks.bf16_gflop_s =
      table.multiply_bf16 != nullptr ? gflop_s(table.multiply_bf16, 2 * flops, pool) : peaks.f32_gflop_s;
  peaks.read_gb_s = read_gb_s(table, pool);
  return peaks;
}

}  // namespace glint
