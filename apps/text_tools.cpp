// glint tokenize | detokenize | template | parse: the text room over JSON lines.

#include "command.hpp"

namespace glint::apps {
void register_text_tools(CLI::App&, Run&) {}
}  // namespace glint::apps
