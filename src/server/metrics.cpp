#include "server/metrics.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace glint::server {
namespace {

void head(std::string_view name, std::string_view type, std::string_view help, std::string& out) {
  out += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
}

template <typename T>
void single(std::string_view name, std::string_view type, std::string_view help, T value, std::string& out) {
  head(name, type, help, out);
  out += fmt::format("{} {}\n", name, value);
}

// A label's value: backslash, quote and line break escaped.
std::string label(std::string_view value) {
  std::string out;
  for (const char c : value) {
    if (c == '\n') {
      out += "\\n";
      continue;
    }
    if (c == '\\' || c == '"') out += '\\';
    out += c;
  }
  return out;
}

}  // namespace

void Histogram::add(double seconds) {
  const auto bucket = std::lower_bound(kBounds.begin(), kBounds.end(), seconds) - kBounds.begin();
  ++counts_[static_cast<std::size_t>(bucket)];
  sum_ += seconds;
}

void Histogram::print(std::string_view name, std::string_view help, std::string& out) const {
  head(name, "histogram", help, out);
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < kBounds.size(); ++i) {
    total += counts_[i];
    out += fmt::format("{}_bucket{{le=\"{}\"}} {}\n", name, kBounds[i], total);
  }
  total += counts_.back();
  out += fmt::format("{}_bucket{{le=\"+Inf\"}} {}\n{}_sum {}\n{}_count {}\n", name, total, name, sum_, name, total);
}

void Metrics::answered(std::string_view route, int status, double seconds) {
  const std::lock_guard lock(mutex_);
  ++answers_[{std::string(route), status}];
  request_s_.add(seconds);
}

void Metrics::generated(const Usage& usage, double first_token_s) {
  const std::lock_guard lock(mutex_);
  prompt_tokens_ += static_cast<std::uint64_t>(usage.prompt_tokens);
  cached_tokens_ += static_cast<std::uint64_t>(usage.cached_tokens);
  generated_tokens_ += static_cast<std::uint64_t>(usage.generated_tokens);
  queue_s_.add(usage.queue_s);
  if (first_token_s >= 0) first_token_s_.add(first_token_s);
  if (usage.generated_tokens > 1) token_s_.add(usage.decode_s / static_cast<double>(usage.generated_tokens - 1));
}

std::string Metrics::print(const EngineStats* stats, const ModelInfo* model, std::string_view model_name,
                           const ServiceState& service) const {
  std::string out;
  if (model != nullptr) {
    head("glint_model_info", "gauge", "The model that is served.", out);
    out += fmt::format("glint_model_info{{model=\"{}\",backend=\"{}\",max_context=\"{}\"}} 1\n", label(model_name),
                       label(model->backend), model->max_context);
  }
  single("glint_generations_in_flight", "gauge", "Generations that run or wait.", service.in_flight, out);
  single("glint_replay_bytes", "gauge", "Memory of the ids of recent conversations, 64 MB at most.",
         service.replay_bytes, out);
  head("glint_resident_bytes", "gauge", "Memory of the process: its own, and pages of files that the kernel may drop.",
       out);
  out += fmt::format("glint_resident_bytes{{kind=\"anonymous\"}} {}\nglint_resident_bytes{{kind=\"file\"}} {}\n",
                     service.memory.anonymous, service.memory.mapped_files);
  single("glint_heap_bytes", "gauge", "What malloc has taken from the system.", service.memory.heap, out);
  single("glint_heap_free_bytes", "gauge", "Of it, what nobody uses now.", service.memory.heap_free, out);
  if (stats != nullptr) {
    single("glint_running_requests", "gauge", "Requests that hold cache pages.", stats->running_requests, out);
    single("glint_waiting_requests", "gauge", "Requests in the engine's queue.", stats->waiting_requests, out);
    single("glint_cache_tokens", "gauge", "Tokens that the cache can hold.", stats->cache_tokens, out);
    if (model != nullptr) {
      single("glint_cache_bytes", "gauge", "Memory of the cache, anonymous, taken as its pages are first used.",
             stats->cache_tokens * model->cache_bytes_a_token, out);
    }
    single("glint_cache_tokens_used", "gauge", "Tokens of pages in use.", stats->cache_tokens_used, out);
    single("glint_cache_tokens_kept", "gauge", "Tokens kept for prompts that begin with them.",
           stats->cache_tokens_kept, out);
    single("glint_cache_hit_tokens_total", "counter", "Prompt tokens found in the cache when their request started.",
           stats->cached_tokens, out);
    single("glint_cache_evicted_tokens_total", "counter", "Kept tokens given up for others.", stats->evicted_tokens,
           out);
    single("glint_cache_disk_loaded_tokens_total", "counter", "Prompt tokens read from the cache directory.",
           stats->disk_loaded_tokens, out);
    single("glint_cache_disk_bytes", "gauge", "Size of the cache directory.", stats->disk_bytes, out);
    single("glint_preemptions_total", "counter", "Requests that gave their pages back and were read again.",
           stats->preemptions, out);
    single("glint_steps_total", "counter", "Steps of the engine.", stats->steps, out);
    single("glint_step_seconds_total", "counter", "Time inside steps.", stats->step_s, out);
    single("glint_prefill_rows_total", "counter", "Prompt tokens read, those read again included.",
           stats->prefill_tokens, out);
    single("glint_decode_rows_total", "counter", "Decode rows computed.", stats->decode_tokens, out);
  }
  const std::lock_guard lock(mutex_);
  single("glint_prompt_tokens_total", "counter", "Prompt tokens of ended generations.", prompt_tokens_, out);
  single("glint_cached_prompt_tokens_total", "counter", "Of them, found in the cache.", cached_tokens_, out);
  single("glint_generated_tokens_total", "counter", "Tokens generated by ended generations.", generated_tokens_, out);
  head("glint_http_requests_total", "counter", "Requests answered; status 499: the client left first.", out);
  for (const auto& [key, count] : answers_) {
    out += fmt::format("glint_http_requests_total{{route=\"{}\",status=\"{}\"}} {}\n", label(key.first), key.second,
                       count);
  }
  request_s_.print("glint_request_seconds", "From a request's arrival to the end of its answer.", out);
  queue_s_.print("glint_queue_seconds", "From submission to the first step.", out);
  first_token_s_.print("glint_time_to_first_token_seconds", "From a request's arrival to its first token.", out);
  token_s_.print("glint_time_per_output_token_seconds", "Mean time between tokens of a generation.", out);
  return out;
}

}  // namespace glint::server
