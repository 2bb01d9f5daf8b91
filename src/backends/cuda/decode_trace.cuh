#pragma once
// Where a decode step's time goes: built with -DGLINT_STEP_TRACE, the first thread of each block adds up the cycles of
// each part of each stage, and the twelfth step of the process writes their means a layer to decode_step_trace.csv.
// Otherwise nothing.

#include <algorithm>
#include <fstream>
#include <vector>

#include "backends/cuda/decode_step.hpp"

namespace glint::cuda {

enum class StepPart : std::uint8_t { kWait, kX, kProducts, kFinish, kArrive };
inline constexpr int kTraceParts = 5, kTraceStages = 11;

#ifdef GLINT_STEP_TRACE
inline constexpr const char* kTraceNames[kTraceStages] = {
    "low", "query", "keys", "attend", "values", "out", "score and shared", "gate/up", "down", "shared down", "merge"};

struct StepTrace {
  long long last;
  unsigned sums[kTraceStages * kTraceParts];
  int stage;

  __device__ void begin() {
    for (unsigned& s : sums) s = 0;
    stage = 0;
    last = clock64();
  }
  // A part of the stage is over.
  __device__ void note(StepPart part) {
    if (threadIdx.x != 0) return;
    const long long now = clock64();
    sums[stage * kTraceParts + static_cast<int>(part)] += static_cast<unsigned>(now - last);
    last = now;
  }
  __device__ void enter(int s) {
    if (threadIdx.x == 0) stage = s;
  }
  __device__ void write(unsigned* to) const {
    if (threadIdx.x != 0 || to == nullptr) return;
    for (int i = 0; i < kTraceStages * kTraceParts; ++i) to[blockIdx.x * kTraceStages * kTraceParts + i] = sums[i];
  }
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
    std::vector<unsigned> t(bytes() / sizeof(unsigned));
    check(cudaDeviceSynchronize(), "trace");
    check(cudaMemcpy(t.data(), device_, bytes(), cudaMemcpyDeviceToHost), "trace");
    std::ofstream out("decode_step_trace.csv");
    out << "stage,wait,x,products,finish,arrive,all,most_of_a_block\n";
    for (int stage = 0; stage < kTraceStages; ++stage) {
      double means[kTraceParts] = {}, most = 0, all = 0;
      for (int b = 0; b < blocks_; ++b) {
        double mine = 0;
        for (int i = 0; i < kTraceParts; ++i) {
          const double v = t[static_cast<std::size_t>((b * kTraceStages + stage) * kTraceParts + i)];
          means[i] += v / blocks_ / layers_;
          mine += v / layers_;
        }
        most = std::max(most, mine);
        all += mine / blocks_;
      }
      out << kTraceNames[stage];
      for (const double m : means) out << ',' << static_cast<int>(m);
      out << ',' << static_cast<int>(all) << ',' << static_cast<int>(most) << '\n';
    }
  }

 private:
  std::size_t bytes() const {
    return static_cast<std::size_t>(blocks_) * kTraceStages * kTraceParts * sizeof(unsigned);
  }
  int blocks_, layers_;
  unsigned* device_ = nullptr;
};
#else
struct StepTrace {
  __device__ void begin() {}
  __device__ void note(StepPart) {}
  __device__ void enter(int) {}
  __device__ void write(const unsigned*) const {}
};
struct StepTraceBuffer {
  StepTraceBuffer(const Launch&, DecodeStep*) {}
  void write() const {}
};
#endif

}  // namespace glint::cuda
