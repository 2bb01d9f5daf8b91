#pragma once
// The pre-tokenizer: cuts text into the pieces that byte-pair merging never crosses. It is the hand-written form of
// one regex, GLM's (model.md §5.2); a tokenizer.json with another pattern is refused when it is loaded.

#include <cstddef>
#include <string_view>

namespace glint {

// (?i:) is Unicode simple folding, so that 's also matches with U+017F (long s).
inline constexpr std::string_view kPretokenizerPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// The end of the pre-token that starts at text[begin]; begin < text.size(). Always > begin, so that a loop over it
// covers the text, in linear time. A byte that is not part of well-formed UTF-8 counts as one character that is
// neither letter, number nor space.
std::size_t pretoken_end(std::string_view text, std::size_t begin);

}  // namespace glint
