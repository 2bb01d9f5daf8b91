#include "server/generation.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/clock.hpp"
#include "server/sse.hpp"
#include "text/decoder.hpp"

namespace glint::server {
namespace {

class Generation final : public Exchange, public std::enable_shared_from_this<Generation> {
 public:
  Generation(std::shared_ptr<Call> call, GenerationSpec spec) : call_(std::move(call)), spec_(std::move(spec)) {}
  ~Generation() override { abandon_all(); }

  void submit();
  void tick() override;
  void abort() override;

 private:
  void drain();
  void take(Choice& choice, Event event);
  void tell(Choice& choice, const std::vector<OutputEvent>& events);
  void end(Choice& choice, const Event& event, Finish finish);
  void complete();
  void fail(const ApiErrorParts& parts);
  void abandon_all();
  void flush();
  void note_usage();

  const std::shared_ptr<Call> call_;
  GenerationSpec spec_;
  std::vector<Choice> choices_;
  std::string out_;
  bool begun_ = false;
  bool over_ = false;
  std::int64_t prompt_read_ = 0;
  double told_s_ = now_s();  // when the client last got something
};

// A whole answer to the engine or none: when one request is refused, those before it are taken back.
void Generation::submit() {
  // Called on the engine's thread, perhaps after this and the connection have gone.
  const auto on_ready = [self = weak_from_this(), responder = call_->responder()] {
    const auto to = responder.lock();
    if (!to) return;
    to->post([self] {
      if (const auto generation = self.lock()) generation->drain();
    });
  };
  choices_.resize(spec_.requests.size());
  for (std::size_t i = 0; i < choices_.size(); ++i) {
    Choice& choice = choices_[i];
    choice.index = i;
    if (spec_.parser) choice.parser.emplace(*spec_.parser);
    choice.in_reasoning = spec_.parser && spec_.parser->thinking_enabled;
    choice.ended = true;  // until it is submitted
  }
  const std::size_t n_prompt_ids = spec_.requests[0].ids.size();
  for (std::size_t i = 0; i < choices_.size(); ++i) {
    Request& request = spec_.requests[i];
    request.on_ready = on_ready;
    choices_[i].id = call_->engine().submit(std::move(request));
    choices_[i].ended = false;
  }
  const auto prompt_tokens = static_cast<std::int64_t>(n_prompt_ids);
  spec_.requests.clear();
  call_->n_choices = choices_.size();
  call_->stream = spec_.stream != nullptr;
  if (!spec_.stream) return;
  call_->start_stream({.content_type = "text/event-stream; charset=utf-8",
                       .headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}}});
  spec_.stream->open(prompt_tokens, out_);
  flush();
}

void Generation::drain() {
  if (over_) return;
  try {
    for (Choice& choice : choices_) {
      while (!choice.ended) {
        std::optional<Event> event = call_->engine().next(choice.id, std::chrono::milliseconds(0));
        if (!event) break;
        take(choice, std::move(*event));
        if (over_) return;
      }
    }
    if (std::all_of(choices_.begin(), choices_.end(), [](const Choice& c) { return c.ended; })) return complete();
    flush();
  } catch (const std::exception& e) { fail({.status = 500, .message = e.what(), .code = "internal_error"}); }
}

