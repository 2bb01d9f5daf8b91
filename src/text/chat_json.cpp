#include "text/chat_json.hpp"

#include "base/error.hpp"

namespace glint {

namespace {

using Kind = JsonValue::Kind;

[[noreturn]] void fail(const std::string& where, const JsonValue* found, std::string expected, std::string hint = "") {
  throw Error({.what = where,
               .found = found ? std::string(json_kind_name(found->kind)) : "nothing",
               .expected = std::move(expected),
               .hint = std::move(hint)});
}

// Python's truth of a JSON value: what `if x` in the template asks.
bool truthy(const JsonValue& v) {
  switch (v.kind) {
    case Kind::kNull:
      return false;
    case Kind::kBool:
      return v.boolean;
    case Kind::kNumber:
      return v.as_double() != 0;
    case Kind::kString:
      return !v.text.empty();
    case Kind::kArray:
    case Kind::kObject:
      return !v.items.empty();
  }
  return false;
}

void read_flag(const JsonValue& object, std::string_view key, std::optional<bool>& flag) {
  const JsonValue* v = object.find(key);
  if (!v || v->is(Kind::kNull)) return;
  if (!v->is(Kind::kBool)) fail(std::string(key), v, "a boolean");
  flag = v->boolean;
}

JsonValue read_arguments(const JsonValue* arguments, const std::string& where, ChatJsonMode mode) {
  if (arguments && arguments->is(Kind::kObject)) return *arguments;
  const std::string hint = "arguments as JSON text must be parsed first";
  if (mode == ChatJsonMode::kServer) {
    if (!arguments || arguments->is(Kind::kNull)) return JsonValue::make_object();
    if (arguments->is(Kind::kString)) {
      if (arguments->text.find_first_not_of(" \t\r\n") == std::string::npos) return JsonValue::make_object();
      JsonValue parsed = parse_json_value(arguments->text, where);
      if (parsed.is(Kind::kObject)) return parsed;
      fail(where, &parsed, "JSON text of an object");
    }
  }
  fail(where, arguments, "an object", arguments && arguments->is(Kind::kString) ? hint : "");
}

ChatToolCall read_call(const JsonValue& entry, const std::string& where, ChatJsonMode mode) {
  if (!entry.is(Kind::kObject)) fail(where, &entry, "an object");
  const JsonValue* call = &entry;
  std::string at = where;
  if (const JsonValue* function = entry.find("function"); function && truthy(*function)) {
    at += ".function";
    if (!function->is(Kind::kObject)) fail(at, function, "an object");
    call = function;
  }
  const JsonValue* name = call->find("name");
  if (!name || !name->is(Kind::kString)) fail(at + ".name", name, "a string");
  return {.name = name->text, .arguments = read_arguments(call->find("arguments"), at + ".arguments", mode)};
}

ChatMessage read_message(const JsonValue& entry, const std::string& where, ChatJsonMode mode) {
  if (!entry.is(Kind::kObject)) fail(where, &entry, "an object");
  ChatMessage message;
  const JsonValue* role = entry.find("role");
  if (!role || !role->is(Kind::kString)) fail(where + ".role", role, "a string");
  message.role = role->text;
  if (const JsonValue* content = entry.find("content")) {
    message.content = mode == ChatJsonMode::kServer && content->is(Kind::kNull) ? JsonValue("") : *content;
  }
  if (message.role == "tool" && message.content && !message.content->is(Kind::kString) &&
      !message.content->is(Kind::kArray) && !message.content->is(Kind::kObject)) {
    fail(where + ".content", &*message.content, "a string or a list");
  }
  if (message.role != "assistant") return message;
  const JsonValue* reasoning = entry.find("reasoning_content");
  if (reasoning && reasoning->is(Kind::kString)) message.reasoning_content = reasoning->text;
  const JsonValue* calls = entry.find("tool_calls");
  if (!calls || !truthy(*calls)) return message;
  if (!calls->is(Kind::kArray)) fail(where + ".tool_calls", calls, "a list");
  for (std::size_t i = 0; i < calls->items.size(); ++i) {
    message.tool_calls.push_back(read_call(calls->items[i], where + ".tool_calls[" + std::to_string(i) + "]", mode));
  }
  return message;
}

}  // namespace

std::vector<JsonValue> chat_tools_from_json(const JsonValue& body) {
  const JsonValue* tools = body.find("tools");
  if (!tools || !truthy(*tools)) return {};
  if (!tools->is(Kind::kArray)) fail("tools", tools, "a list");
  return tools->items;
}

ChatRequest chat_request_from_value(const JsonValue& body, ChatJsonMode mode) {
  if (!body.is(Kind::kObject)) fail("chat request", &body, "an object");
  ChatRequest request;
  const JsonValue* messages = body.find("messages");
  if (!messages || !messages->is(Kind::kArray)) fail("messages", messages, "a list");
  request.messages.reserve(messages->items.size());
  for (std::size_t i = 0; i < messages->items.size(); ++i) {
    request.messages.push_back(read_message(messages->items[i], "messages[" + std::to_string(i) + "]", mode));
  }
  request.tools = chat_tools_from_json(body);
  const auto read_flags = [&](const JsonValue& from) {
    read_flag(from, "add_generation_prompt", request.add_generation_prompt);
    read_flag(from, "enable_thinking", request.enable_thinking);
    read_flag(from, "clear_thinking", request.clear_thinking);
  };
  read_flags(body);
  if (const JsonValue* kwargs = body.find("chat_template_kwargs"); kwargs && !kwargs->is(Kind::kNull)) {
    if (!kwargs->is(Kind::kObject)) fail("chat_template_kwargs", kwargs, "an object");
    read_flags(*kwargs);
  }
  return request;
}

ChatRequest chat_request_from_json(std::string_view json_text, ChatJsonMode mode) {
  return chat_request_from_value(parse_json_value(json_text, "chat request"), mode);
}

}  // namespace glint
