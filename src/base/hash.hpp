#pragma once
// The hash that runs are compared by: XXH3, 64 bits.

#include <cstddef>
#include <cstdint>

namespace glint {
std::uint64_t hash64(const void* data, std::size_t bytes);
}  // namespace glint
