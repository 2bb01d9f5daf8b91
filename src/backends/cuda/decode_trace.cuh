#pragma once
// Where a decode step's time goes: built with -DGLINT_STEP_TRACE, the first thread of each block notes the clock at
// the beginning of each stage (its barrier included), and the twelfth step of the process writes the cycles to
// decode_step_trace.csv. Otherwise nothing.

#include <fstream>
#include <vector>

#include "backends/cuda/decode_step.hpp"

namespace glint::cuda {

#ifdef GLINT_STEP_TRACE
inline constexpr int kTraceMarks = 1024;  // a block
inline constexpr const char* kTraceStages[] = {
    "low", "query", "keys", "attend", "values", "out", "score and shared", "gate/up", "down", "shared down"};
inline constexpr int kTraceStage = sizeof(kTraceStages) / sizeof(kTraceStages[0]);

class StepTrace {
 public:
  __device__ explicit StepTrace(long long* at) : at_(at == nullptr ? nullptr : at + blockIdx.x * kTraceMarks) {}
  __device__ void mark() {
    if (at_ != nullptr && threadIdx.x == 0 && n_ < kTraceMarks) at_[n_] = clock64();
    ++n_;
  }

 private:
  long long* at_;
  int n_ = 0;
};

class StepTraceBuffer {
 public:
  StepTraceBuffer(const Launch& l, DecodeStep* s) : blocks_(l.n_sms), layers_(s->n_layers) {
    static int steps = 0;
    if (++steps != 12) return;
    check(cudaMalloc(reinterpret_cast<void**>(&device_), bytes()), "trace");
    s->trace = device_;
  }
  ~StepTraceBuffer() { cudaFree(device_); }
  StepTraceBuffer(const StepTraceBuffer&) = delete;
  StepTraceBuffer& operator=(const StepTraceBuffer&) = delete;

  void write() const {
    if (device_ == nullptr) return;
    std::vector<long long> t(bytes() / sizeof(long long));
    check(cudaDeviceSynchronize(), "trace");
    check(cudaMemcpy(t.data(), device_, bytes(), cudaMemcpyDeviceToHost), "trace");
    constexpr int kMarks = kTraceStage;
    const int last = std::min(layers_, kTraceMarks / kMarks);
    std::ofstream out("decode_step_trace.csv");
    out << "stage,mean_cycles_a_layer,most_of_a_block\n";
    for (int stage = 0; stage < kTraceStage; ++stage) {
      double sum = 0, most = 0;
      for (int b = 0; b < blocks_; ++b) {
        double mine = 0;
        for (int l = 2; l < last; ++l) {
          const std::size_t at =
              static_cast<std::size_t>(b) * kTraceMarks + static_cast<std::size_t>(l * kMarks + stage);
          mine += static_cast<double>(t[at + 1] - t[at]) / (last - 2);
        }
        sum += mine;
        most = std::max(most, mine);
      }
      out << kTraceStages[stage] << ',' << sum / blocks_ << ',' << most << '\n';
    }
  }

 private:
  std::size_t bytes() const { return static_cast<std::size_t>(blocks_) * kTraceMarks * sizeof(long long); }
  int blocks_, layers_;
  long long* device_ = nullptr;
};
#else
struct StepTrace {
  __device__ explicit StepTrace(const long long*) {}
  __device__ void mark() {}
};
struct StepTraceBuffer {
  StepTraceBuffer(const Launch&, DecodeStep*) {}
  void write() const {}
};
#endif

}  // namespace glint::cuda
