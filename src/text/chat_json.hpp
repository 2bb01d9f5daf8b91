#pragma once
// Reads a ChatRequest from the JSON body of an OpenAI chat request.

#include <string_view>

#include "text/chat.hpp"

namespace glint {

enum class ChatJsonMode {
  kTemplate,  // as given: render_chat shows and raises what the Jinja template would
  kServer     // repairs what OpenAI clients send: null content becomes "", arguments given as JSON text are parsed
};

// Fields: messages (required), tools, add_generation_prompt, enable_thinking, clear_thinking, and
// chat_template_kwargs with the last three, which there win over the top level. null means absent; other fields are
// ignored. A call is {"function": {"name", "arguments"}} or flat {"name", "arguments"}.
// Throws Error naming the message and field at fault.
ChatRequest chat_request_from_json(std::string_view json_text, ChatJsonMode mode = ChatJsonMode::kTemplate);
ChatRequest chat_request_from_value(const JsonValue& body, ChatJsonMode mode = ChatJsonMode::kTemplate);

// The "tools" field: an array, or null / absent / empty for none.
std::vector<JsonValue> chat_tools_from_json(const JsonValue& body);

}  // namespace glint
