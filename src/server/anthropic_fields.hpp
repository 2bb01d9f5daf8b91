#pragma once
// The conversation of an Anthropic request: its blocks as the messages that the chat template takes.

#include "server/chat_fields.hpp"

namespace glint::server {

// Reads system, messages, tools, tool_choice and thinking. Throws ApiError naming the field.
Conversation read_anthropic_conversation(const Fields& body);

}  // namespace glint::server
