#include "backends/cuda/device.hpp"

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "base/check.hpp"
#include "base/error.hpp"

namespace glint {
namespace {

CudaDevice describe(int index) {
  CudaDevice d{.index = index};
  cudaDeviceProp properties{};
  cuda::check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  d.name = properties.name;
  d.sm = 10 * properties.major + properties.minor;
  d.memory_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
  int current = 0;
  std::size_t free = 0;
  std::size_t total = 0;
  cuda::check(cudaGetDevice(&current), "cudaGetDevice");
  cuda::check(cudaSetDevice(index), "cudaSetDevice");
  if (cudaMemGetInfo(&free, &total) == cudaSuccess) d.free_bytes = static_cast<std::int64_t>(free);
  cuda::check(cudaSetDevice(current), "cudaSetDevice");
  return d;
}

}  // namespace

std::vector<CudaDevice> cuda_devices() {
  int n = 0;
  if (cudaGetDeviceCount(&n) != cudaSuccess) return {};
  std::vector<CudaDevice> devices;
  for (int i = 0; i < n; ++i) devices.push_back(describe(i));
  return devices;
}

bool cuda_available(std::string* why_not) {
  std::string why;
  int n = 0;
  if (const cudaError_t e = cudaGetDeviceCount(&n); e != cudaSuccess) {
    why = cudaGetErrorString(e);
  } else if (n == 0) {
    why = "no CUDA device";
  } else if (const cudaError_t code = cuda::probe_code(); code != cudaSuccess) {
    why = cudaGetErrorString(code);
  }
  cudaGetLastError();  // a failed question is no failure of what follows
  if (why_not != nullptr) *why_not = why;
  return why.empty();
}

namespace cuda {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw Error({.what = std::string("CUDA: ") + what, .found = cudaGetErrorString(status)});
}

// A block gets more than 48 KiB only where that was asked for, once a kernel.
void allow_shared_memory(const void* kernel, std::size_t bytes) {
  static std::mutex mutex;
  static std::unordered_map<const void*, std::size_t> allowed;
  const std::lock_guard lock(mutex);
  std::size_t& known = allowed[kernel];
  if (known >= bytes) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "shared memory of a kernel");
  known = bytes;
}

void* Scratch::take_bytes(std::int64_t bytes) {
  const std::size_t at = used_;
  used_ += padded(bytes);
  CHECK(used_ <= bytes_, "workspace of " + std::to_string(bytes_) + " bytes, wanted " + std::to_string(used_) +
                             ": reserve() was called with smaller limits");
  return base_ + at;
}

Device::Device(const CudaOptions& options) {
  std::string why;
  if (!cuda_available(&why)) throw Error({.what = "device cuda", .found = why, .expected = "a CUDA device and driver"});
  int n = 0;
  check(cudaGetDeviceCount(&n), "cudaGetDeviceCount");
  if (options.device < 0 || options.device >= n) {
    throw Error(
        {.what = "CUDA device", .found = std::to_string(options.device), .expected = "0 to " + std::to_string(n - 1)});
  }
  info_ = describe(options.device);
  activate();
  if (const cudaError_t code = probe_code(); code != cudaSuccess) {
    throw Error({.what = info_.name,
                 .found = cudaGetErrorString(code),
                 .expected = "a build for sm_" + std::to_string(info_.sm),
                 .hint = "configure with -DGLINT_CUDA_ARCHS=" + std::to_string(info_.sm)});
  }
  check(cudaStreamCreateWithFlags(&launch_.stream, cudaStreamNonBlocking), "stream");
  check(cudaDeviceGetAttribute(&launch_.n_sms, cudaDevAttrMultiProcessorCount, info_.index), "attribute");
  check(cudaDeviceGetAttribute(&launch_.smem_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, info_.index), "attribute");
  launch_.pdl = options.dependent_launch && info_.sm >= 90;
#ifdef GLINT_SM90A
  launch_.wgmma = info_.sm == 90;
#endif
  launch_.clusters = info_.sm >= 90;
  void* pinned = nullptr;
  check(cudaMallocHost(&pinned, 2 * kHalf + Ops::kFetches * Ops::kFetchBytes), "pinned memory");
  pinned_ = static_cast<std::byte*>(pinned);
  for (int i = 0; i < 2; ++i) {
    halves_[i].data = pinned_ + i * kHalf;
    check(cudaEventCreateWithFlags(&halves_[i].free, cudaEventDisableTiming), "event");
  }
  for (int i = 0; i < Ops::kFetches; ++i) {
    fetches_[i].data = pinned_ + 2 * kHalf + static_cast<std::size_t>(i) * Ops::kFetchBytes;
    check(cudaEventCreateWithFlags(&fetches_[i].done, cudaEventDisableTiming), "event");
  }
}

Device::~Device() {
  cudaSetDevice(info_.index);
  cudaStreamSynchronize(launch_.stream);
  workspace_ = Buffer();
  for (Half& h : halves_) cudaEventDestroy(h.free);
  for (Fetch& f : fetches_) cudaEventDestroy(f.done);
  cudaFreeHost(pinned_);
  cudaStreamDestroy(launch_.stream);
}

