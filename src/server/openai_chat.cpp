// POST /v1/chat/completions.

#include <fmt/format.h>

#include <ctime>

#include "server/chat_start.hpp"
#include "server/endpoints.hpp"
#include "server/request_fields.hpp"
#include "server/sse.hpp"

namespace glint::server {
namespace {

constexpr std::int64_t kMaxChoices = 128;

struct ChatCall {
  Conversation conversation;
  Request request;  // without ids
  std::size_t n = 1;
  bool stream = false;
  bool include_usage = false;
  bool usage_in_chunks = false;  // in every one, as far as it has got
};

// What every answer and chunk begins with.
std::string answer_head(const Call& call, const std::string& id, std::string_view object) {
  return fmt::format(R"({{"id":"{}","object":"{}","created":{},"model":{})", id, object, std::time(nullptr),
                     quoted(call.options().model_name));
}

void refuse_unsupported(const Fields& body) {
  if (const JsonValue* modalities = body.array("modalities")) {
    for (const JsonValue& m : modalities->items) {
      if (m != JsonValue("text")) throw unsupported("modalities", shown(m), "text is");
    }
  }
  for (const char* name : {"audio", "web_search_options"}) {
    if (body.has(name)) throw unsupported(name, "this", "the model reads and writes text only");
  }
  if (body.boolean("continue_final_message").value_or(false)) throw unsupported("continue_final_message", "true");
}

void read_logprobs(const Fields& body, SamplingParams& sampling) {
  const bool wanted = body.boolean("logprobs").value_or(false);
  const auto top = body.integer("top_logprobs", 0, 20);
  if (top && !wanted) throw bad_field("top_logprobs", "logprobs that are off", "\"logprobs\": true beside it");
  sampling.logprobs = wanted ? static_cast<int>(top.value_or(0)) : -1;
}

ChatCall read_chat_call(const Fields& body, const ServiceOptions& options) {
  ChatCall c;
  check_model(body);
  refuse_unsupported(body);
  c.conversation = read_conversation(body);
  c.request.sampling = read_sampling(body, options.sampling);
  read_logprobs(body, c.request.sampling);
  constexpr std::int64_t kMostTokens = 1 << 30;
  const auto old_name = body.integer("max_tokens", 1, kMostTokens);
  const auto new_name = body.integer("max_completion_tokens", 1, kMostTokens);
  c.request.max_tokens = new_name ? *new_name : old_name.value_or(0);
  read_schedule(body, c.request);
  c.request.stop = read_stop(body, "stop");
  c.request.stop_ids = body.ids("stop_token_ids").value_or(std::vector<std::int32_t>{});
  c.request.ignore_eos = body.boolean("ignore_eos").value_or(false);
  c.n = static_cast<std::size_t>(body.integer("n", 1, kMaxChoices).value_or(1));
  c.stream = body.boolean("stream").value_or(false);
  if (const JsonValue* stream_options = body.object("stream_options")) {
    if (!c.stream) throw bad_field("stream_options", "an object", "nothing where \"stream\" is not true");
    const Fields options_read(*stream_options, "stream_options");
    c.include_usage = options_read.boolean("include_usage").value_or(false);
    c.usage_in_chunks = c.include_usage && options_read.boolean("continuous_usage_stats").value_or(false);
  }
  return c;
}

std::string scores_json(const Engine& engine, const std::vector<TokenScore>& scores) {
  std::string out = R"({"content":[)";
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (i > 0) out += ',';
    append_score(out, engine, scores[i]);
  }
  return out + R"(],"refusal":null})";
}

// ---- whole -----------------------------------------------------------------------------------------------------

std::string message_json(const ParsedOutput& parsed) {
  std::string out = R"({"role":"assistant","content":)";
  out += parsed.content.empty() && !parsed.tool_calls.empty() ? "null" : quoted(parsed.content);
  if (!parsed.reasoning.empty()) out += R"(,"reasoning_content":)" + quoted(parsed.reasoning);
  out += R"(,"refusal":null)";
  if (!parsed.tool_calls.empty()) {
    out += R"(,"tool_calls":[)";
    for (std::size_t i = 0; i < parsed.tool_calls.size(); ++i) {
      const ParsedToolCall& c = parsed.tool_calls[i];
      out += fmt::format(R"({}{{"id":"{}","type":"function","function":{{"name":{},"arguments":{}}}}})",
                         i > 0 ? "," : "", random_id("call_"), quoted(c.name), quoted(c.arguments));
    }
    out += ']';
  }
  return out + '}';
}

std::string whole_answer(const Call& call, bool with_scores, std::vector<Choice>& choices) {
  std::string out = answer_head(call, random_id("chatcmpl-"), "chat.completion") + R"(,"choices":[)";
  for (const Choice& c : choices) {
    out += fmt::format(R"({}{{"index":{},"message":{},"logprobs":{},"finish_reason":"{}"}})", c.index > 0 ? "," : "",
                       c.index, message_json(c.parsed),
                       with_scores ? scores_json(call.engine(), c.scores) : std::string("null"), c.finish_reason());
  }
  return out + R"(],"usage":)" + openai_usage(total_of(choices, choices.size())) + '}';
}

// ---- streamed --------------------------------------------------------------------------------------------------

class ChatStream final : public StreamWriter {
 public:
  ChatStream(const Call& call, const ChatCall& c)
      : engine_(call.engine()),
        head_(answer_head(call, random_id("chatcmpl-"), "chat.completion.chunk")),
        n_(c.n),
        with_scores_(c.request.sampling.logprobs >= 0),
        include_usage_(c.include_usage),
        usage_in_chunks_(c.usage_in_chunks) {}

