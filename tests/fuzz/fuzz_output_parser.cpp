// The output parser, differentially: the text whole, byte by byte and in pieces of random length must give the same
// result, and every call's arguments must be one JSON object (when the text is UTF-8).
// Input: a byte of options, a seed for the pieces, then the text.

#include <algorithm>
#include <cstdlib>
#include <random>
#include <string_view>

#include "text/output_parser.hpp"

namespace {

const char* const kTools = R"([
  {"name": "f", "parameters": {"properties": {"s": {"type": "string"}, "i": {"type": "integer"},
    "o": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "l": {"type": ["string", "array"]}}}},
  {"type": "function", "function": {"name": "get"}}, {"name": "get_all"}])";

void require(bool ok) {
  if (!ok) std::abort();
}

template <class NextSize>
glint::ParsedOutput in_pieces(std::string_view text, const glint::OutputParserOptions& options, glint::OutputEnd end,
                              NextSize&& next_size) {
  glint::OutputParser parser(options);
  glint::ParsedOutput out;
  while (!text.empty()) {
    const std::size_t n = std::min<std::size_t>(text.size(), next_size());
    out.add(parser.feed(text.substr(0, n)));
    text.remove_prefix(n);
  }
  out.add(parser.finish(end));
  return out;
}

bool is_utf8(std::string_view text) {
  std::string quoted = "\"";
  glint::append_json_escaped(text, quoted);
  return glint::try_parse_json_value(quoted + '"').has_value();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 2, size - 2);
  static const std::vector<glint::JsonValue> tools = glint::parse_json_value(kTools, "tools").items;
  glint::OutputParserOptions options{.thinking_enabled = (data[0] & 1) == 0, .parse_tool_calls = (data[0] & 8) == 0};
  if ((data[0] & 2) == 0) options.tools = tools;
  const auto end = (data[0] & 4) == 0 ? glint::OutputEnd::kStop : glint::OutputEnd::kLength;

  const glint::ParsedOutput whole = glint::parse_output(text, options, end);
  std::minstd_rand rng(data[1] + 1u);
  require(whole == in_pieces(text, options, end, [] { return 1u; }));
  require(whole == in_pieces(text, options, end, [&] { return 1u + rng() % 12; }));
  if (is_utf8(text)) {
    for (const glint::ParsedToolCall& call : whole.tool_calls) {
      const auto arguments = glint::try_parse_json_value(call.arguments);
      require(arguments && arguments->is(glint::JsonValue::Kind::kObject));
    }
  }
  return 0;
}
