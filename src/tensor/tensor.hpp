#pragma once
// Views and owned buffers. A view is a pointer with a type and a shape; it owns nothing.

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>

#include "base/check.hpp"
#include "tensor/dtype.hpp"

namespace glint {

// Up to four dimensions, outermost first, always dense (row-major).
class Shape {
 public:
  static constexpr int kMaxRank = 4;
  Shape() = default;
  Shape(std::initializer_list<std::int64_t> dims) {
    CHECK(dims.size() <= kMaxRank, "rank " + std::to_string(dims.size()));
    for (const std::int64_t d : dims) dims_[static_cast<std::size_t>(rank_++)] = d;
  }
  int rank() const { return rank_; }
  std::int64_t operator[](int i) const { return dims_[static_cast<std::size_t>(i)]; }
  std::int64_t elements() const {
    std::int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= dims_[static_cast<std::size_t>(i)];
    return n;
  }
  void push_back(std::int64_t d) {
    CHECK(rank_ < kMaxRank);
    dims_[static_cast<std::size_t>(rank_++)] = d;
  }
  friend bool operator==(const Shape& a, const Shape& b) {
    if (a.rank_ != b.rank_) return false;
    for (int i = 0; i < a.rank_; ++i) {
      if (a[i] != b[i]) return false;
    }
    return true;
  }
  std::string to_string() const;  // "[64, 2048]"

 private:
  std::array<std::int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

struct ConstView {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  Shape shape;

  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
  std::size_t bytes() const { return static_cast<std::size_t>(shape.elements()) * dtype_bytes(dtype); }
  explicit operator bool() const { return data != nullptr; }
};

struct View {
  void* data = nullptr;
  DType dtype = DType::kF32;
  Shape shape;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
  std::size_t bytes() const { return static_cast<std::size_t>(shape.elements()) * dtype_bytes(dtype); }
  explicit operator bool() const { return data != nullptr; }
  operator ConstView() const { return {data, dtype, shape}; }  // NOLINT(google-explicit-constructor): a view decays
  // The first `rows` entries of the outermost dimension.
  View first(std::int64_t rows) const {
    CHECK(shape.rank() > 0 && rows <= shape[0], std::to_string(rows) + " rows of " + shape.to_string());
    View v{data, dtype, {}};
    v.shape.push_back(rows);
    for (int i = 1; i < shape.rank(); ++i) v.shape.push_back(shape[i]);
    return v;
  }
};

// Memory with a deleter: host memory here, device memory from a backend's allocate().
class Buffer {
 public:
  Buffer() = default;
  using Deleter = void (*)(void* data, std::size_t bytes);
  Buffer(void* data, std::size_t bytes, Deleter deleter) : data_(data), bytes_(bytes), deleter_(deleter) {}
  Buffer(Buffer&& o) noexcept : data_(o.data_), bytes_(o.bytes_), deleter_(o.deleter_) { o.data_ = nullptr; }
  Buffer& operator=(Buffer&& o) noexcept {
    std::swap(data_, o.data_);
    std::swap(bytes_, o.bytes_);
    std::swap(deleter_, o.deleter_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (data_ != nullptr) deleter_(data_, bytes_);
  }
  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  Deleter deleter_ = nullptr;
};

// Zeroed host memory, 64-byte aligned; large sizes ask for huge pages. Throws Error when memory is short.
Buffer host_buffer(std::size_t bytes);

// An owned host tensor.
struct HostTensor {
  Buffer buffer;
  View view;
  HostTensor() = default;
  HostTensor(DType dtype, const Shape& shape) : view{nullptr, dtype, shape} {
    buffer = host_buffer(view.bytes());
    view.data = buffer.data();
  }
};

}  // namespace glint
