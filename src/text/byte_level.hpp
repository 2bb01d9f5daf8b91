#pragma once
// GPT-2's byte alphabet, in which tokenizer.json spells its vocabulary: every byte is one printable character.

#include <optional>
#include <string>
#include <string_view>

namespace glint {

// The bytes that `spelled` stands for ("Ġhi" -> " hi"); nullopt when it has a character outside the alphabet.
std::optional<std::string> bytes_from_alphabet(std::string_view spelled);

// The inverse: how tokenizer.json spells these bytes.
std::string alphabet_from_bytes(std::string_view bytes);

}  // namespace glint
