#pragma once
// How much of a mapped file counts as this process's memory.

#include <cstddef>
#include <fstream>
#include <string>

namespace glint {

// Resident bytes of all maps of files whose paths begin so, from /proc/self/smaps.
inline std::size_t resident_bytes(const std::string& path_prefix) {
  std::ifstream smaps("/proc/self/smaps");
  std::size_t kib = 0;
  bool wanted = false;
  for (std::string line; std::getline(smaps, line);) {
    constexpr std::size_t kRssText = 4;
    if (line.compare(0, kRssText, "Rss:") == 0) {
      if (wanted) kib += std::stoul(line.substr(kRssText));
    } else if (line.find('-') < line.find(' ')) {  // 7f12…-7f34… r--p 00000000 08:01 1234   PATH
      const std::size_t path = line.find('/');
      wanted = path != std::string::npos && line.compare(path, path_prefix.size(), path_prefix) == 0;
    }
  }
  return kib * 1024;
}

}  // namespace glint
