#include "answer.hpp"

#include <fmt/core.h>

#include <chrono>
#include <cstdio>
#include <optional>

#include "base/error.hpp"
#include "progress.hpp"

namespace glint::apps {
namespace {

constexpr const char* kDim = "\033[2m";
constexpr const char* kPlain = "\033[0m";

class Printer {
 public:
  explicit Printer(const AnswerStyle& style) : style_(style) {}
  ~Printer() { set_dim(false); }
  Printer(const Printer&) = delete;
  Printer& operator=(const Printer&) = delete;

  void raw(std::string_view text) { put(text); }

  void events(const std::vector<OutputEvent>& events) {
    for (const OutputEvent& e : events) {
      switch (e.kind) {
        case OutputEvent::Kind::kReasoning:
          begin_reasoning();
          put(e.text);
          break;
        case OutputEvent::Kind::kContent:
          content(e.text);
          break;
        case OutputEvent::Kind::kSkippedThinking:
          break;  // already printed, as reasoning
        case OutputEvent::Kind::kToolCallStart:
          content((at_line_start_ ? "→ " : "\n→ ") + e.text + " ");
          break;
        case OutputEvent::Kind::kToolCallArguments:
          content(e.text);
          break;
        case OutputEvent::Kind::kToolCallEnd:
          content(e.complete ? "\n" : " …\n");
          break;
      }
    }
  }

  void finish() {
    set_dim(false);
    if (style_.print && !at_line_start_) std::fputc('\n', stdout);
    std::fflush(stdout);
  }

 private:
  void begin_reasoning() {
    if (in_reasoning_) return;
    in_reasoning_ = true;
    set_dim(true);
    if (!style_.dim_think) put("<think>");
  }

  void content(std::string_view text) {
    if (in_reasoning_) {
      in_reasoning_ = false;
      put(style_.dim_think ? "\n" : "</think>\n");
      set_dim(false);
    }
    put(text);
  }

  void set_dim(bool on) {
    if (!style_.print || !style_.dim_think || on == dim_) return;
    std::fputs(on ? kDim : kPlain, stdout);
    std::fflush(stdout);
    dim_ = on;
  }

  void put(std::string_view text) {
    if (text.empty() || !style_.print) return;
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
    at_line_start_ = text.back() == '\n';
  }

  AnswerStyle style_;
  bool in_reasoning_ = false;
  bool dim_ = false;
  bool at_line_start_ = true;
};

}  // namespace

const char* finish_name(Finish finish) {
  switch (finish) {
    case Finish::kNone:
      return "none";
    case Finish::kEos:
    case Finish::kStop:
      return "stop";
    case Finish::kLength:
      return "length";
    case Finish::kTimeout:
      return "timeout";
    case Finish::kCancelled:
      return "cancelled";
    case Finish::kError:
      return "error";
  }
  return "?";
}

Answer follow(Engine& engine, const Request& request, const AnswerStyle& style, bool quiet,
              const std::atomic<bool>* interrupted) {
  Answer answer;
  Printer printer(style);
  std::optional<OutputParser> parser;
  if (style.chat)
    parser.emplace(OutputParserOptions{.thinking_enabled = style.thinking,
                                       .plain_content = style.plain_content,
                                       .parse_tool_calls = !style.plain_content});
  ProgressBar bar("reading the prompt", Unit::kTokens, !quiet && style.print);

  const RequestId id = engine.submit(request);
  bool cancelled = false;
  while (answer.finish == Finish::kNone) {
    if (interrupted != nullptr && *interrupted && !cancelled) {
      engine.cancel(id);
      cancelled = true;
    }
    const std::optional<Event> event = engine.next(id, std::chrono::milliseconds(50));
    if (!event) continue;
    if (event->prefill_done < event->usage.prompt_tokens) {
      bar.update(static_cast<std::uint64_t>(event->prefill_done),
                 static_cast<std::uint64_t>(event->usage.prompt_tokens));
    } else {
      bar.clear();
    }
    answer.text += event->text;
    if (event->logprob) answer.logprobs.push_back({*event->logprob, event->top_logprobs});
    if (parser) {
      const std::vector<OutputEvent> events = parser->feed(event->text);
      answer.parsed.add(events);
      printer.events(events);
    } else {
      printer.raw(event->text);
    }
    if (event->finish == Finish::kError) throw Error({.what = "the request failed", .found = event->error});
    answer.finish = event->finish;
    answer.stop_string = event->stop_string;
    answer.usage = event->usage;
  }
  if (parser) {
    const bool cut = answer.finish == Finish::kLength || answer.finish == Finish::kCancelled;
    const std::vector<OutputEvent> events = parser->finish(cut ? OutputEnd::kLength : OutputEnd::kStop);
    answer.parsed.add(events);
    printer.events(events);
  } else {
    answer.parsed.content = answer.text;
  }
  printer.finish();
  return answer;
}

std::string speed_line(const Answer& answer, const ModelInfo& info) {
  const Usage& u = answer.usage;
  const auto rate = [](std::int64_t tokens, double seconds) {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
  };
  // The first token comes out of the prefill; decode_s is the time of the others.
  const double decode_rate = rate(u.generated_tokens - 1, u.decode_s);
  std::string line = fmt::format("{} prompt tokens at {:.0f} tok/s · {} tokens", u.prompt_tokens,
                                 rate(u.prompt_tokens - u.cached_tokens, u.prefill_s), u.generated_tokens);
  if (u.generated_tokens > 1) {
    line += fmt::format(" at {:.1f} tok/s, {:.1f} GB/s", decode_rate,
                        decode_rate * static_cast<double>(info.active_bytes) * 1e-9);
  }
  return line + fmt::format(" · {} · {} · seed {} · logits {:016x}", finish_name(answer.finish), info.backend, u.seed,
                            u.logits_hash);
}

}  // namespace glint::apps
