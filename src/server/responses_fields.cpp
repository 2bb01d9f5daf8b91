#include "server/responses_fields.hpp"

#include <fmt/format.h>

#include <optional>

#include "server/request_fields.hpp"

namespace glint::server {
namespace {

using Kind = JsonValue::Kind;

// What an assistant did comes as several items (reasoning, message, calls); the template wants one message.
class Items {
 public:
  explicit Items(Conversation& conversation) : messages_(conversation.chat.messages) {}

  void add(const Fields& item) {
    const std::string type = item.text("type").value_or("message");
    if (type == "message") return add_message(item);
    if (type == "function_call") return add_call(item);
    if (type == "function_call_output") return add_output(item);
    if (type == "reasoning") return add_reasoning(item);
    throw unsupported(item.at("type"), "the item type \"" + type + "\"",
                      "message, reasoning, function_call and function_call_output are");
  }

  void add_text(std::string role, std::string text) {
    close();
    push({.role = std::move(role), .content = JsonValue(std::move(text))}, {});
  }

  void finish() {
    close();
    order_results(messages_, ids_);
  }

 private:
  void add_message(const Fields& item) {
    const std::string role = item.required_text("role");
    const JsonValue* content = item.get("content");
    if (content == nullptr) item.fail("content", "a text or an array of parts");
    std::string text = read_text_parts(*content, item.at("content"));
    if (role == "assistant") {
      if (open_ && (has_content_ || !assistant_.tool_calls.empty())) close();
      open();
      assistant_.content = JsonValue(std::move(text));
      has_content_ = true;
    } else if (role == "user" || role == "system" || role == "developer") {
      add_text(role == "developer" ? "system" : role, std::move(text));
    } else {
      item.fail("role", "user, assistant, system or developer");
    }
  }

  void add_reasoning(const Fields& item) {
    if (open_) close();
    std::string text;
    for (const char* field : {"content", "summary"}) {  // the summary where there is nothing else
      const JsonValue* parts = text.empty() ? item.array(field) : nullptr;
      for (std::size_t i = 0; parts != nullptr && i < parts->items.size(); ++i) {
        text += Fields(parts->items[i], fmt::format("{}[{}]", item.at(field), i)).required_text("text");
      }
    }
    if (text.empty()) return;
    open();
    assistant_.reasoning_content = std::move(text);
  }

  void add_call(const Fields& item) {
    open();
    const std::string name = item.required_text("name");
    if (!valid_tool_name(name)) item.fail("name", "a function's name");
    std::optional<JsonValue> arguments = JsonValue::make_object();
    const std::string text = item.text("arguments").value_or("");
    if (text.find_first_not_of(" \t\r\n") != std::string::npos) arguments = try_parse_json_value(text);
    if (!arguments || !arguments->is(Kind::kObject)) {
      throw bad_field(item.at("arguments"), "something else", "the JSON text of an object");
    }
    assistant_.tool_calls.push_back({.name = name, .arguments = std::move(*arguments)});
    call_ids_.push_back(item.required_text("call_id"));
  }

  void add_output(const Fields& item) {
    close();
    const JsonValue* output = item.get("output");
    if (output == nullptr) item.fail("output", "a text or an array of parts");
    push({.role = "tool", .content = JsonValue(read_text_parts(*output, item.at("output")))},
         {item.required_text("call_id")});
  }

  void open() {
    if (std::exchange(open_, true)) return;
    assistant_ = {.role = "assistant", .content = JsonValue("")};
    has_content_ = false;
  }

  void close() {
    if (!std::exchange(open_, false)) return;
    push(std::move(assistant_), std::exchange(call_ids_, {}));
  }

  void push(ChatMessage message, std::vector<std::string> ids) {
    messages_.push_back(std::move(message));
    ids_.push_back(std::move(ids));
  }

  std::vector<ChatMessage>& messages_;
  std::vector<std::vector<std::string>> ids_;
  bool open_ = false;  // assistant_ and call_ids_ are in use
  bool has_content_ = false;
  ChatMessage assistant_;
  std::vector<std::string> call_ids_;
};

void read_input(const Fields& body, Conversation& c) {
  Items items(c);
  if (const auto instructions = body.text("instructions"); instructions && !instructions->empty()) {
    items.add_text("system", *instructions);
  }
  const JsonValue* input = body.get("input");
  if (input != nullptr && input->is(Kind::kString)) {
    items.add_text("user", input->text);
  } else if (input != nullptr && input->is(Kind::kArray) && !input->items.empty()) {
    for (std::size_t i = 0; i < input->items.size(); ++i)
      items.add(Fields(input->items[i], fmt::format("input[{}]", i)));
  } else {
    body.fail("input", "a text or an array of at least one item");
  }
  items.finish();
}

// In the nested form, as the model was trained to see them.
std::vector<JsonValue> read_tools(const Fields& body) {
  const JsonValue* list = body.array("tools");
  if (list == nullptr) return {};
  std::vector<JsonValue> tools;
  std::vector<std::string> names;
  for (std::size_t i = 0; i < list->items.size(); ++i) {
    const Fields tool(list->items[i], fmt::format("tools[{}]", i));
    const std::string type = tool.required_text("type");
    if (type != "function") throw unsupported(tool.at("type"), "the tool type \"" + type + "\"", "function is");
    const std::string name = read_tool_name(tool, names);
    JsonValue function = JsonValue::make_object().set("name", name);
    if (const auto description = tool.text("description")) function.set("description", *description);
    if (const JsonValue* parameters = tool.object("parameters")) function.set("parameters", *parameters);
    if (tool.boolean("strict").value_or(false)) function.set("strict", JsonValue::from_bool(true));
    tools.push_back(JsonValue::make_object().set("type", "function").set("function", std::move(function)));
  }
  return tools;
}

void refuse_stored(const Fields& body) {
  for (const char* name : {"previous_response_id", "conversation", "prompt"}) {
    if (body.has(name)) throw unsupported(name, "what this server would have to store", "send the whole input");
  }
  if (body.boolean("background").value_or(false)) throw unsupported("background", "true");
  if (body.text("truncation").value_or("disabled") != "disabled") {
    throw unsupported("truncation", "\"auto\"", "disabled is");
  }
}

}  // namespace

Conversation read_responses_conversation(const Fields& body) {
  refuse_stored(body);
  Conversation c;
  read_input(body, c);
  c.chat.add_generation_prompt = true;
  std::vector<JsonValue> tools = read_tools(body);
  if (const JsonValue* text = body.object("text")) {
    const JsonValue* format = Fields(*text, "text").object("format");
    if (format != nullptr) read_format(*format, "text.format", c);
  }
  offer_tools(std::move(tools), read_tool_choice(body), c);
  c.parallel_calls = body.boolean("parallel_tool_calls").value_or(true);
  if (const JsonValue* reasoning = body.object("reasoning")) {
    read_effort(Fields(*reasoning, "reasoning"), "effort", c.chat);
  }
  read_template_flags(body, c.chat);
  c.parser.thinking_enabled = c.chat.enable_thinking.value_or(true);
  return c;
}

}  // namespace glint::server
