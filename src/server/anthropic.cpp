// POST /v1/messages and /v1/messages/count_tokens.

#include <fmt/format.h>

#include "server/anthropic_fields.hpp"
#include "server/chat_start.hpp"
#include "server/endpoints.hpp"
#include "server/request_fields.hpp"
#include "server/sse.hpp"

namespace glint::server {
namespace {

using EventKind = OutputEvent::Kind;

// Clients send a thinking block back with its signature; here it proves nothing and is not looked at.
constexpr std::string_view kSignature = "glint";

const char* stop_reason(const Choice& c) {
  if (c.finish == Finish::kLength) return "max_tokens";
  if (c.n_calls > 0) return "tool_use";
  return c.stop_string.empty() ? "end_turn" : "stop_sequence";
}

std::string stop_json(const Choice& c) {
  return fmt::format(R"("stop_reason":"{}","stop_sequence":{})", stop_reason(c),
                     c.stop_string.empty() ? "null" : quoted(c.stop_string));
}

// input_tokens are those that were not found in the cache.
std::string usage_json(std::int64_t prompt, std::int64_t cached, std::int64_t generated) {
  return fmt::format(R"({{"input_tokens":{},"cache_creation_input_tokens":0,"cache_read_input_tokens":{},)"
                     R"("output_tokens":{}}})",
                     prompt - cached, cached, generated);
}

std::string whole_message(const Call& call, const Choice& c) {
  std::string blocks;
  const auto add = [&blocks](const std::string& block) { blocks += (blocks.empty() ? "" : ",") + block; };
  if (!c.parsed.reasoning.empty()) {
    add(fmt::format(R"({{"type":"thinking","thinking":{},"signature":"{}"}})", quoted(c.parsed.reasoning), kSignature));
  }
  if (!c.parsed.content.empty()) add(R"({"type":"text","text":)" + quoted(c.parsed.content) + '}');
  for (const ParsedToolCall& t : c.parsed.tool_calls) {
    add(fmt::format(R"({{"type":"tool_use","id":"{}","name":{},"input":{}}})", random_id("toolu_"), quoted(t.name),
                    t.arguments));
  }
  return fmt::format(R"({{"id":"{}","type":"message","role":"assistant","model":{},"content":[{}],{},"usage":{}}})",
                     random_id("msg_"), quoted(call.options().model_name), blocks, stop_json(c),
                     usage_json(c.usage.prompt_tokens, c.usage.cached_tokens, c.usage.generated_tokens));
}

class MessageStream final : public StreamWriter {
 public:
  explicit MessageStream(const Call& call) : model_(quoted(call.options().model_name)), request_id_(call.id()) {}

  void open(std::int64_t prompt_tokens, std::string& out) override {
    append_event(out, "message_start",
                 fmt::format(R"({{"type":"message_start","message":{{"id":"{}","type":"message","role":"assistant",)"
                             R"("model":{},"content":[],"stop_reason":null,"stop_sequence":null,"usage":{}}}}})",
                             random_id("msg_"), model_, usage_json(prompt_tokens, 0, 0)));
  }

  void events(Choice&, const std::vector<OutputEvent>& events, std::string& out) override {
    for (const OutputEvent& e : events) {
      switch (e.kind) {
        case EventKind::kReasoning:
          begin(Block::kThinking, R"({"type":"thinking","thinking":"","signature":""})", out);
          delta(R"({"type":"thinking_delta","thinking":)" + quoted(e.text) + '}', out);
          break;
        case EventKind::kContent:
        case EventKind::kSkippedThinking:
          begin(Block::kText, R"({"type":"text","text":""})", out);
          delta(R"({"type":"text_delta","text":)" + quoted(e.text) + '}', out);
          break;
        case EventKind::kToolCallStart:
          close(out);
          begin(Block::kTool,
                fmt::format(R"({{"type":"tool_use","id":"{}","name":{},"input":{{}}}})", random_id("toolu_"),
                            quoted(e.text)),
                out);
          break;
        case EventKind::kToolCallArguments:
          delta(R"({"type":"input_json_delta","partial_json":)" + quoted(e.text) + '}', out);
          break;
        case EventKind::kToolCallEnd:
          close(out);
          break;
      }
    }
  }

  void end(Choice& c, std::string& out) override {
    close(out);
    append_event(out, "message_delta",
                 fmt::format(R"({{"type":"message_delta","delta":{{{}}},"usage":{}}})", stop_json(c),
                             usage_json(c.usage.prompt_tokens, c.usage.cached_tokens, c.usage.generated_tokens)));
  }

  void done(std::vector<Choice>&, std::string& out) override {
    append_event(out, "message_stop", R"({"type":"message_stop"})");
  }

  void error(const ApiErrorParts& parts, std::string& out) override {
    append_event(out, "error", error_body(parts, Dialect::kAnthropic, request_id_));
  }

  void keep_alive(std::int64_t, std::int64_t, std::string& out) override {
    append_event(out, "ping", R"({"type":"ping"})");
  }

 private:
  enum class Block : std::uint8_t { kNone, kThinking, kText, kTool };

  void begin(Block block, std::string_view start, std::string& out) {
    if (block_ == block) return;
    close(out);
    block_ = block;
    append_event(out, "content_block_start",
                 fmt::format(R"({{"type":"content_block_start","index":{},"content_block":{}}})", index_, start));
  }
  using StreamWriter::begin;

  void delta(std::string_view json, std::string& out) const {
    append_event(out, "content_block_delta",
                 fmt::format(R"({{"type":"content_block_delta","index":{},"delta":{}}})", index_, json));
  }

  void close(std::string& out) {
    if (block_ == Block::kNone) return;
    if (block_ == Block::kThinking) {
      delta(fmt::format(R"({{"type":"signature_delta","signature":"{}"}})", kSignature), out);
    }
    append_event(out, "content_block_stop", fmt::format(R"({{"type":"content_block_stop","index":{}}})", index_));
    block_ = Block::kNone;
    ++index_;
  }

  const std::string model_;
  const std::string request_id_;
  Block block_ = Block::kNone;
  std::size_t index_ = 0;
};

}  // namespace

std::shared_ptr<Exchange> post_messages(const std::shared_ptr<Call>& call) {
  const JsonValue json = parse_body(call->request().body);
  const Fields body(json, "");
  check_model(body);
  ChatStart start;
  start.conversation = read_anthropic_conversation(body);
  start.request.sampling = read_sampling(body, call->options().sampling);
  const auto max_tokens = body.integer("max_tokens", 1, 1 << 30);
  if (!max_tokens) body.fail("max_tokens", "an integer");
  start.request.max_tokens = *max_tokens;
  start.request.stop = read_stop(body, "stop_sequences");
  read_schedule(body, start.request);
  if (body.boolean("stream").value_or(false)) {
    start.stream = std::make_unique<MessageStream>(*call);
  } else {
    start.whole = [&answered = *call](std::vector<Choice>& choices) { return whole_message(answered, choices[0]); };
  }
  return start_chat(call, std::move(start));
}

std::shared_ptr<Exchange> post_count_tokens(const std::shared_ptr<Call>& call) {
  const JsonValue json = parse_body(call->request().body);
  const Conversation c = read_anthropic_conversation(Fields(json, ""));
  call->send_json(fmt::format(R"({{"input_tokens":{}}})",
                              call->service().replay().encode(call->engine(), render_chat(c.chat)).size()));
  return nullptr;
}

}  // namespace glint::server
