#include "engine/memory.hpp"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>
#include <string>
#include <string_view>

#include "base/error.hpp"

namespace glint {
namespace {

// The first number of a file such as memory.max; -1 when there is none ("max") or no file.
std::int64_t read_number(const char* path) {
  std::ifstream file(path);
  std::int64_t value = -1;
  return file >> value ? value : -1;
}

std::int64_t meminfo_available() {
  std::ifstream file("/proc/meminfo");
  std::string line;
  while (std::getline(file, line)) {
    constexpr std::string_view kKey = "MemAvailable:";
    if (!line.starts_with(kKey)) continue;
    const std::size_t digit = line.find_first_of("0123456789");
    std::int64_t kib = 0;
    if (digit == std::string::npos) return 0;
    std::from_chars(line.data() + digit, line.data() + line.size(), kib);
    return kib * 1024;
  }
  return 0;
}

std::int64_t round_up_to_page(std::int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens * kPageTokens; }

std::string gib(std::int64_t bytes) {
  const std::string text = std::to_string(static_cast<double>(bytes) / (1 << 30));
  return text.substr(0, text.find('.') + 3) + " GiB";
}

}  // namespace

std::int64_t available_memory() {
  std::int64_t available = meminfo_available();
  const auto limit_by = [&](const char* max_path, const char* current_path) {
    const std::int64_t limit = read_number(max_path);
    const std::int64_t current = read_number(current_path);
    if (limit <= 0 || current < 0 || limit >= std::int64_t{1} << 60) return;
    const std::int64_t left = std::max<std::int64_t>(1, limit - current);
    available = available == 0 ? left : std::min(available, left);
  };
  limit_by("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current");
  limit_by("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes");
  return available;
}

std::int64_t default_chunk(std::int64_t device_bytes) {
  constexpr std::int64_t kRoomy = std::int64_t{12} << 30;
  return device_bytes >= kRoomy ? 2048 : 512;
}

CachePlan plan_cache(const EngineOptions& options, const ModelConfig& config, KvCodec codec,
                     const MemoryState& memory) {
  const std::int64_t token_bytes = config.n_cache_layers() * kv_row_bytes(codec);
  const std::string token_text = std::to_string(token_bytes) + " bytes a token";
  if (options.max_context > config.max_positions) {
    throw Error({.what = "max_context",
                 .found = std::to_string(options.max_context),
                 .expected = "at most " + std::to_string(config.max_positions) + ", the model's own limit"});
  }
  const std::int64_t wanted_context = options.max_context > 0 ? options.max_context : config.max_positions;

  std::int64_t fits = std::numeric_limits<std::int64_t>::max() / token_bytes;
  if (memory.available_bytes > 0) fits = memory.available_bytes / token_bytes;
  CachePlan plan;
  if (options.cache_tokens > 0) {
    plan.cache_tokens = round_up_to_page(options.cache_tokens);
    if (plan.cache_tokens > fits) {
      throw Error({.what = "cache of " + std::to_string(plan.cache_tokens) + " tokens",
                   .found = gib(memory.available_bytes) + " of free memory",
                   .expected = gib(plan.cache_tokens * token_bytes) + " (" + token_text + ")",
                   .hint = "lower cache_tokens"});
    }
  } else {
    // Weights in mapped files count as available memory, though a model that loses them reads them again and again.
    const std::int64_t left = std::max(memory.available_bytes - memory.mapped_bytes, memory.available_bytes / 4);
    const auto share = static_cast<std::int64_t>(kCacheShare * static_cast<double>(left)) / token_bytes;
    const std::int64_t useful = round_up_to_page(wanted_context) * options.max_requests;
    plan.cache_tokens = memory.available_bytes == 0 ? useful : std::min(useful, share);
    plan.cache_tokens = plan.cache_tokens / kPageTokens * kPageTokens;
  }
  // The books count slots in 32 bits.
  plan.cache_tokens =
      std::min<std::int64_t>(plan.cache_tokens, std::numeric_limits<std::int32_t>::max() / kPageTokens * kPageTokens);
  if (plan.cache_tokens < kPageTokens || (options.max_context > 0 && options.max_context > plan.cache_tokens)) {
    throw Error({.what = "context of " + std::to_string(wanted_context) + " tokens",
                 .found = "room for " + std::to_string(plan.cache_tokens) + " tokens in the cache",
                 .expected = gib(wanted_context * token_bytes) + " (" + token_text + ")",
                 .hint = "lower max_context, raise cache_tokens, or free memory (" + gib(memory.available_bytes) +
                         " are available)"});
  }
  plan.max_context = std::min(wanted_context, plan.cache_tokens);
  return plan;
}

}  // namespace glint
