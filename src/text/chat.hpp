#pragma once
// The chat template of GLM-4.7-Flash as a function: render_chat(request) is byte for byte what the model's
// chat_template.jinja gives under Hugging Face's settings (model card; tests/data/GLM-4.7-Flash.jinja).
//
//   [gMASK]<sop> TOOLS? then per message
//   <|system|>TEXT   <|user|>TEXT   <|assistant|>THINK CONTENT CALLS <|observation|><tool_response>TEXT</tool_response>
//   and <|assistant|><think> or <|assistant|></think> where the model is to go on.
//
// The template is strict where servers are lenient: an assistant's null content prints "None", for instance.
// chat_json.hpp has the reader of OpenAI requests that repairs such things before they come here.

#include <optional>
#include <string>
#include <vector>

#include "base/json_value.hpp"

namespace glint {

struct ChatToolCall {
  std::string name;
  JsonValue arguments = JsonValue::make_object();  // an object; strings are printed verbatim, the rest as JSON
};

struct ChatMessage {
  std::string role;  // system, user, assistant, tool; the template drops every other role without a word
  // A string, or a list of parts of which {"type": "text", "text": …} and bare strings count. A tool message with a
  // list gives one response per element: its "output", else its Python repr. Absent is empty; null is the text "None".
  std::optional<JsonValue> content;
  std::optional<std::string> reasoning_content;  // assistant; absent: looked for in content as <think>…</think>
  std::vector<ChatToolCall> tool_calls;          // assistant
};

struct ChatRequest {
  std::vector<ChatMessage> messages;
  std::vector<JsonValue> tools;  // each is printed whole, as given: {"type": "function", "function": {…}} or bare
  // Absent means the template's own default: no prompt, thinking on, reasoning before the last user message cleared.
  std::optional<bool> add_generation_prompt;
  std::optional<bool> enable_thinking;  // only chooses the generation prompt
  std::optional<bool> clear_thinking;   // false keeps all reasoning ("preserved thinking")
};

// Throws Error where the template raises: a tool message whose content is null, a number or a boolean; a call whose
// arguments are no object.
std::string render_chat(const ChatRequest& request);

}  // namespace glint
