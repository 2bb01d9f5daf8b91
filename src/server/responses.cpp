// POST /v1/responses: OpenAI's Responses API without stored conversations.

#include <fmt/format.h>

#include <ctime>

#include "server/chat_start.hpp"
#include "server/endpoints.hpp"
#include "server/request_fields.hpp"
#include "server/responses_fields.hpp"
#include "server/sse.hpp"

namespace glint::server {
namespace {

using EventKind = OutputEvent::Kind;
using Kind = JsonValue::Kind;

// ---- items -----------------------------------------------------------------------------------------------------

std::string text_part(std::string_view text) {
  return R"({"type":"output_text","text":)" + quoted(text) + R"(,"annotations":[],"logprobs":[]})";
}
std::string reasoning_part(std::string_view text) { return R"({"type":"reasoning_text","text":)" + quoted(text) + '}'; }

// `part`: empty while the item is being written.
std::string message_item(std::string_view id, std::string_view status, std::string_view part) {
  return fmt::format(R"({{"id":"{}","type":"message","status":"{}","role":"assistant","content":[{}]}})", id, status,
                     part);
}
std::string reasoning_item(std::string_view id, std::string_view status, std::string_view part) {
  return fmt::format(R"({{"id":"{}","type":"reasoning","summary":[],"content":[{}],"status":"{}"}})", id, part, status);
}
std::string call_item(std::string_view id, std::string_view status, std::string_view call_id, std::string_view name,
                      std::string_view arguments) {
  return fmt::format(R"({{"id":"{}","type":"function_call","status":"{}","call_id":"{}","name":{},"arguments":{}}})",
                     id, status, call_id, quoted(name), quoted(arguments));
}

std::string output_items(const ParsedOutput& parsed, std::string_view status) {
  std::string out;
  const auto add = [&out](const std::string& item) { out += (out.empty() ? "" : ",") + item; };
  if (!parsed.reasoning.empty()) {
    add(reasoning_item(random_id("rs_"), "completed", reasoning_part(parsed.reasoning)));
  }
  if (!parsed.content.empty() || parsed.tool_calls.empty()) {
    add(message_item(random_id("msg_"), status, text_part(parsed.content)));
  }
  for (const ParsedToolCall& c : parsed.tool_calls) {
    add(call_item(random_id("fc_"), c.complete ? "completed" : "incomplete", random_id("call_"), c.name, c.arguments));
  }
  return out;
}

// ---- the response object ---------------------------------------------------------------------------------------

std::string field_or(const Fields& body, std::string_view name, std::string_view otherwise) {
  const JsonValue* v = body.get(name);
  return v == nullptr ? std::string(otherwise) : dump_json(*v, NumberStyle::kVerbatim);
}

// The response's fields that do not change while it is written: what was asked, as the client is to see it.
class ResponseHead {
 public:
  ResponseHead(const Call& call, const Fields& body, const SamplingParams& sampling) {
    head_ = fmt::format(
        R"({{"id":"{}","object":"response","created_at":{},"model":{},"background":false,"store":false,)"
        R"("previous_response_id":null,"truncation":"disabled","service_tier":"default",)"
        R"("temperature":{},"top_p":{},"parallel_tool_calls":{},"instructions":{},)"
        R"("max_output_tokens":{},"tools":{},"tool_choice":{},"metadata":{},"reasoning":{},"user":{},)"
        R"("text":{{"format":{{"type":"text"}}}})",
        random_id("resp_"), std::time(nullptr), quoted(call.options().model_name), sampling.temperature, sampling.top_p,
        field_or(body, "parallel_tool_calls", "true"), field_or(body, "instructions", "null"),
        field_or(body, "max_output_tokens", "null"), field_or(body, "tools", "[]"),
        field_or(body, "tool_choice", R"("auto")"), field_or(body, "metadata", "{}"),
        field_or(body, "reasoning", R"({"effort":null,"summary":null})"), field_or(body, "user", "null"));
  }

  std::string in_progress() const { return tail("in_progress", "null", "null", "", "null"); }

  std::string failed(std::string_view message) const {
    return tail("failed", R"({"code":"server_error","message":)" + quoted(message) + '}', "null", "", "null");
  }

  std::string ended(const Choice& c, std::string_view items) const {
    const bool cut = c.finish == Finish::kLength;
    const std::string usage =
        fmt::format(R"({{"input_tokens":{},"input_tokens_details":{{"cached_tokens":{}}},"output_tokens":{},)"
                    R"("output_tokens_details":{{"reasoning_tokens":{}}},"total_tokens":{}}})",
                    c.usage.prompt_tokens, c.usage.cached_tokens, c.usage.generated_tokens, c.reasoning_tokens,
                    c.usage.prompt_tokens + c.usage.generated_tokens);
    return tail(status_of(c), "null", cut ? R"({"reason":"max_output_tokens"})" : "null", items, usage);
  }

  static const char* status_of(const Choice& c) { return c.finish == Finish::kLength ? "incomplete" : "completed"; }

 private:
  std::string tail(std::string_view status, std::string_view error, std::string_view incomplete, std::string_view items,
                   std::string_view usage) const {
    return fmt::format(R"({},"status":"{}","error":{},"incomplete_details":{},"output":[{}],"usage":{}}})", head_,
                       status, error, incomplete, items, usage);
  }

  std::string head_;
};

// ---- streamed --------------------------------------------------------------------------------------------------

class ResponseStream final : public StreamWriter {
 public:
  explicit ResponseStream(ResponseHead head) : head_(std::move(head)) {}

  void open(std::int64_t, std::string& out) override {
    emit("response.created", R"("response":)" + head_.in_progress(), out);
    emit("response.in_progress", R"("response":)" + head_.in_progress(), out);
  }

