#pragma once
// The regular expressions of JSON schemas (ECMA 262, what is regular of it): alternatives, groups, classes, . \d \w \s
// and their negations, * + ? {m,n} (lazy or not), ^ and $ at the ends of a whole alternative, \n \t \r \f \v \0 \xHH
// \uHHHH \u{H}. Back references, look-around, \b and \p are not.

#include <string_view>

#include "grammar/char_dfa.hpp"

namespace glint::grammar {

// The texts in which `pattern` is found: it is anchored only where it says so. Throws Error saying what of it is wrong
// or not supported.
CharDfa compile_regex(std::string_view pattern);

}  // namespace glint::grammar
