#pragma once
// Chat requests and model output as JSON text, for Engine::render_chat and parse_output.

#include <string>
#include <string_view>

namespace glint {

// add_generation_prompt defaults to true here: what comes out is a prompt. Repairs what OpenAI clients send.
std::string render_chat_json(std::string_view request_json);

// options: {"tools", "enable_thinking", "finish_reason": "stop" | "length"}.
std::string parse_output_json(std::string_view text, std::string_view options_json);

}  // namespace glint
