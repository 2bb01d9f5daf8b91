// The compiler of schemas and calls: any text gives a grammar or an Error, and what the masks of a grammar allow leads
// step by step to the answer's end, never into a state that allows nothing.
// Input: a byte that steers the walk, then the constraint as Request::constraint has it.

#include <cstdlib>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "grammar/constraint_spec.hpp"

namespace {

using glint::grammar::Vocabulary;

void require(bool ok) {
  if (!ok) std::abort();
}

std::shared_ptr<const Vocabulary> bytes_and_tags() {
  std::vector<Vocabulary::Token> tokens;
  for (std::int32_t b = 0; b < 256; ++b) tokens.push_back({b, std::string(1, static_cast<char>(b))});
  std::int32_t id = 257;
  for (const char* tag : {"<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>",
                          "<arg_value>", "</arg_value>"}) {
    tokens.push_back({id++, tag, true});
  }
  for (const char* piece : {"{\"", "\":", "\"}", "],", "true", "12", "a\"", "\\u", "]]"})
    tokens.push_back({id++, piece});
  return std::make_shared<Vocabulary>(std::move(tokens), std::vector<std::int32_t>{256}, id);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2 || size > 8192) return 0;
  static const std::shared_ptr<const Vocabulary> vocabulary = bytes_and_tags();
  std::shared_ptr<glint::grammar::TokenGrammar> grammar;
  try {
    grammar = std::make_shared<glint::grammar::TokenGrammar>(
        glint::grammar::compile_constraint({reinterpret_cast<const char*>(data) + 1, size - 1}, *vocabulary),
        vocabulary);
  } catch (const glint::Error&) { return 0; }
  const auto constraint = glint::grammar::make_constraint(grammar);
  std::vector<std::uint64_t> bits(vocabulary->n_words());
  std::uint32_t random = data[0] + 1u;
  for (int step = 0; step < 100; ++step) {
    constraint->mask(bits);
    std::vector<std::int32_t> allowed;
    for (std::size_t i = 0; i < 64 * bits.size(); ++i) {
      if ((bits[i / 64] >> (i % 64) & 1) != 0) allowed.push_back(static_cast<std::int32_t>(i));
    }
    require(!allowed.empty());
    random = random * 1664525u + 1013904223u;
    const std::int32_t token = allowed[(random >> 8) % allowed.size()];
    require(constraint->accept(token));
    if (token == 256) break;
  }
  return 0;
}
