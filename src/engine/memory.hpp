#pragma once
// How many tokens the cache holds, from what memory is free.

#include <cstdint>

#include "glint/engine.hpp"
#include "models/glm_4_7_flash/config.hpp"
#include "ops/params.hpp"

namespace glint {

// Bytes that this process may still take: the smaller of /proc/meminfo's MemAvailable and what the control group's
// limit leaves. 0: unknown.
std::int64_t available_memory();

struct CachePlan {
  std::int64_t max_context = 0;   // tokens a request may hold
  std::int64_t cache_tokens = 0;  // tokens of all pages
};

struct MemoryState {
  std::int64_t available_bytes = 0;  // 0: unknown
  std::int64_t mapped_bytes = 0;     // weights in mapped files: counted as available, but wanted in memory
};

// The share of the free memory that the cache may take when nobody says how large it is to be.
inline constexpr double kCacheShare = 0.6;

// Rows of a step where the caller leaves the choice. `device_bytes`: free on the device when the weights are there
// (and a cache whose size is given); negative on a host, whose steps take as long as they have rows. On a device each
// chunk of a prompt reads all experts again: 2,048 rows take 1.6 (BF16) to 2.6 times (INT4) as long as 512
// (docs/gpu.md). Where weights fill it, their workspace would take the cache's room.
std::int64_t default_chunk(std::int64_t device_bytes);

// Fills in what the options leave open. Throws Error when what they ask for does not fit the model or the memory.
CachePlan plan_cache(const EngineOptions& options, const ModelConfig& config, KvCodec codec, const MemoryState& memory);

}  // namespace glint