void Generation::take(Choice& choice, Event event) {
  choice.usage = event.usage;
  prompt_read_ = std::max(prompt_read_, event.prefill_done);
  if (event.finish == Finish::kError) {
    choice.ended = true;
    return fail({.status = 500, .message = "the generation failed: " + event.error, .code = "generation_failed"});
  }
  if (event.finish == Finish::kTimeout) {
    choice.ended = true;
    return fail({.status = 504,
                 .message = "timeout: the answer was not complete after so many seconds",
                 .param = "timeout",
                 .code = "timeout"});
  }
  if (event.finish == Finish::kCancelled) {
    choice.ended = true;
    return fail(
        {.status = 503, .message = "the generation was cut off: the server is shutting down", .code = "cancelled"});
  }
  if (event.token >= 0 && !spec_.chat_ids.empty()) choice.ids.push_back(event.token);
  if (event.token >= 0 && call_->first_token_s < 0) call_->first_token_s = call_->age_s();
  if (event.logprob && event.finish != Finish::kEos) {  // end tokens are no part of the answer
    choice.scores.push_back({*event.logprob, std::move(event.top_logprobs)});
  }
  std::vector<OutputEvent> events;
  if (choice.parser) {
    events = choice.parser->feed(event.text);
  } else if (!event.text.empty()) {
    events.push_back({.kind = OutputEvent::Kind::kContent, .text = std::move(event.text)});
  }
  bool cut = false;
  if (!spec_.parallel_calls) {
    const auto call_end = std::find_if(events.begin(), events.end(),
                                       [](const OutputEvent& e) { return e.kind == OutputEvent::Kind::kToolCallEnd; });
    cut = call_end != events.end();
    if (cut) events.erase(call_end + 1, events.end());
  }
  tell(choice, events);
  if (choice.in_reasoning && event.token >= 0) choice.reasoning_tokens = event.usage.generated_tokens;
  if (cut) {
    if (event.finish == Finish::kNone) call_->engine().abandon(choice.id);
    return end(choice, event, Finish::kEos);
  }
  if (event.finish == Finish::kNone) return;
  if (choice.parser) {
    tell(choice, choice.parser->finish(event.finish == Finish::kLength ? OutputEnd::kLength : OutputEnd::kStop));
  }
  end(choice, event, event.finish);
}

void Generation::tell(Choice& choice, const std::vector<OutputEvent>& events) {
  for (const OutputEvent& e : events) {
    if (e.kind == OutputEvent::Kind::kToolCallStart) ++choice.n_calls;
    if (e.kind != OutputEvent::Kind::kReasoning) choice.in_reasoning = false;
    if (e.kind == OutputEvent::Kind::kSkippedThinking) choice.reasoning_tokens = 0;
  }
  if (!spec_.stream) return choice.parsed.add(events);
  if (events.empty()) return;
  if (!std::exchange(begun_, true)) spec_.stream->begin(out_);
  spec_.stream->events(choice, events, out_);
}

void Generation::end(Choice& choice, const Event& event, Finish finish) {
  choice.ended = true;
  choice.finish = finish;
  choice.stop_string = event.stop_string;
  if (!spec_.chat_ids.empty()) {
    choice.ids.insert(choice.ids.begin(), spec_.chat_ids.begin(), spec_.chat_ids.end());
    call_->service().replay().remember(call_->engine(), choice.ids);
    choice.ids = {};
  }
  if (!spec_.stream) return;
  if (!std::exchange(begun_, true)) spec_.stream->begin(out_);
  spec_.stream->end(choice, out_);
}

void Generation::note_usage() {
  const Totals totals = total_of(choices_, spec_.choices_a_prompt);
  call_->usage.prompt_tokens = totals.prompt_tokens;
  call_->usage.cached_tokens = totals.cached_tokens;
  call_->usage.generated_tokens = totals.generated_tokens;
  for (const Choice& choice : choices_) {
    if (choice.ended && choice.id != 0) call_->service().metrics().generated(choice.usage, call_->first_token_s);
  }
}

void Generation::complete() {
  note_usage();
  call_->finish_reason = choices_[0].finish_reason();
  std::string body;
  if (spec_.stream) {
    spec_.stream->done(choices_, out_);
  } else {
    body = spec_.whole(choices_);
  }
  over_ = true;
  spec_.slots = {};
  if (!spec_.stream) return call_->send_json(std::move(body));
  flush();
  call_->finish();
}

