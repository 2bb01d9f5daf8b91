#pragma once
// Where this process's memory is, for whoever watches a server.

#include <cstdint>

namespace glint {

// Bytes; zeros where the system does not say.
struct ProcessMemory {
  std::int64_t anonymous = 0;     // resident, its own: cache, activations, heap, stacks
  std::int64_t mapped_files = 0;  // resident pages of files: weights and code, which the kernel may drop
  std::int64_t heap = 0;          // of anonymous: what malloc has taken from the system, touched or not
  std::int64_t heap_free = 0;     // of heap: nobody's now, kept for the next allocation
};
ProcessMemory process_memory();

}  // namespace glint
