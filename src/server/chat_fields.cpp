#include "server/chat_fields.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "server/request_fields.hpp"

namespace glint::server {
namespace {

using Kind = JsonValue::Kind;

JsonValue read_arguments(const Fields& function) {
  const JsonValue* arguments = function.get("arguments");
  if (arguments == nullptr) return JsonValue::make_object();
  if (arguments->is(Kind::kObject)) return *arguments;
  if (!arguments->is(Kind::kString)) function.fail("arguments", "the JSON text of an object");
  if (arguments->text.find_first_not_of(" \t\r\n") == std::string::npos) return JsonValue::make_object();
  std::optional<JsonValue> parsed = try_parse_json_value(arguments->text);
  if (!parsed || !parsed->is(Kind::kObject)) {
    throw bad_field(function.at("arguments"), parsed ? shown(*parsed) : "text that is no JSON",
                    "the JSON text of an object");
  }
  return std::move(*parsed);
}

void read_calls(const Fields& message, ChatMessage& out, std::vector<std::string>& ids) {
  const JsonValue* calls = message.array("tool_calls");
  if (calls == nullptr) return;
  for (std::size_t i = 0; i < calls->items.size(); ++i) {
    const Fields call(calls->items[i], fmt::format("{}[{}]", message.at("tool_calls"), i));
    if (const auto type = call.text("type"); type && *type != "function") {
      throw unsupported(call.at("type"), "the type \"" + *type + "\"", "function is");
    }
    ids.push_back(call.text("id").value_or(""));
    const JsonValue* inner = call.object("function");
    if (inner == nullptr) call.fail("function", "an object");
    const Fields function(*inner, call.at("function"));
    const std::string name = function.required_text("name");
    if (!valid_tool_name(name)) function.fail("name", "a function's name");
    out.tool_calls.push_back({.name = name, .arguments = read_arguments(function)});
  }
}

ChatMessage read_assistant(const Fields& message, std::vector<std::string>& ids) {
  ChatMessage out{.role = "assistant"};
  if (const auto r = message.text("reasoning_content")) {
    out.reasoning_content = *r;
  } else if (const JsonValue* other = message.get("reasoning"); other != nullptr && other->is(Kind::kString)) {
    out.reasoning_content = other->text;  // the name that some servers give it
  }
  read_calls(message, out, ids);
  const JsonValue* content = message.get("content");
  if (content == nullptr && out.tool_calls.empty() && !out.reasoning_content) message.fail("content", "a text");
  out.content = content == nullptr ? JsonValue("") : JsonValue(read_text_parts(*content, message.at("content")));
  return out;
}

ChatMessage read_message(const JsonValue& value, const std::string& where, std::vector<std::string>& ids) {
  const Fields message(value, where);
  std::string role = message.required_text("role");
  if (role == "assistant") return read_assistant(message, ids);
  if (role == "developer") role = "system";  // its new name
  if (role == "function") throw unsupported(message.at("role"), "the role \"function\"", "use tools and the role tool");
  if (role != "system" && role != "user" && role != "tool") {
    message.fail("role", "system, developer, user, assistant or tool");
  }
  const JsonValue* content = message.get("content");
  if (content == nullptr) message.fail("content", "a text");
  if (role == "tool") ids.push_back(message.text("tool_call_id").value_or(""));
  std::string text = read_text_parts(*content, message.at("content"));
  return {.role = std::move(role), .content = JsonValue(std::move(text))};
}

std::vector<ChatMessage> read_messages(const Fields& body) {
  const JsonValue* list = body.array("messages");
  if (list == nullptr || list->items.empty()) body.fail("messages", "an array of at least one message");
  std::vector<ChatMessage> messages;
  std::vector<std::vector<std::string>> ids(list->items.size());
  for (std::size_t i = 0; i < list->items.size(); ++i) {
    messages.push_back(read_message(list->items[i], fmt::format("messages[{}]", i), ids[i]));
  }
  order_results(messages, ids);
  return messages;
}

std::vector<JsonValue> read_tools(const Fields& body) {
  for (const char* old : {"functions", "function_call"}) {
    if (body.has(old)) throw unsupported(old, "this older form", "use tools and tool_choice");
  }
  const JsonValue* list = body.array("tools");
  if (list == nullptr) return {};
  std::vector<std::string> names;
  for (std::size_t i = 0; i < list->items.size(); ++i) {
    const Fields tool(list->items[i], fmt::format("tools[{}]", i));
    const std::string type = tool.required_text("type");
    if (type != "function") throw unsupported(tool.at("type"), "the type \"" + type + "\"", "function is");
    const JsonValue* inner = tool.object("function");
    if (inner == nullptr) tool.fail("function", "an object");
    const Fields function(*inner, tool.at("function"));
    read_tool_name(function, names);
    function.text("description");
    function.object("parameters");
  }
  return list->items;
}

// The most explicit one wins: chat_template_kwargs, enable_thinking, Z.ai's thinking, reasoning_effort.
void read_thinking(const Fields& body, ChatRequest& chat) {
  read_effort(body, "reasoning_effort", chat);
  if (const JsonValue* thinking = body.object("thinking")) {
    const Fields fields(*thinking, "thinking");
    if (const auto type = fields.text("type")) {
      if (*type != "enabled" && *type != "disabled") fields.fail("type", "enabled or disabled");
      chat.enable_thinking = *type == "enabled";
    }
    if (const auto clear = fields.boolean("clear_thinking")) chat.clear_thinking = clear;
  }
  read_template_flags(body, chat);
}

}  // namespace

ToolChoice read_tool_choice(const Fields& body) {
  static constexpr std::string_view kExpected = "auto, none, required or a function";
  const JsonValue* choice = body.get("tool_choice");
  if (choice == nullptr) return {};
  if (choice->is(Kind::kObject)) {
    const Fields fields(*choice, "tool_choice");
    const std::string type = fields.required_text("type");
    if (type != "function") throw unsupported("tool_choice.type", '"' + type + '"', "function is");
    const JsonValue* inner = fields.object("function");  // chat nests it, Responses does not
    const std::string name =
        inner == nullptr ? fields.required_text("name") : Fields(*inner, "tool_choice.function").required_text("name");
    return {.needed = true, .function = name};
  }
  if (!choice->is(Kind::kString)) body.fail("tool_choice", kExpected);
  if (choice->text != "auto" && choice->text != "none" && choice->text != "required") {
    body.fail("tool_choice", kExpected);
  }
  return {.allowed = choice->text != "none", .needed = choice->text == "required"};
}

void read_effort(const Fields& fields, std::string_view name, ChatRequest& chat) {
  const auto effort = fields.text(name);
  if (!effort) return;
  static constexpr std::string_view kEfforts[] = {"none", "minimal", "low", "medium", "high", "xhigh"};
  if (std::find(std::begin(kEfforts), std::end(kEfforts), *effort) == std::end(kEfforts)) {
    fields.fail(name, "none, minimal, low, medium, high or xhigh");
  }
  chat.enable_thinking = *effort != "none" && *effort != "minimal";
}

void read_template_flags(const Fields& body, ChatRequest& chat) {
  const auto read_flags = [&chat](const Fields& fields) {
    if (const auto v = fields.boolean("enable_thinking")) chat.enable_thinking = v;
    if (const auto v = fields.boolean("clear_thinking")) chat.clear_thinking = v;
    if (!fields.boolean("add_generation_prompt").value_or(true)) {
      throw unsupported(fields.at("add_generation_prompt"), "false", "the answer is always a new message");
    }
  };
  read_flags(body);
  if (const JsonValue* kwargs = body.object("chat_template_kwargs"))
    read_flags(Fields(*kwargs, "chat_template_kwargs"));
}

std::string read_text_parts(const JsonValue& content, const std::string& where) {
  if (content.is(Kind::kString)) return content.text;
  if (!content.is(Kind::kArray)) throw bad_field(where, shown(content), "a text or an array of text parts");
  std::string out;
  for (std::size_t i = 0; i < content.items.size(); ++i) {
    const Fields part(content.items[i], fmt::format("{}[{}]", where, i));
    const std::string type = part.required_text("type");
    if (type == "text" || type == "input_text" || type == "output_text") {
      out += part.required_text("text");
    } else if (type == "refusal") {
      out += part.required_text("refusal");
    } else {
      throw unsupported(part.at("type"), "the type \"" + type + "\"", "the model reads text only");
    }
  }
  return out;
}

void order_results(std::vector<ChatMessage>& messages, std::vector<std::vector<std::string>>& ids) {
  for (std::size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].role != "assistant" || messages[i].tool_calls.size() < 2) continue;
    const std::vector<std::string>& calls = ids[i];
    std::size_t end = i + 1;
    bool known = true;
    std::vector<std::pair<std::size_t, ChatMessage>> results;
    for (; end < messages.size() && messages[end].role == "tool"; ++end) {
      const auto call = std::find(calls.begin(), calls.end(), ids[end].empty() ? "" : ids[end][0]);
      known = known && call != calls.end();
      results.emplace_back(call - calls.begin(), messages[end]);
    }
    if (!known) continue;
    std::stable_sort(results.begin(), results.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    for (std::size_t r = 0; r < results.size(); ++r) messages[i + 1 + r] = std::move(results[r].second);
  }
}

