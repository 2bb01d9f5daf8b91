#include "base/json_pointer.hpp"

#include <algorithm>
#include <charconv>
#include <string>

namespace glint {
namespace {

// One token of a JSON pointer in a URI fragment: %41 → A, then ~1 → /, ~0 → ~.
std::string pointer_token(std::string_view raw) {
  std::string plain;
  for (std::size_t i = 0; i < raw.size(); ++i) {
    unsigned code = 0;
    if (raw[i] == '%' && i + 2 < raw.size() &&
        std::from_chars(raw.data() + i + 1, raw.data() + i + 3, code, 16).ptr == raw.data() + i + 3) {
      plain += static_cast<char>(code);
      i += 2;
    } else {
      plain += raw[i];
    }
  }
  std::string out;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    const bool escape = plain[i] == '~' && i + 1 < plain.size() && (plain[i + 1] == '0' || plain[i + 1] == '1');
    out += escape ? (plain[++i] == '0' ? '~' : '/') : plain[i];
  }
  return out;
}

}  // namespace

const JsonValue* follow_reference(std::string_view ref, const JsonValue& root) {
  if (ref.empty() || ref[0] != '#') return nullptr;
  ref.remove_prefix(1);
  const JsonValue* at = &root;
  while (!ref.empty() && at != nullptr) {
    if (ref[0] != '/') return nullptr;
    ref.remove_prefix(1);
    const std::size_t end = std::min(ref.find('/'), ref.size());
    const std::string token = pointer_token(ref.substr(0, end));
    ref.remove_prefix(end);
    if (at->is(JsonValue::Kind::kArray)) {
      std::size_t index = 0;
      const auto r = std::from_chars(token.data(), token.data() + token.size(), index);
      at = r.ec == std::errc() && index < at->items.size() ? &at->items[index] : nullptr;
    } else {
      at = at->find(token);
    }
  }
  return at;
}

}  // namespace glint
