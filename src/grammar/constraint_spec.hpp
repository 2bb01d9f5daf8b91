#pragma once
// What a request asks of its answer's form, as JSON (glint/engine.hpp, Request::constraint), and its grammar.

#include <memory>
#include <string>
#include <string_view>

#include "grammar/grammar.hpp"
#include "grammar/token_constraint.hpp"

namespace glint::grammar {

// Throws Error naming the place in the schema when something of it cannot be promised.
Grammar compile_constraint(std::string_view spec_json, const Vocabulary& vocabulary);

}  // namespace glint::grammar
