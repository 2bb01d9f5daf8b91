// What an alternative is made of: properties, items, references.

#include <algorithm>
#include <string_view>

#include "base/json_pointer.hpp"
#include "grammar/schema.hpp"

namespace glint::grammar {
namespace {

using Kind = JsonValue::Kind;

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
  const std::string_view text = ref.text;
  if (!text.starts_with('#')) refuse(path, shown_json(ref), "a reference within the schema, such as #/$defs/name");
  if (text.size() > 1 && text[1] != '/') refuse(path, shown_json(ref), "a JSON pointer, such as #/$defs/name");
  const JsonValue* at = follow_reference(text, root_);
  if (at == nullptr) refuse(path, shown_json(ref), "a reference to something that is there");
  return *at;
}

}  // namespace glint::grammar
