// Prints the ceilings of this machine: for one thread and for all, per kernel table.

#include <cstdio>

#include "backends/cpu/cpu.hpp"
#include "backends/cpu/peaks.hpp"

int main() {
  std::printf("%-12s %7s %12s %14s %14s\n", "isa", "threads", "read GB/s", "f32 GFLOP/s", "bf16 GFLOP/s");
  for (const std::string& isa : glint::cpu_isas()) {
    for (const int threads : {1, 0}) {
      const glint::CpuPeaks p = glint::measure_peaks(threads, isa);
      std::printf("%-12s %7d %12.1f %14.1f %14.1f\n", isa.c_str(), p.threads, p.read_gb_s, p.f32_gflop_s,
                  p.bf16_gflop_s);
    }
  }
}