  void begin(std::string& out) override {
    for (std::size_t i = 0; i < n_; ++i)
      chunk({.index = i}, R"({"role":"assistant","content":""})", "null", "null", out);
  }

  void events(Choice& choice, const std::vector<OutputEvent>& events, std::string& out) override {
    for (const OutputEvent& e : events) {
      const std::string delta = delta_of(e);
      if (!delta.empty()) chunk(choice, delta, take_scores(choice), "null", out);
    }
  }

  void end(Choice& choice, std::string& out) override {
    chunk(choice, "{}", take_scores(choice), fmt::format("\"{}\"", choice.finish_reason()), out);
  }

  void done(std::vector<Choice>& choices, std::string& out) override {
    if (include_usage_) {
      append_data(out, head_ + R"(,"choices":[],"usage":)" + openai_usage(total_of(choices, choices.size())) + '}');
    }
    append_data(out, "[DONE]");
  }

  void error(const ApiErrorParts& parts, std::string& out) override {
    append_data(out, error_body(parts, Dialect::kOpenAi, ""));
  }

 private:
  static std::string delta_of(const OutputEvent& e) {
    switch (e.kind) {
      case OutputEvent::Kind::kReasoning:
        return R"({"reasoning_content":)" + quoted(e.text) + '}';
      case OutputEvent::Kind::kContent:
      case OutputEvent::Kind::kSkippedThinking:
        return R"({"content":)" + quoted(e.text) + '}';
      case OutputEvent::Kind::kToolCallStart:
        return fmt::format(
            R"({{"tool_calls":[{{"index":{},"id":"{}","type":"function","function":{{"name":{},"arguments":""}}}}]}})",
            e.tool_index, random_id("call_"), quoted(e.text));
      case OutputEvent::Kind::kToolCallArguments:
        return fmt::format(R"({{"tool_calls":[{{"index":{},"function":{{"arguments":{}}}}}]}})", e.tool_index,
                           quoted(e.text));
      case OutputEvent::Kind::kToolCallEnd:
        break;
    }
    return "";
  }

  // Scores go with the next chunk: text is held back while it may be a tag, its tokens are not.
  std::string take_scores(Choice& choice) const {
    if (!with_scores_ || choice.scores.empty()) return "null";
    std::string json = scores_json(engine_, choice.scores);
    choice.scores.clear();
    return json;
  }

  void chunk(const Choice& choice, std::string_view delta, std::string_view scores, std::string_view finish,
             std::string& out) const {
    std::string usage = include_usage_ ? R"(,"usage":null)" : "";
    if (usage_in_chunks_ && choice.usage.prompt_tokens > 0)
      usage = R"(,"usage":)" + openai_usage(total_of({&choice, 1}, 1));
    append_data(out, fmt::format(R"({},"choices":[{{"index":{},"delta":{},"logprobs":{},"finish_reason":{}}}]{}}})",
                                 head_, choice.index, delta, scores, finish, usage));
  }

  const Engine& engine_;
  const std::string head_;
  const std::size_t n_;
  const bool with_scores_;
  const bool include_usage_;
  const bool usage_in_chunks_;
};

}  // namespace

std::shared_ptr<Exchange> post_chat_completions(const std::shared_ptr<Call>& call) {
  const JsonValue json = parse_body(call->request().body);
  ChatCall c = read_chat_call(Fields(json, ""), call->options());
  ChatStart start{.n = c.n};
  if (c.stream) {
    start.stream = std::make_unique<ChatStream>(*call, c);
  } else {
    const bool with_scores = c.request.sampling.logprobs >= 0;
    // The generation owns this and the call, so a plain reference is good.
    start.whole = [&answered = *call, with_scores](std::vector<Choice>& choices) {
      return whole_answer(answered, with_scores, choices);
    };
  }
  start.conversation = std::move(c.conversation);
  start.request = std::move(c.request);
  return start_chat(call, std::move(start));
}

}  // namespace glint::server
