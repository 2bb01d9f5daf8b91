// What an alternative is made of: properties, items, references.

#include <algorithm>
#include <charconv>
#include <string_view>

#include "grammar/schema.hpp"

namespace glint::grammar {
namespace {

using Kind = JsonValue::Kind;

// One token of a JSON pointer.
std::string pointer_token(std::string_view raw) {
  std::string out;
  for (std::size_t i = 0; i < raw.size(); ++i) {
    unsigned code = 0;
    if (raw[i] == '%' && i + 2 < raw.size() &&
        std::from_chars(raw.data() + i + 1, raw.data() + i + 3, code, 16).ptr == raw.data() + i + 3) {
      out += static_cast<char>(code);
      i += 2;
    } else if (raw[i] == '~' && i + 1 < raw.size() && (raw[i + 1] == '0' || raw[i + 1] == '1')) {
      out += raw[++i] == '0' ? '~' : '/';
    } else {
      out += raw[i];
    }
  }
  return out;
}

}  // namespace

Members SchemaReader::members(const Alternative& a) {
  Members out;
  bool any_declared = false, any_explicit = false, forbidden = false;
  Conjunction additional;
  for (const JsonValue* part : a.object_parts) {
    any_declared = any_declared || part->find("properties") != nullptr;
    const JsonValue* more = part->find("additionalProperties");
    if (more == nullptr) continue;
    if (more->is(Kind::kBool)) {
      (more->boolean ? any_explicit : forbidden) = true;
    } else {
      any_explicit = true;
      additional.push_back(child(*part, *more, "additionalProperties"));
    }
  }
  std::vector<std::string> names;
  const auto add_name = [&](const std::string& name) {
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  };
  for (const JsonValue* part : a.object_parts) {
    if (const JsonValue* properties = part->find("properties")) {
      for (const std::string& key : properties->keys) add_name(key);
    }
  }
  for (const std::string& name : a.required) add_name(name);

  for (const std::string& name : names) {
    Members::Property p{.name = name};
    p.required = std::find(a.required.begin(), a.required.end(), name) != a.required.end();
    bool allowed = true;
    for (const JsonValue* part : a.object_parts) {
      const JsonValue* properties = part->find("properties");
      const JsonValue* own = properties == nullptr ? nullptr : properties->find(name);
      const JsonValue* more = part->find("additionalProperties");
      if (own != nullptr) {
        p.schema.push_back(child(*part, *own, "properties." + name));
      } else if (more != nullptr && more->is(Kind::kBool)) {
        allowed = allowed && more->boolean;
      } else if (more != nullptr) {
        p.schema.push_back(more);
      }
    }
    if (allowed) {
      out.properties.push_back(std::move(p));
    } else if (p.required) {
      out.possible = false;
    }
  }
  // An object that declares properties gets others only where it says so.
  if (!forbidden && (any_explicit || !any_declared)) out.additional = std::move(additional);
  return out;
}

std::size_t SchemaReader::n_prefix_items(const Alternative& a) const {
  std::size_t n = 0;
  for (const JsonValue* part : a.array_parts) {
    if (const JsonValue* prefix = part->find("prefixItems")) n = std::max(n, prefix->items.size());
  }
  return n;
}

std::optional<Conjunction> SchemaReader::item(const Alternative& a, std::size_t i) {
  Conjunction out;
  for (const JsonValue* part : a.array_parts) {
    const JsonValue* prefix = part->find("prefixItems");
    const JsonValue* items = part->find("items");
    if (prefix != nullptr && i < prefix->items.size()) {
      out.push_back(child(*part, prefix->items[i], "prefixItems[" + std::to_string(i) + "]"));
    } else if (items != nullptr) {
      if (items->is(Kind::kBool) && !items->boolean) return std::nullopt;
      out.push_back(child(*part, *items, "items"));
    }
  }
  return out;
}

const JsonValue& SchemaReader::follow(const JsonValue& ref, const std::string& path) const {
  if (!ref.is(Kind::kString)) refuse(path, shown_json(ref), "a text such as #/$defs/name");
  std::string_view rest = ref.text;
  if (rest.empty() || rest[0] != '#')
    refuse(path, shown_json(ref), "a reference within the schema, such as #/$defs/name");
  rest.remove_prefix(1);
  const JsonValue* at = &root_;
  while (!rest.empty() && at != nullptr) {
    if (rest[0] != '/') refuse(path, shown_json(ref), "a JSON pointer, such as #/$defs/name");
    rest.remove_prefix(1);
    const std::size_t end = std::min(rest.find('/'), rest.size());
    const std::string token = pointer_token(rest.substr(0, end));
    rest.remove_prefix(end);
    if (at->is(Kind::kArray)) {
      std::size_t index = 0;
      const auto r = std::from_chars(token.data(), token.data() + token.size(), index);
      at = r.ec == std::errc() && index < at->items.size() ? &at->items[index] : nullptr;
    } else {
      at = at->find(token);
    }
  }
  if (at == nullptr) refuse(path, shown_json(ref), "a reference to something that is there");
  return *at;
}

}  // namespace glint::grammar