  void events(Choice&, const std::vector<OutputEvent>& events, std::string& out) override {
    for (const OutputEvent& e : events) {
      switch (e.kind) {
        case EventKind::kReasoning:
          begin(Item::kReasoning, out);
          add(e.text, "response.reasoning_text.delta", out);
          break;
        case EventKind::kContent:
        case EventKind::kSkippedThinking:
          begin(Item::kMessage, out);
          add(e.text, "response.output_text.delta", out);
          break;
        case EventKind::kToolCallStart:
          close("completed", out);
          name_ = e.text;
          call_id_ = random_id("call_");
          begin(Item::kCall, out);
          break;
        case EventKind::kToolCallArguments:
          add(e.text, "response.function_call_arguments.delta", out);
          break;
        case EventKind::kToolCallEnd:
          close(e.complete ? "completed" : "incomplete", out);
          break;
      }
    }
  }

  void end(Choice& c, std::string& out) override {
    if (item_ == Item::kNone && items_.empty()) begin(Item::kMessage, out);  // an answer without a word
    close(ResponseHead::status_of(c), out);
    const bool cut = c.finish == Finish::kLength;
    emit(cut ? "response.incomplete" : "response.completed", R"("response":)" + head_.ended(c, items_), out);
  }

  void done(std::vector<Choice>&, std::string&) override {}

  void error(const ApiErrorParts& parts, std::string& out) override {
    emit("response.failed", R"("response":)" + head_.failed(parts.message), out);
  }

 private:
  enum class Item : std::uint8_t { kNone, kReasoning, kMessage, kCall };

  void emit(std::string_view type, std::string_view fields, std::string& out) {
    append_event(out, type, fmt::format(R"({{"type":"{}","sequence_number":{},{}}})", type, sequence_++, fields));
  }

  std::string place() const { return fmt::format(R"("item_id":"{}","output_index":{})", id_, index_); }
  std::string part_place() const { return item_ == Item::kCall ? place() : place() + R"(,"content_index":0)"; }
  std::string part(std::string_view text) const {
    return item_ == Item::kMessage ? text_part(text) : reasoning_part(text);
  }

  std::string item(std::string_view status, bool whole) const {
    if (item_ == Item::kCall) return call_item(id_, status, call_id_, name_, text_);
    const std::string content = whole ? part(text_) : "";
    return item_ == Item::kMessage ? message_item(id_, status, content) : reasoning_item(id_, status, content);
  }

  void begin(Item kind, std::string& out) {
    if (item_ == kind) return;
    close("completed", out);
    item_ = kind;
    text_.clear();
    id_ = random_id(kind == Item::kMessage ? "msg_" : kind == Item::kCall ? "fc_" : "rs_");
    emit("response.output_item.added",
         fmt::format(R"("output_index":{},"item":{})", index_, item("in_progress", false)), out);
    if (kind == Item::kCall) return;
    emit("response.content_part.added", part_place() + R"(,"part":)" + part(""), out);
  }
  using StreamWriter::begin;

  void add(std::string_view text, std::string_view type, std::string& out) {
    text_ += text;
    emit(type, part_place() + R"(,"delta":)" + quoted(text) + (item_ == Item::kMessage ? R"(,"logprobs":[])" : ""),
         out);
  }

  void close(std::string_view status, std::string& out) {
    if (item_ == Item::kNone) return;
    if (item_ == Item::kCall) {
      emit("response.function_call_arguments.done",
           place() + R"(,"name":)" + quoted(name_) + R"(,"arguments":)" + quoted(text_), out);
    } else {
      const bool message = item_ == Item::kMessage;
      emit(message ? "response.output_text.done" : "response.reasoning_text.done",
           part_place() + R"(,"text":)" + quoted(text_) + (message ? R"(,"logprobs":[])" : ""), out);
      emit("response.content_part.done", part_place() + R"(,"part":)" + part(text_), out);
    }
    const std::string whole = item(status, true);
    emit("response.output_item.done", fmt::format(R"("output_index":{},"item":{})", index_, whole), out);
    items_ += (items_.empty() ? "" : ",") + whole;
    item_ = Item::kNone;
    ++index_;
  }

  const ResponseHead head_;
  std::size_t sequence_ = 0;
  Item item_ = Item::kNone;
  std::size_t index_ = 0;
  std::string id_;
  std::string text_;  // of the item in progress
  std::string name_;
  std::string call_id_;
  std::string items_;  // those that are complete
};

}  // namespace

std::shared_ptr<Exchange> post_responses(const std::shared_ptr<Call>& call) {
  const JsonValue json = parse_body(call->request().body);
  const Fields body(json, "");
  check_model(body);
  ChatStart start{.param = "input"};
  start.conversation = read_responses_conversation(body);
  start.request.sampling = read_sampling(body, call->options().sampling);
  if (body.integer("top_logprobs", 0, 20).value_or(0) > 0) throw unsupported("top_logprobs", "it", "0 is");
  start.request.max_tokens = body.integer("max_output_tokens", 1, 1 << 30).value_or(0);
  read_schedule(body, start.request);
  body.object("metadata");
  ResponseHead head(*call, body, start.request.sampling);
  if (body.boolean("stream").value_or(false)) {
    start.stream = std::make_unique<ResponseStream>(std::move(head));
  } else {
    start.whole = [head = std::move(head)](std::vector<Choice>& choices) {
      const Choice& c = choices[0];
      return head.ended(c, output_items(c.parsed, ResponseHead::status_of(c)));
    };
  }
  return start_chat(call, std::move(start));
}

}  // namespace glint::server