void offer_tools(std::vector<JsonValue> tools, const ToolChoice& choice, Conversation& c) {
  const auto name_of = [](const JsonValue& tool) { return tool.find("function")->find("name")->text; };
  const auto is_strict = [](const JsonValue& tool) {
    const JsonValue* strict = tool.find("function")->find("strict");
    return strict != nullptr && strict->is(Kind::kBool) && strict->boolean;
  };
  if (choice.needed && tools.empty()) throw bad_field("tool_choice", "a call that is needed", "tools beside it");
  if (!choice.function.empty() &&
      std::none_of(tools.begin(), tools.end(), [&](const JsonValue& t) { return name_of(t) == choice.function; })) {
    throw bad_field("tool_choice", '"' + choice.function.substr(0, 64) + '"', "the name of one of the tools");
  }
  if (choice.needed || (choice.allowed && std::any_of(tools.begin(), tools.end(), is_strict))) {
    if (c.constraint.is(Kind::kNull)) c.constraint = JsonValue::make_object();
    c.constraint.set("tools", JsonValue::make_array(tools));
    c.constraint.set("tool_choice", choice.needed ? "required" : "auto");
    if (!choice.function.empty()) c.constraint.set("function", choice.function);
  }
  if (choice.allowed) {
    c.chat.tools = tools;
    c.parser.tools = std::move(tools);
  }
  c.parser.parse_tool_calls = !c.chat.tools.empty();
}

