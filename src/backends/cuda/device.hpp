#pragma once
// One GPU as the backend holds it: stream, copies through pinned memory, and one workspace that ops cut up anew.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

#include "backends/cuda/cuda.hpp"
#include "backends/cuda/kernels.hpp"
#include "base/thread_pool.hpp"
#include "ops/ops.hpp"

namespace glint::cuda {

// Workspace of one op: taken from the front, never given back. The stream orders its uses by different ops.
class Scratch {
 public:
  Scratch(void* base, std::size_t bytes) : base_(static_cast<std::byte*>(base)), bytes_(bytes) {}
  template <typename T = void>
  T* take(std::int64_t bytes) {
    return static_cast<T*>(take_bytes(bytes));
  }
  std::int64_t left() const { return static_cast<std::int64_t>(bytes_ - used_); }
  static std::size_t padded(std::int64_t bytes) { return (static_cast<std::size_t>(bytes) + 255) / 256 * 256; }

 private:
  void* take_bytes(std::int64_t bytes);
  std::byte* base_;
  std::size_t bytes_;
  std::size_t used_ = 0;
};

class Device {
 public:
  explicit Device(const CudaOptions& options);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const CudaDevice& info() const { return info_; }
  const Launch& launch() const { return launch_; }
  cudaStream_t stream() const { return launch_.stream; }

  // Makes this device the calling thread's.
  void activate() const;

  Buffer allocate(std::size_t bytes);
  void upload(void* dst, const void* src, std::size_t bytes);
  void download(void* dst, const void* src, std::size_t bytes);
  void start_download(void* dst, const void* src, std::size_t bytes);
  void finish_download();
  void synchronize();

  // Makes the workspace at least that large. Not within a step.
  void grow_workspace(std::size_t bytes);
  Scratch scratch() const { return {workspace_.data(), workspace_.bytes()}; }
  std::size_t workspace_bytes() const { return workspace_.bytes(); }

 private:
  // Half of the pinned memory: filled front to back, reused when the copies out of it have ended.
  struct Half {
    std::byte* data = nullptr;
    std::size_t used = 0;
    cudaEvent_t free = nullptr;
  };
  static constexpr std::size_t kHalf = std::size_t{8} << 20;
  // A small download on its way, through pinned memory behind the halves.
  struct Fetch {
    std::byte* data = nullptr;
    cudaEvent_t done = nullptr;
    void* to = nullptr;
    std::size_t bytes = 0;
  };
  void stage(std::byte* to, const std::byte* from, std::size_t bytes);

  CudaDevice info_;
  Launch launch_;
  Half halves_[2];
  int half_ = 0;
  Fetch fetches_[Ops::kFetches];
  int oldest_fetch_ = 0, n_fetches_ = 0;
  std::byte* pinned_ = nullptr;
  std::mutex copies_;
  std::unique_ptr<ThreadPool> copiers_;  // made by the first large upload
  Buffer workspace_;
};

}  // namespace glint::cuda
