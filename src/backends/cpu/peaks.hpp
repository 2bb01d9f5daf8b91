#pragma once
// What this machine can do at most, measured: the denominators of every "share of the peak".

#include <memory>
#include <string>

namespace glint {

struct CpuPeaks {
  double read_gb_s = 0;    // all threads read a buffer far larger than the last cache
  double f32_gflop_s = 0;  // multiply-adds on registers
  // Dot products with BF16 weights: bfloat16 multiply-adds where the kernels use them, else those of float.
  double bf16_gflop_s = 0;
  int threads = 0;
  std::string isa;
};

// Takes about a second. threads and isa as in CpuOptions; each figure is the best of several runs, since whatever else
// runs on the machine can only lower it.
CpuPeaks measure_peaks(int threads = 0, const std::string& isa = "");

// Reads a buffer far larger than the last cache whenever it is asked. On a machine that is shared, what memory gives
// changes from second to second: a measurement that is compared with it takes both in turn.
class ReadProbe {
 public:
  explicit ReadProbe(int threads = 0, const std::string& isa = "");
  ~ReadProbe();
  double gb_s();  // of one pass over 512 MB

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace glint
