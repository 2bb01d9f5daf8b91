#pragma once
// Glint's C++ API: open a model, submit requests, read events. Self-contained: includes nothing of src/.
// The C ABI over it is glint.h.

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace glint {

struct EngineOptions {
  std::string model_dir;          // a checkpoint directory; with synthetic_layers > 0: whose tokenizer, or empty
  std::string device = "cpu";     // "cpu" or "reference"
  std::string isa;                // cpu: "" for the best, else generic, avx2, avx512, avx512vnni, avx512bf16, amx
  int threads = 0;                // cpu: 0 = one a core
  std::string kv = "auto";        // cache: "int16", "f16", "bf16", "fp8", "int8", "int4", "f32"; auto: int16, cuda bf16
  std::string weights;            // "int4", "int8", "nf4", "fp8", "bf16": quantise while loading; "": as stored
  std::int64_t max_context = 0;   // tokens a request may hold; 0: the model's own limit
  std::int64_t cache_tokens = 0;  // tokens the whole cache holds; 0: as many as fit in a share of the free memory
  std::int64_t chunk_tokens = 0;  // rows a step at most: long prompts are read in chunks of it; 0: the engine's choice
  std::int64_t touch_ahead_bytes = 0;  // of a host's cache: memory asked for before a step needs it; 0: none
  int max_requests = 64;               // requests that run at the same time; more wait
  float latent_eps = 0;                // 0: the config's rms_norm_eps; 1e-6 for bit parity with Hugging Face
  int window_tokens = 0;               // sliding-window attention; 0: dense
  bool prefix_cache = true;            // prompts that begin as earlier ones did start behind what is still in the cache
  bool use_thread = true;              // false: the caller drives the engine with step()
  int synthetic_layers = 0;            // > 0: random weights of the real shape with that many layers
  std::string cache_dir;               // what the prefix cache kept is written here and found again after a restart
  std::int64_t cache_dir_bytes = 0;    // at most; 0: 16 GiB
  // Called when something is wrong that costs speed and no result: a damaged file in cache_dir, a full disk. From any
  // thread; must not throw.
  std::function<void(const std::string&)> on_notice;
  // Called while loading with bytes done and in all.
  std::function<void(std::uint64_t, std::uint64_t)> on_load;
};

struct SamplingParams {
  float temperature = 1.0F;         // 0: greedy
  float top_p = 1.0F;               // (0, 1]
  int top_k = 0;                    // 0: off
  float min_p = 0.0F;               // [0, 1)
  float repetition_penalty = 1.0F;  // 1: off
  float presence_penalty = 0.0F;
  float frequency_penalty = 0.0F;
  std::optional<std::uint64_t> seed;  // none: a random one, reported in Usage
  std::vector<std::pair<std::int32_t, float>> logit_bias;
  int logprobs = -1;  // -1: none; 0: of the chosen token; n ≤ 20: and of the n most likely
};

struct Request {
  std::vector<std::int32_t> ids;  // the prompt, at least one token
  SamplingParams sampling;
  std::int64_t max_tokens = 0;         // 0: until the context is full
  std::vector<std::int32_t> stop_ids;  // besides the model's own end tokens
  std::vector<std::string> stop;       // strings that end the answer; not part of it
  bool ignore_eos = false;
  // The form that the answer must have: JSON with these fields, or empty for none. End tokens come only where the form
  // is complete; max_tokens and stop cut as ever. What of a schema cannot be promised is refused by submit().
  //   "json_schema": S         the answer is JSON of the schema S; "where": its name in messages
  //   "json_object": true      the answer is a JSON object
  //   "tools": […]             as in a chat request, with
  //     "tool_choice"          "required": the answer is calls, arguments by the tools' schemas. "auto": as without,
  //     but
  //                            calls keep to the tools, and of those that say "strict": true to their schemas; with a
  //                            json_schema, the answer is either
  //     "function": NAME       calls of this tool only
  //     "parallel_tool_calls"  false: one call
  //   "thinking": true         the prompt ended with <think>: the form begins behind </think>
  std::string constraint;
  int priority = 0;          // the smaller is admitted and read first and preempted last; nobody starves
  double timeout_s = 0;      // ends with kTimeout so long after submit(), waiting or running; 0: never
  bool skip_special = true;  // special tokens do not appear in Event::text (think and tool tags are not special)
  // For callers that cannot sit in next(): called when an event arrives where none was waiting, on the engine's thread,
  // so it must return at once, must not throw, and may be called before submit() has returned. The receiver then takes
  // events with next(id, 0 ms) until it gives none.
  std::function<void()> on_ready;
};

enum class Finish : std::uint8_t {
  kNone,       // not finished
  kEos,        // one of the model's end tokens
  kStop,       // a stop id or string
  kLength,     // max_tokens or the context
  kCancelled,  // cancel()
  kError,      // this request failed alone; see Event::error
  kTimeout,    // Request::timeout_s; what came before is valid
};

struct TokenLogprob {
  std::int32_t id = -1;
  float logprob = 0;  // of the model's distribution, before temperature, penalties and filters
};

struct Usage {
  std::int64_t prompt_tokens = 0;
  std::int64_t cached_tokens = 0;     // prompt tokens found in the cache
  std::int64_t generated_tokens = 0;  // end tokens included
  double queue_s = 0;                 // submit → first step
  double prefill_s = 0;               // first step → first token
  double decode_s = 0;                // first token → last token
  std::uint64_t seed = 0;
  std::uint64_t logits_hash = 0;  // xxh3 of the last logits row (F32), for comparing runs
};

struct Event {
  std::int32_t token = -1;  // -1: no token (prefill progress, a flush of text, or the end)
  std::string text;         // complete UTF-8 characters only; may be empty or hold several tokens' text
  std::optional<TokenLogprob> logprob;
  std::vector<TokenLogprob> top_logprobs;
  std::int64_t prefill_done = 0;  // prompt tokens read so far; < Usage::prompt_tokens while the prompt is being read
  Finish finish = Finish::kNone;
  std::string stop_string;  // the stop string that ended it
  std::string error;
  Usage usage;  // complete when finish is set; prompt_tokens always
};

struct EngineStats {
  std::int64_t steps = 0;
  std::int64_t running_requests = 0;
  std::int64_t waiting_requests = 0;
  std::int64_t prefill_tokens = 0;
  std::int64_t decode_tokens = 0;
  double step_s = 0;  // time inside steps
  std::int64_t cache_tokens = 0;
  std::int64_t cache_tokens_used = 0;  // of pages that running requests hold
  std::int64_t cache_tokens_kept = 0;  // of pages that wait for a prompt that begins with them; given up when needed
  std::int64_t cached_tokens = 0;      // prompt tokens that were found in the cache and not computed
  std::int64_t evicted_tokens = 0;     // of kept pages that were given up
  std::int64_t preemptions = 0;
  std::int64_t disk_loaded_tokens = 0;  // read from the cache directory
  std::int64_t disk_bytes = 0;          // what lies in it
  std::int64_t disk_files = 0;
};

struct ModelInfo {
  std::string model_dir;
  std::string backend;  // "cpu (avx2)"
  std::int64_t n_layers = 0;
  std::int64_t vocab = 0;
  std::int64_t n_parameters = 0;
  std::int64_t weight_bytes = 0;
  std::int64_t active_bytes = 0;  // weight bytes a decoded token reads
  std::int64_t cache_bytes_a_token = 0;
  std::int64_t max_context = 0;
  bool has_mtp = false;
  std::vector<std::int32_t> eos_ids;
  // Seconds that open() took, and of these until the device was there and for weights and vocabulary.
  double open_s = 0;
  double device_s = 0;
  double load_s = 0;
};

using RequestId = std::int64_t;

// Thread-safe. One engine thread owns model, cache and scheduler; submit/cancel and the event queues are the only
// crossings.
class Engine {
 public:
  // Loads the model. Throws glint::Error (src/base/error.hpp; a std::exception) when something about it is wrong.
  static std::unique_ptr<Engine> open(const EngineOptions& options);
  virtual ~Engine() = default;

  // Throws Error at once for a request that can never run (no tokens, ids outside the vocabulary, a prompt longer than
  // the context, parameters out of range). max_tokens is clipped to what fits.
  virtual RequestId submit(Request request) = 0;

  // The next event of that request: waits up to `timeout` (none: forever). nullopt: nothing yet. After an event with
  // finish set, the id is forgotten. With use_thread = false it runs step() until there is one.
  virtual std::optional<Event> next(RequestId id, std::optional<std::chrono::milliseconds> timeout = std::nullopt) = 0;

  // Ends the request at once; its pages are free before the next step. Its last event says kCancelled. Unknown ids are
  // ignored.
  virtual void cancel(RequestId id) = 0;

  // cancel(), by someone who will not ask for the events any more: the id is forgotten at once.
  virtual void abandon(RequestId id) = 0;

  // One step of the loop; false when there was nothing to do. Only with use_thread = false.
  virtual bool step() = 0;

  // log p(ids[i+1] | ids[0..i]) for i in [0, n-1): teacher forcing, for perplexity and for ranking answers.
  // window > 0 cuts ids into windows of window + 1 tokens that do not overlap (the last may be shorter) and predicts
  // each one's tokens after its first from that window alone; the results stand one after another. 0: all as one.
  // Windows run several at a time. Blocks; on_progress gets predictions done and in all, on the caller's thread.
  // Throws Error when a window does not fit the context.
  virtual std::vector<float> score(std::span<const std::int32_t> ids, std::int64_t window,
                                   const std::function<void(std::int64_t, std::int64_t)>& on_progress) = 0;
  std::vector<float> score(std::span<const std::int32_t> ids) { return score(ids, 0, {}); }

  virtual EngineStats stats() const = 0;
  virtual const ModelInfo& info() const = 0;

  // Text. encode: `literal` treats tags such as <|user|> in the text as plain text. Synthetic models have no tokenizer:
  // Error.
  virtual std::vector<std::int32_t> encode(std::string_view text, bool literal = false) const = 0;
  virtual std::string decode(std::span<const std::int32_t> ids, bool skip_special = false) const = 0;
  // {"messages", "tools", "enable_thinking", …} (JSON) → the prompt's text in the model's chat format, up to where the
  // answer begins unless "add_generation_prompt" is false.
  virtual std::string render_chat(std::string_view request_json) const = 0;
  // The model's answer → {"reasoning_content","content","tool_calls"} (JSON); options: {"tools", "enable_thinking"}
  // (JSON).
  virtual std::string parse_output(std::string_view text, std::string_view options_json) const = 0;
};

}  // namespace glint
