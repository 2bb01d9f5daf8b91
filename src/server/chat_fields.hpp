#pragma once
// The conversation of an OpenAI chat request: messages, tools, and what decides on thinking, as the chat template takes
// them.

#include <cstdint>
#include <string>
#include <vector>

#include "server/fields.hpp"
#include "text/chat.hpp"
#include "text/output_parser.hpp"

namespace glint::server {

struct Conversation {
  ChatRequest chat;
  OutputParserOptions parser;  // of the answer
  bool parallel_calls = true;
  JsonValue constraint;  // Request::constraint as far as it is known; null: none
};

// Whether the model may call, or must.
struct ToolChoice {
  bool allowed = true;
  bool needed = false;
  std::string function;  // needed: this one; empty: any
};

// Reads messages, tools, tool_choice, parallel_tool_calls, response_format, chat_template_kwargs, thinking,
// reasoning_effort. Throws ApiError naming the field.
Conversation read_conversation(const Fields& body);

// A text, or a list of text parts, as one text. Throws for parts that are no text.
std::string read_text_parts(const JsonValue& content, const std::string& where);

// tool_choice of the OpenAI APIs: auto, none, required, or an object that names a function.
ToolChoice read_tool_choice(const Fields& body);

// Gives the tools to the prompt and to the parser of the answer. Where calls are not allowed, to neither: what the
// model does not see it does not call. Calls that are needed, and tools that say "strict", become a constraint.
void offer_tools(std::vector<JsonValue> tools, const ToolChoice& choice, Conversation& c);

// A format of the answer: {"type": "text" | "json_object" | "json_schema"}, the schema in "schema" beside it or within
// "json_schema". `path` is its place in the body.
void read_format(const JsonValue& format, const std::string& path, Conversation& c);

// The constraint of the whole conversation as the engine takes it; empty for none.
std::string constraint_text(const Conversation& c);

// An effort of reasoning: none and minimal turn thinking off, the others on.
void read_effort(const Fields& fields, std::string_view name, ChatRequest& chat);

// enable_thinking and clear_thinking, in the body itself or in chat_template_kwargs.
void read_template_flags(const Fields& body, ChatRequest& chat);

// The results of parallel calls stand in the order of the calls: the model's format has no ids to tell them apart.
// ids[i] lists the ids of message i's calls, or the one call that message i answers.
void order_results(std::vector<ChatMessage>& messages, std::vector<std::vector<std::string>>& ids);

}  // namespace glint::server