void Generation::fail(const ApiErrorParts& parts) {
  if (std::exchange(over_, true)) return;
  abandon_all();
  note_usage();
  call_->finish_reason = "error";
  spec_.slots = {};
  if (!spec_.stream) return call_->send_error(parts);
  spec_.stream->error(parts, out_);
  flush();
  call_->finish();
}

void Generation::tick() {
  if (over_ || !spec_.stream || now_s() - told_s_ < call_->options().keep_alive_s) return;
  spec_.stream->keep_alive(prompt_read_, choices_[0].usage.prompt_tokens, out_);
  flush();
}

void Generation::abort() {
  if (std::exchange(over_, true)) return;
  abandon_all();
  note_usage();
  call_->finish_reason = "abandoned";
  spec_.slots = {};
  call_->aborted();
}

void Generation::abandon_all() {
  for (Choice& choice : choices_) {
    if (!choice.ended) call_->engine().abandon(choice.id);
    choice.ended = true;
  }
}

void Generation::flush() {
  if (out_.empty()) return;
  told_s_ = now_s();
  call_->write(out_);
  out_.clear();
}

}  // namespace

const char* Choice::finish_reason() const {
  if (finish == Finish::kLength) return "length";
  return n_calls > 0 ? "tool_calls" : "stop";
}

Totals total_of(std::span<const Choice> choices, std::size_t choices_a_prompt) {
  Totals t;
  for (std::size_t i = 0; i < choices.size(); ++i) {
    if (i % choices_a_prompt == 0) {
      t.prompt_tokens += choices[i].usage.prompt_tokens;
      t.cached_tokens += choices[i].usage.cached_tokens;
    }
    t.generated_tokens += choices[i].usage.generated_tokens;
    t.reasoning_tokens += choices[i].reasoning_tokens;
  }
  return t;
}

std::string openai_usage(const Totals& t) {
  return fmt::format(R"({{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{},)"
                     R"("prompt_tokens_details":{{"cached_tokens":{}}},)"
                     R"("completion_tokens_details":{{"reasoning_tokens":{}}}}})",
                     t.prompt_tokens, t.generated_tokens, t.prompt_tokens + t.generated_tokens, t.cached_tokens,
                     t.reasoning_tokens);
}

void StreamWriter::keep_alive(std::int64_t prompt_read, std::int64_t prompt_tokens, std::string& out) {
  append_comment(out, prompt_read < prompt_tokens ? fmt::format("prompt {}/{}", prompt_read, prompt_tokens)
                                                  : std::string("keep-alive"));
}

std::shared_ptr<Exchange> start_generation(const std::shared_ptr<Call>& call, GenerationSpec spec) {
  const auto generation = std::make_shared<Generation>(call, std::move(spec));
  generation->submit();
  return generation;
}

std::string token_text(const Engine& engine, std::int32_t id) {
  const std::int32_t ids[] = {id};
  return replace_invalid_utf8(engine.decode(ids));
}

std::string logprob_text(float logprob) { return std::isfinite(logprob) ? fmt::format("{}", logprob) : "-9999.0"; }

namespace {

void append_token(std::string& out, const Engine& engine, const TokenLogprob& token) {
  const std::int32_t ids[] = {token.id};
  const std::string bytes = engine.decode(ids);
  out += R"({"token":)" + quoted(replace_invalid_utf8(bytes)) + R"(,"logprob":)" + logprob_text(token.logprob) +
         R"(,"bytes":[)";
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    if (i > 0) out += ',';
    out += std::to_string(static_cast<unsigned char>(bytes[i]));
  }
  out += ']';
}

}  // namespace

void append_score(std::string& out, const Engine& engine, const TokenScore& score) {
  append_token(out, engine, score.chosen);
  out += R"(,"top_logprobs":[)";
  for (std::size_t i = 0; i < score.top.size(); ++i) {
    if (i > 0) out += ',';
    append_token(out, engine, score.top[i]);
    out += '}';
  }
  out += "]}";
}

}  // namespace glint::server
