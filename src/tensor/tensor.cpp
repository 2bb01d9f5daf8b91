#include "tensor/tensor.hpp"

#include <sys/mman.h>

#include "base/error.hpp"

namespace glint {

std::string Shape::to_string() const {
  std::string s = "[";
  for (int i = 0; i < rank_; ++i) s += (i > 0 ? ", " : "") + std::to_string((*this)[i]);
  return s + "]";
}

Buffer host_buffer(std::size_t bytes) {
  if (bytes == 0) return {};
  void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw Error({.what = "out of memory", .found = "no " + std::to_string(bytes) + " bytes free"});
  constexpr std::size_t kHugePage = 2 << 20;
  if (bytes >= kHugePage) ::madvise(p, bytes, MADV_HUGEPAGE);  // advice: fewer TLB misses for weights and pages
  return {p, bytes, [](void* data, std::size_t n) { ::munmap(data, n); }};
}

}  // namespace glint
