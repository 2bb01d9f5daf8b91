// The chat template from request JSON. What parses must render the same again, and what the lenient reader repairs must
// render as the strict reader renders it when nothing needs repair.

#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "text/chat_json.hpp"
#include "text/python_text.hpp"

namespace {

void require(bool ok) {
  if (!ok) std::abort();
}

std::string render(const glint::JsonValue& body, glint::ChatJsonMode mode) {
  return glint::render_chat(glint::chat_request_from_value(body, mode));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  (void)glint::parse_python_literal(text);
  require(glint::python_strip(glint::python_strip(text)) == glint::python_strip(text));
  try {
    const glint::JsonValue body = glint::parse_json_value(text, "request");
    const std::string dumped = glint::dump_json(body, glint::NumberStyle::kVerbatim);
    require(glint::parse_json_value(dumped, "dump") == body);
    (void)glint::python_repr(body);
    std::string strict, lenient;
    try {
      lenient = render(body, glint::ChatJsonMode::kServer);
    } catch (const glint::Error&) { lenient = "refused"; }
    strict = render(body, glint::ChatJsonMode::kTemplate);
    require(lenient != "refused");  // the lenient reader refuses no more than the strict one
    require(strict == lenient || strict.find("None") != std::string::npos);
  } catch (const glint::Error&) {}
  return 0;
}
