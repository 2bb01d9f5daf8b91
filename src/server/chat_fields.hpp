#pragma once
// The conversation of an OpenAI chat request: messages, tools, and what decides on thinking, as the chat template takes
// them.

#include <cstdint>
#include <vector>

#include "server/fields.hpp"
#include "text/chat.hpp"
#include "text/output_parser.hpp"

namespace glint::server {

struct Conversation {
  ChatRequest chat;
  OutputParserOptions parser;  // of the answer
  bool parallel_calls = true;
};

// Reads messages, tools, tool_choice, parallel_tool_calls, response_format, chat_template_kwargs, thinking,
// reasoning_effort. Throws ApiError naming the field.
Conversation read_conversation(const Fields& body);

// A text, or a list of text parts, as one text. Throws for parts that are no text.
std::string read_text_parts(const JsonValue& content, const std::string& where);

// The results of parallel calls stand in the order of the calls: the model's format has no ids to tell them apart.
// ids[i] lists the ids of message i's calls, or the one call that message i answers.
void order_results(std::vector<ChatMessage>& messages, std::vector<std::vector<std::string>>& ids);

}  // namespace glint::server
