#pragma once
// The conversation of a request to OpenAI's Responses API: its items as the messages that the chat template takes.

#include <string>

#include "server/chat_fields.hpp"

namespace glint::server {

// Reads input, instructions, tools, tool_choice, parallel_tool_calls, text and reasoning, and refuses what needs
// stored conversations. Throws ApiError naming the field.
Conversation read_responses_conversation(const Fields& body);

}  // namespace glint::server