void read_format(const JsonValue& format, const std::string& path, Conversation& c) {
  const Fields fields(format, path);
  const std::string type = fields.required_text("type");
  if (type == "text") return;
  JsonValue made = JsonValue::make_object();
  if (type == "json_object") {
    made.set("json_object", JsonValue::from_bool(true));
  } else if (type == "json_schema") {
    const JsonValue* inner = fields.object("json_schema");
    const Fields holder(inner == nullptr ? format : *inner, inner == nullptr ? path : fields.at("json_schema"));
    const JsonValue* schema = holder.object("schema");
    if (schema == nullptr) holder.fail("schema", "a JSON schema");
    made.set("json_schema", *schema).set("where", holder.at("schema"));
  } else {
    fields.fail("type", "text, json_object or json_schema");
  }
  c.constraint = std::move(made);
}

std::string constraint_text(const Conversation& c) {
  if (c.constraint.is(Kind::kNull)) return "";
  JsonValue spec = c.constraint;
  // Tools that may be called beside an answer of a form are part of the form.
  if (!c.chat.tools.empty() && spec.find("tools") == nullptr) spec.set("tools", JsonValue::make_array(c.chat.tools));
  spec.set("parallel_tool_calls", JsonValue::from_bool(c.parallel_calls));
  spec.set("thinking", JsonValue::from_bool(c.parser.thinking_enabled));
  return dump_json(spec, NumberStyle::kVerbatim);
}

Conversation read_conversation(const Fields& body) {
  Conversation c;
  c.chat.messages = read_messages(body);
  c.chat.add_generation_prompt = true;
  std::vector<JsonValue> tools = read_tools(body);
  if (const JsonValue* format = body.object("response_format")) read_format(*format, "response_format", c);
  offer_tools(std::move(tools), read_tool_choice(body), c);
  c.parallel_calls = body.boolean("parallel_tool_calls").value_or(true);
  read_thinking(body, c.chat);
  c.parser.thinking_enabled = c.chat.enable_thinking.value_or(true);
  return c;
}

}  // namespace glint::server