void Device::activate() const {
  thread_local int current = -1;
  if (current == info_.index) return;
  check(cudaSetDevice(info_.index), "cudaSetDevice");
  current = info_.index;
}

Buffer Device::allocate(std::size_t bytes) {
  if (bytes == 0) return {};
  bytes = (bytes + 15) / 16 * 16;  // the bulk copy engine takes whole sixteens
  activate();
  void* p = nullptr;
  if (const cudaError_t e = cudaMalloc(&p, bytes); e != cudaSuccess) {
    cudaGetLastError();
    std::size_t free = 0;
    std::size_t total = 0;
    cudaMemGetInfo(&free, &total);
    throw Error({.what = info_.name + ": memory",
                 .found = std::to_string(free >> 20) + " MiB free of " + std::to_string(total >> 20) + " (" +
                          cudaGetErrorString(e) + ")",
                 .expected = std::to_string(bytes >> 20) + " MiB more"});
  }
  Buffer buffer(p, bytes, [](void* data, std::size_t) { cudaFree(data); });
  check(cudaMemsetAsync(p, 0, bytes, stream()), "cudaMemset");
  return buffer;
}

// A core reads a mapped file at a few GB/s, faults included; the bus takes tens.
void Device::stage(std::byte* to, const std::byte* from, std::size_t bytes) {
  constexpr std::size_t kPiece = std::size_t{256} << 10;
  constexpr int kMaxThreads = 16;
  if (bytes < 4 * kPiece) {
    std::memcpy(to, from, bytes);
    return;
  }
  if (!copiers_) copiers_ = std::make_unique<ThreadPool>(std::min(kMaxThreads, available_cores()));
  copiers_->parallel_for(static_cast<std::int64_t>((bytes + kPiece - 1) / kPiece), [&](std::int64_t piece, int) {
    const std::size_t at = static_cast<std::size_t>(piece) * kPiece;
    std::memcpy(to + at, from + at, std::min(kPiece, bytes - at));
  });
}

void Device::upload(void* dst, const void* src, std::size_t bytes) {
  activate();
  const std::lock_guard lock(copies_);
  auto* to = static_cast<std::byte*>(dst);
  const auto* from = static_cast<const std::byte*>(src);
  while (bytes > 0) {
    Half* half = &halves_[half_];
    if (half->used == kHalf) {
      check(cudaEventRecord(half->free, stream()), "event");
      half_ = 1 - half_;
      half = &halves_[half_];
      check(cudaEventSynchronize(half->free), "event");  // an event never recorded counts as over
      half->used = 0;
    }
    const std::size_t part = std::min(bytes, kHalf - half->used);
    stage(half->data + half->used, from, part);
    check(cudaMemcpyAsync(to, half->data + half->used, part, cudaMemcpyHostToDevice, stream()), "upload");
    half->used = std::min(kHalf, half->used + (part + 255) / 256 * 256);
    to += part;
    from += part;
    bytes -= part;
  }
}

void Device::download(void* dst, const void* src, std::size_t bytes) {
  activate();
  const std::lock_guard lock(copies_);
  auto* to = static_cast<std::byte*>(dst);
  const auto* from = static_cast<const std::byte*>(src);
  while (bytes > 0) {
    // Through the half at hand: after the wait, no copy out of either half is under way.
    Half& half = halves_[half_];
    check(cudaStreamSynchronize(stream()), "the ops before a download");
    const std::size_t part = std::min(bytes, kHalf);
    check(cudaMemcpyAsync(half.data, from, part, cudaMemcpyDeviceToHost, stream()), "download");
    check(cudaStreamSynchronize(stream()), "download");
    std::memcpy(to, half.data, part);
    half.used = 0;
    to += part;
    from += part;
    bytes -= part;
  }
}

void Device::start_download(void* dst, const void* src, std::size_t bytes) {
  activate();
  CHECK(n_fetches_ < Ops::kFetches && bytes <= Ops::kFetchBytes, std::to_string(bytes) + " bytes");
  Fetch& f = fetches_[(oldest_fetch_ + n_fetches_) % Ops::kFetches];
  check(cudaMemcpyAsync(f.data, src, bytes, cudaMemcpyDeviceToHost, stream()), "download");
  check(cudaEventRecord(f.done, stream()), "event");
  f.to = dst, f.bytes = bytes;
  ++n_fetches_;
}

void Device::finish_download() {
  CHECK(n_fetches_ > 0);
  const Fetch& f = fetches_[oldest_fetch_];
  oldest_fetch_ = (oldest_fetch_ + 1) % Ops::kFetches;
  --n_fetches_;
  check(cudaEventSynchronize(f.done), "download");
  std::memcpy(f.to, f.data, f.bytes);
}

void Device::synchronize() {
  activate();
  check(cudaStreamSynchronize(stream()), "the ops so far");
}

void Device::grow_workspace(std::size_t bytes) {
  if (workspace_.bytes() >= bytes) return;
  synchronize();
  workspace_ = Buffer();
  workspace_ = allocate(bytes);
}

}  // namespace cuda
}  // namespace glint
