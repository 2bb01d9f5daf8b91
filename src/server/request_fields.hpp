#pragma once
// Fields that several APIs share: sampling, length, stop texts, priority, tools.

#include <cstdint>
#include <string>
#include <vector>

#include "glint/engine.hpp"
#include "server/fields.hpp"
#include "server/service.hpp"

namespace glint::server {

// temperature, top_p, top_k, min_p, the penalties, seed and logit_bias over the server's defaults.
SamplingParams read_sampling(const Fields& body, const SamplingParams& defaults);

// A text or a list of texts.
std::vector<std::string> read_stop(const Fields& body, std::string_view name);

// priority (the smaller goes first, as with vLLM) and timeout (seconds).
void read_schedule(const Fields& body, Request& request);

// "model" must be a text if it is there. Any name will do: there is one model.
void check_model(const Fields& body);

// Throws "context_length_exceeded" when the prompt leaves no room for an answer. `param`: the field it came from.
void check_fits(std::size_t prompt_tokens, const Engine& engine, const std::string& param);

// One request for each of n choices of a prompt, the first with the given seed, the next with the following ones.
void append_choices(const Request& request, std::size_t n, std::vector<Request>& out);

// Whether a function may have that name. The model writes it between tags, so it must hold none.
bool valid_tool_name(std::string_view name);

// The name of one tool of a list, added to those before it. Throws if it is invalid or one of them.
std::string read_tool_name(const Fields& tool, std::vector<std::string>& names);

}  // namespace glint::server
