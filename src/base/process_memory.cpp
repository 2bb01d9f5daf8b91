#include "base/process_memory.hpp"

#include <malloc.h>

#include <charconv>
#include <fstream>
#include <string>
#include <string_view>

namespace glint {
namespace {

// "RssAnon:  123 kB"
void read_kib(std::string_view line, std::string_view name, std::int64_t* bytes) {
  if (!line.starts_with(name)) return;
  const std::size_t digit = line.find_first_of("0123456789");
  if (digit == std::string_view::npos) return;
  std::int64_t kib = 0;
  std::from_chars(line.data() + digit, line.data() + line.size(), kib);
  *bytes = kib * 1024;
}

}  // namespace

ProcessMemory process_memory() {
  ProcessMemory m;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    read_kib(line, "RssAnon:", &m.anonymous);
    read_kib(line, "RssFile:", &m.mapped_files);
  }
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 33)
  const struct mallinfo2 heap = ::mallinfo2();
  m.heap = static_cast<std::int64_t>(heap.arena + heap.hblkhd);
  m.heap_free = static_cast<std::int64_t>(heap.fordblks);
#endif
  return m;
}

}  // namespace glint
