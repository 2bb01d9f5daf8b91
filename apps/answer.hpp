#pragma once
// A model's answer as it comes: printed piece by piece, and kept as reasoning, content and tool calls.

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "glint/engine.hpp"
#include "text/output_parser.hpp"

namespace glint::apps {

// Where an answer is printed.
struct AnswerStyle {
  bool print = true;           // false: only keep it (--json)
  bool dim_think = false;      // reasoning in grey: on a terminal
  bool chat = true;            // false: raw text, not parsed
  bool thinking = true;        // the prompt ended with <think>
  bool plain_content = false;  // after the reasoning nothing is a tag: JSON of a schema
};

struct Answer {
  std::string text;  // all of it, tags included
  ParsedOutput parsed;
  Finish finish = Finish::kNone;
  std::string stop_string;
  Usage usage;
  struct Token {
    TokenLogprob chosen;
    std::vector<TokenLogprob> top;
  };
  std::vector<Token> logprobs;  // when asked for
};

// Submits the request and follows it to its end. A progress bar shows a long prompt being read. When *interrupted
// becomes true the request is cancelled. Throws Error when the request fails.
Answer follow(Engine& engine, const Request& request, const AnswerStyle& style, bool quiet,
              const std::atomic<bool>* interrupted = nullptr);

// "18 prompt tokens at 420 tok/s · 64 tokens at 812 tok/s, 31.2 GB/s · seed 7 · logits 0123456789abcdef"
std::string speed_line(const Answer& answer, const ModelInfo& info);

const char* finish_name(Finish finish);

}  // namespace glint::apps
