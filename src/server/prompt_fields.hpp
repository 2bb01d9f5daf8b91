#pragma once
// Prompts that are plain text.

#include <string>
#include <vector>

#include "glint/engine.hpp"
#include "server/fields.hpp"

namespace glint::server {

// The ids of a text that is to be continued. Every text that the model was trained on begins with [gMASK]<sop> (model
// facts §5.2): it is put before a text that has none, unless with_prefix is false.
std::vector<std::int32_t> encode_prompt(const Engine& engine, std::string_view text, bool with_prefix);

}  // namespace glint::server
