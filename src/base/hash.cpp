#include "base/hash.hpp"

#define XXH_INLINE_ALL  // header only: nothing to link
#include <xxhash.h>

namespace glint {
std::uint64_t hash64(const void* data, std::size_t bytes) { return XXH3_64bits(data, bytes); }
}  // namespace glint
