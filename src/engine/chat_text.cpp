#include "engine/chat_text.hpp"

#include "base/error.hpp"
#include "base/json_value.hpp"
#include "text/chat.hpp"
#include "text/chat_json.hpp"
#include "text/output_parser.hpp"

namespace glint {
namespace {

bool enable_thinking(const JsonValue& options) {
  const JsonValue* v = options.find("enable_thinking");
  if (v == nullptr || v->is(JsonValue::Kind::kNull)) return true;
  if (!v->is(JsonValue::Kind::kBool)) {
    throw Error(
        {.what = "enable_thinking", .found = std::string(json_kind_name(v->kind)), .expected = "true or false"});
  }
  return v->boolean;
}

OutputEnd finish_reason(const JsonValue& options) {
  const JsonValue* v = options.find("finish_reason");
  if (v == nullptr || v->is(JsonValue::Kind::kNull)) return OutputEnd::kStop;
  const bool is_text = v->is(JsonValue::Kind::kString);
  if (is_text && v->text == "length") return OutputEnd::kLength;
  if (is_text && (v->text == "stop" || v->text == "tool_calls")) return OutputEnd::kStop;
  throw Error({.what = "finish_reason",
               .found = is_text ? '"' + v->text + '"' : std::string(json_kind_name(v->kind)),
               .expected = "stop, tool_calls or length"});
}

}  // namespace

std::string render_chat_json(std::string_view request_json) {
  ChatRequest request = chat_request_from_json(request_json, ChatJsonMode::kServer);
  if (!request.add_generation_prompt) request.add_generation_prompt = true;
  return render_chat(request);
}

std::string parse_output_json(std::string_view text, std::string_view options_json) {
  const JsonValue options = parse_json_value(options_json, "options");
  if (!options.is(JsonValue::Kind::kObject)) {
    throw Error({.what = "options", .found = std::string(json_kind_name(options.kind)), .expected = "an object"});
  }
  const ParsedOutput parsed =
      parse_output(text, {.tools = chat_tools_from_json(options), .thinking_enabled = enable_thinking(options)},
                   finish_reason(options));
  JsonValue calls = JsonValue::make_array();
  for (std::size_t i = 0; i < parsed.tool_calls.size(); ++i) {
    JsonValue function = JsonValue::make_object();
    function.set("name", parsed.tool_calls[i].name).set("arguments", parsed.tool_calls[i].arguments);
    JsonValue call = JsonValue::make_object();
    call.set("id", "call_" + std::to_string(i)).set("type", "function").set("function", std::move(function));
    calls.items.push_back(std::move(call));
  }
  return dump_json(JsonValue::make_object()
                       .set("reasoning_content", parsed.reasoning)
                       .set("content", parsed.content)
                       .set("tool_calls", std::move(calls)),
                   NumberStyle::kVerbatim);
}

}  // namespace glint
