#include "text/chat.hpp"

#include "base/error.hpp"
#include "text/python_text.hpp"

namespace glint {

namespace {

using Kind = JsonValue::Kind;

constexpr std::string_view kThinkOpen = "<think>";
constexpr std::string_view kThinkClose = "</think>";

constexpr std::string_view kToolsHead =
    "<|system|>\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n";
constexpr std::string_view kToolsTail =
    "</tools>\n\nFor each function call, output the function name and arguments within the following XML format:\n"
    "<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key><arg_value>{arg-value-1}</arg_value>"
    "<arg_key>{arg-key-2}</arg_key><arg_value>{arg-value-2}</arg_value>...</tool_call>";

// The template's macro visible_text: the text parts of a list, str() of anything else.
std::string visible_text(const std::optional<JsonValue>& content) {
  if (!content) return "";
  if (!content->is(Kind::kArray)) return python_str(*content);
  std::string out;
  for (const JsonValue& part : content->items) {
    if (part.is(Kind::kString)) {
      out += part.text;
    } else if (const JsonValue* type = part.find("type"); type && *type == JsonValue("text")) {
      if (const JsonValue* text = part.find("text")) out += python_str(*text);
    }
  }
  return out;
}

std::string_view trim_newlines(std::string_view s, bool left) {
  while (!s.empty() && (left ? s.front() : s.back()) == '\n') left ? s.remove_prefix(1) : s.remove_suffix(1);
  return s;
}

struct AssistantText {
  std::string reasoning;
  std::string content;
};

// A string in reasoning_content is the reasoning and leaves content alone. Otherwise what stands between the last
// <think> before the first </think> and that </think> is reasoning, and what follows the last </think> is content.
AssistantText split_reasoning(const ChatMessage& message) {
  std::string content = visible_text(message.content);
  if (message.reasoning_content) return {*message.reasoning_content, std::move(content)};
  const std::size_t first = content.find(kThinkClose);
  if (first == std::string::npos) return {"", std::move(content)};
  std::string_view reasoning = trim_newlines(std::string_view(content).substr(0, first), false);
  if (const auto open = reasoning.rfind(kThinkOpen); open != std::string_view::npos) {
    reasoning.remove_prefix(open + kThinkOpen.size());
  }
  const std::string_view rest = std::string_view(content).substr(content.rfind(kThinkClose) + kThinkClose.size());
  return {std::string(trim_newlines(reasoning, true)), std::string(trim_newlines(rest, true))};
}

void append_call(const ChatToolCall& call, std::string& out) {
  if (!call.arguments.is(Kind::kObject)) {
    throw Error({.what = "tool call " + call.name + ": arguments",
                 .found = std::string(json_kind_name(call.arguments.kind)),
                 .expected = "an object",
                 .hint = "parse the JSON text of the arguments first"});
  }
  out.append("<tool_call>").append(call.name);
  for (std::size_t i = 0; i < call.arguments.items.size(); ++i) {
    const JsonValue& value = call.arguments.items[i];
    out.append("<arg_key>").append(call.arguments.keys[i]).append("</arg_key><arg_value>");
    out += value.is(Kind::kString) ? value.text : dump_json(value, NumberStyle::kPython);
    out += "</arg_value>";
  }
  out += "</tool_call>";
}

void append_assistant(const ChatMessage& message, bool show_reasoning, std::string& out) {
  const AssistantText text = split_reasoning(message);
  out += "<|assistant|>";
  if (show_reasoning && !text.reasoning.empty()) out.append(kThinkOpen).append(python_strip(text.reasoning));
  out += kThinkClose;
  out += python_strip(text.content);
  for (const ChatToolCall& call : message.tool_calls) append_call(call, out);
}

void append_tool_response(std::string_view text, std::string& out) {
  out.append("<tool_response>").append(text).append("</tool_response>");
}

// A string joins the observation of the tool message before it; anything iterable opens its own, one response an
// element.
void append_tool_result(const ChatMessage& message, bool after_tool, std::string& out) {
  if (message.content && message.content->is(Kind::kString)) {
    if (!after_tool) out += "<|observation|>";
    append_tool_response(message.content->text, out);
    return;
  }
  out += "<|observation|>";
  if (!message.content) return;
  if (message.content->is(Kind::kArray)) {
    for (const JsonValue& element : message.content->items) {
      const JsonValue* output = element.find("output");
      append_tool_response(python_str(output ? *output : element), out);
    }
  } else if (message.content->is(Kind::kObject)) {
    for (const std::string& key : message.content->keys) append_tool_response(key, out);  // Python iterates the keys
  } else {
    throw Error({.what = "tool message: content",
                 .found = std::string(json_kind_name(message.content->kind)),
                 .expected = "a string or a list"});
  }
}

}  // namespace

std::string render_chat(const ChatRequest& request) {
  std::string out = "[gMASK]<sop>";
  if (!request.tools.empty()) {
    out += kToolsHead;
    for (const JsonValue& tool : request.tools) out += dump_json(tool, NumberStyle::kPython) + '\n';
    out += kToolsTail;
  }
  const auto& messages = request.messages;
  std::size_t after_last_user = 0;  // index of the first message after the last user message
  for (std::size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].role == "user") after_last_user = i + 1;
  }
  const bool keep_reasoning = !request.clear_thinking.value_or(true);
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& m = messages[i];
    if (m.role == "user") {
      out += "<|user|>" + visible_text(m.content);
    } else if (m.role == "system") {
      out += "<|system|>" + visible_text(m.content);
    } else if (m.role == "assistant") {
      append_assistant(m, keep_reasoning || i >= after_last_user, out);
    } else if (m.role == "tool") {
      append_tool_result(m, i > 0 && messages[i - 1].role == "tool", out);
    }
  }
  if (request.add_generation_prompt.value_or(false)) {
    out += "<|assistant|>";
    out += request.enable_thinking.value_or(true) ? kThinkOpen : kThinkClose;
  }
  return out;
}

}  // namespace glint
