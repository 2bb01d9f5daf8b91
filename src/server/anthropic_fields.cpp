#include "server/anthropic_fields.hpp"

#include <fmt/format.h>

#include <optional>

#include "server/request_fields.hpp"

namespace glint::server {
namespace {

using Kind = JsonValue::Kind;

// Messages, and for each the ids of its calls, or of the call whose result it is.
struct Turns {
  std::vector<ChatMessage> messages;
  std::vector<std::vector<std::string>> ids;

  void add(ChatMessage message, std::vector<std::string> message_ids = {}) {
    messages.push_back(std::move(message));
    ids.push_back(std::move(message_ids));
  }
  // Text of one role that follows text of the same is one message.
  void add_text(const std::string& role, const std::string& text, bool joins) {
    if (joins && !messages.empty() && messages.back().role == role) {
      messages.back().content->text += text;
    } else {
      add({.role = role, .content = JsonValue(text)});
    }
  }
};

[[noreturn]] void refuse_block(const Fields& block, const std::string& type) {
  throw unsupported(block.at("type"), "the block type \"" + type + "\"", "text, thinking and tools are");
}

void read_result(const Fields& block, Turns& turns) {
  const JsonValue* content = block.get("content");
  std::string text = content == nullptr ? "" : read_text_parts(*content, block.at("content"));
  turns.add({.role = "tool", .content = JsonValue(std::move(text))}, {block.required_text("tool_use_id")});
}

// Results of tools become messages of their own, in place.
void read_user(const Fields& message, const std::string& role, Turns& turns) {
  const JsonValue* content = message.get("content");
  if (content == nullptr) message.fail("content", "a text or an array of blocks");
  if (content->is(Kind::kString)) return turns.add_text(role, content->text, false);
  if (!content->is(Kind::kArray)) message.fail("content", "a text or an array of blocks");
  bool joins = false;
  for (std::size_t i = 0; i < content->items.size(); ++i) {
    const Fields block(content->items[i], fmt::format("{}[{}]", message.at("content"), i));
    const std::string type = block.required_text("type");
    if (type == "text") {
      turns.add_text(role, block.required_text("text"), joins);
      joins = true;
    } else if (type == "tool_result" && role == "user") {
      read_result(block, turns);
      joins = false;
    } else {
      refuse_block(block, type);
    }
  }
}

void read_call(const Fields& block, ChatMessage& out, std::vector<std::string>& ids) {
  const std::string name = block.required_text("name");
  if (!valid_tool_name(name)) block.fail("name", "a tool's name");
  const JsonValue* input = block.object("input");
  out.tool_calls.push_back({.name = name, .arguments = input == nullptr ? JsonValue::make_object() : *input});
  ids.push_back(block.required_text("id"));
}

void read_assistant(const Fields& message, Turns& turns) {
  ChatMessage out{.role = "assistant"};
  std::vector<std::string> ids;
  const JsonValue* content = message.get("content");
  if (content == nullptr) message.fail("content", "a text or an array of blocks");
  if (content->is(Kind::kString)) {
    out.content = *content;
    return turns.add(std::move(out));
  }
  if (!content->is(Kind::kArray)) message.fail("content", "a text or an array of blocks");
  std::string text;
  std::string thinking;
  for (std::size_t i = 0; i < content->items.size(); ++i) {
    const Fields block(content->items[i], fmt::format("{}[{}]", message.at("content"), i));
    const std::string type = block.required_text("type");
    if (type == "text") {
      text += block.required_text("text");
    } else if (type == "thinking") {
      thinking += block.required_text("thinking");
    } else if (type == "tool_use") {
      read_call(block, out, ids);
    } else if (type != "redacted_thinking") {  // another server's secret: nothing to read
      refuse_block(block, type);
    }
  }
  if (!thinking.empty()) out.reasoning_content = std::move(thinking);
  out.content = JsonValue(std::move(text));
  turns.add(std::move(out), std::move(ids));
}

std::vector<ChatMessage> read_turns(const Fields& body) {
  Turns turns;
  if (const JsonValue* system = body.get("system")) {
    const std::string text = read_text_parts(*system, "system");
    if (!text.empty()) turns.add_text("system", text, false);
  }
  const JsonValue* list = body.array("messages");
  if (list == nullptr || list->items.empty()) body.fail("messages", "an array of at least one message");
  for (std::size_t i = 0; i < list->items.size(); ++i) {
    const Fields message(list->items[i], fmt::format("messages[{}]", i));
    const std::string role = message.required_text("role");
    if (role == "assistant") {
      read_assistant(message, turns);
    } else if (role == "user" || role == "system") {
      read_user(message, role, turns);
    } else {
      message.fail("role", "user, assistant or system");
    }
  }
  order_results(turns.messages, turns.ids);
  return std::move(turns.messages);
}

// As the model was trained to see them, in OpenAI's form.
std::vector<JsonValue> read_tools(const Fields& body) {
  const JsonValue* list = body.array("tools");
  if (list == nullptr) return {};
  std::vector<JsonValue> tools;
  std::vector<std::string> names;
  for (std::size_t i = 0; i < list->items.size(); ++i) {
    const Fields tool(list->items[i], fmt::format("tools[{}]", i));
    if (const auto type = tool.text("type"); type && *type != "custom") {
      throw unsupported(tool.at("type"), "the tool type \"" + *type + "\"", "tools with an input_schema are");
    }
    const std::string name = read_tool_name(tool, names);
    const JsonValue* schema = tool.object("input_schema");
    if (schema == nullptr) tool.fail("input_schema", "a JSON schema");
    JsonValue function = JsonValue::make_object().set("name", name);
    if (const auto description = tool.text("description")) function.set("description", *description);
    function.set("parameters", *schema);
    if (tool.boolean("strict").value_or(false)) function.set("strict", JsonValue::from_bool(true));
    tools.push_back(JsonValue::make_object().set("type", "function").set("function", std::move(function)));
  }
  return tools;
}

void read_choice(const Fields& body, Conversation& c) {
  std::vector<JsonValue> tools = read_tools(body);
  ToolChoice choice;
  if (const JsonValue* value = body.object("tool_choice")) {
    const Fields fields(*value, "tool_choice");
    const std::string type = fields.required_text("type");
    if (type != "auto" && type != "none" && type != "any" && type != "tool") {
      fields.fail("type", "auto, any, tool or none");
    }
    choice.allowed = type != "none";
    choice.needed = type == "any" || type == "tool";
    if (type == "tool") choice.function = fields.required_text("name");
    c.parallel_calls = !fields.boolean("disable_parallel_tool_use").value_or(false);
  }
  offer_tools(std::move(tools), choice, c);
}

// Off unless asked for, as with Anthropic: a client that does not ask for thinking does not expect blocks of it.
bool wants_thinking(const Fields& body) {
  const JsonValue* value = body.object("thinking");
  if (value == nullptr) return false;
  const Fields thinking(*value, "thinking");
  const std::string type = thinking.required_text("type");
  if (type != "enabled" && type != "adaptive" && type != "disabled") {
    thinking.fail("type", "enabled, adaptive or disabled");
  }
  thinking.integer("budget_tokens", 0, 1 << 30);  // read for its type: the model cannot count its thoughts
  return type != "disabled";
}

}  // namespace

Conversation read_anthropic_conversation(const Fields& body) {
  Conversation c;
  c.chat.messages = read_turns(body);
  c.chat.add_generation_prompt = true;
  if (const JsonValue* output = body.object("output_config")) {
    const JsonValue* format = Fields(*output, "output_config").object("format");
    if (format != nullptr) read_format(*format, "output_config.format", c);
  }
  read_choice(body, c);
  c.chat.enable_thinking = wants_thinking(body);
  c.parser.thinking_enabled = *c.chat.enable_thinking;
  if (const JsonValue* kwargs = body.object("chat_template_kwargs")) {
    c.chat.clear_thinking = Fields(*kwargs, "chat_template_kwargs").boolean("clear_thinking");
  }
  return c;
}

}  // namespace glint::server
