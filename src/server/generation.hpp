#pragma once
// From the engine's events to an API's answer: one exchange that runs one or several generations, takes their text
// apart, and tells it piece by piece (a stream) or at the end (whole). The APIs differ only in what they write.

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "glint/engine.hpp"
#include "server/service.hpp"
#include "text/output_parser.hpp"

namespace glint::server {

// A generated token with its log-probabilities, when they were asked for.
struct TokenScore {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;
};

// One generation and what is known of its answer.
struct Choice {
  std::size_t index = 0;
  RequestId id = 0;
  std::optional<OutputParser> parser;  // none: the text is all content
  ParsedOutput parsed;                 // of a whole answer; a stream keeps nothing but the counts
  std::vector<TokenScore> scores;      // of a whole answer all, of a stream those not yet told
  std::vector<std::int32_t> ids;       // generated; of a conversation only
  std::size_t n_calls = 0;
  std::int64_t reasoning_tokens = 0;
  bool in_reasoning = true;
  bool ended = false;
  Finish finish = Finish::kNone;
  std::string stop_string;
  Usage usage;

  // OpenAI's word: stop, length or tool_calls.
  const char* finish_reason() const;
};

// Prompt tokens once (the choices share a prompt, or `prompts` of them have one each), generated tokens of all.
struct Totals {
  std::int64_t prompt_tokens = 0;
  std::int64_t cached_tokens = 0;
  std::int64_t generated_tokens = 0;
  std::int64_t reasoning_tokens = 0;
};
Totals total_of(std::span<const Choice> choices, std::size_t choices_a_prompt);
// {"prompt_tokens", "completion_tokens", "total_tokens", …_details}
std::string openai_usage(const Totals& totals);

// How an API streams. Each appends to `out` what the client is to get; nothing may be kept back but by its own choice.
class StreamWriter {
 public:
  virtual ~StreamWriter() = default;
  // The request is on its way.
  virtual void open(std::int64_t prompt_tokens, std::string& out) { (void)prompt_tokens, (void)out; }
  // The first token is there, or the end.
  virtual void begin(std::string& out) { (void)out; }
  virtual void events(Choice& choice, const std::vector<OutputEvent>& events, std::string& out) = 0;
  virtual void end(Choice& choice, std::string& out) = 0;  // of one choice
  virtual void done(std::vector<Choice>& choices, std::string& out) = 0;
  virtual void error(const ApiErrorParts& parts, std::string& out) = 0;
  virtual void keep_alive(std::int64_t prompt_read, std::int64_t prompt_tokens, std::string& out);
};

struct GenerationSpec {
  std::vector<Request> requests;  // one a choice
  std::size_t choices_a_prompt = 1;
  std::vector<std::int32_t> chat_ids;  // of a conversation's prompt: its answers are remembered for the next turn
  std::optional<OutputParserOptions> parser;  // none: the text is all content
  bool parallel_calls = true;                 // false: the answer ends with its first complete call
  Slots slots;
  // One of the two.
  std::unique_ptr<StreamWriter> stream;
  std::function<std::string(std::vector<Choice>& choices)> whole;
};

// Submits the requests. Throws ApiError when the engine refuses one.
std::shared_ptr<Exchange> start_generation(const std::shared_ptr<Call>& call, GenerationSpec spec);

// The entry of a token in OpenAI's logprobs of a chat: token, bytes, logprob, top_logprobs.
void append_score(std::string& out, const Engine& engine, const TokenScore& score);
// The token's text, bytes that are no text replaced.
std::string token_text(const Engine& engine, std::int32_t id);
// A log-probability as JSON; -inf becomes -9999, as with OpenAI.
std::string logprob_text(float logprob);

}  // namespace glint::server
