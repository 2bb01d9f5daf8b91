#include "server/fields.hpp"

#include <fmt/format.h>

#include <charconv>
#include <limits>

namespace glint::server {
namespace {

using Kind = JsonValue::Kind;

std::optional<std::int64_t> to_integer(const JsonValue& v) {
  if (!v.is_integer()) return std::nullopt;
  std::int64_t n = 0;
  const auto r = std::from_chars(v.text.data(), v.text.data() + v.text.size(), n);
  if (r.ec != std::errc() || r.ptr != v.text.data() + v.text.size()) return std::nullopt;
  return n;
}

std::string range(auto least, auto most) { return fmt::format("from {} to {}", least, most); }

}  // namespace

std::string shown(const JsonValue& value) {
  constexpr std::size_t kMost = 40;
  switch (value.kind) {
    case Kind::kBool:
      return value.boolean ? "true" : "false";
    case Kind::kNumber:
      return value.text.size() <= kMost ? value.text : "a number";
    case Kind::kString:
      if (value.text.size() <= kMost) return '"' + value.text + '"';
      return "a string";
    case Kind::kArray:
      return value.items.empty() ? "an empty array" : "an array";
    default:
      return std::string(json_kind_name(value.kind));
  }
}

Fields::Fields(const JsonValue& object, std::string path) : object_(object), path_(std::move(path)) {
  if (!object.is(Kind::kObject)) throw bad_field(path_.empty() ? "body" : path_, shown(object), "an object");
}

std::string Fields::at(std::string_view name) const {
  return path_.empty() ? std::string(name) : path_ + "." + std::string(name);
}

const JsonValue* Fields::get(std::string_view name) const {
  const JsonValue* v = object_.find(name);
  return v == nullptr || v->is(Kind::kNull) ? nullptr : v;
}

void Fields::fail(std::string_view name, std::string_view expected) const {
  const JsonValue* v = object_.find(name);
  throw bad_field(at(name), v == nullptr ? "nothing" : shown(*v), expected);
}

std::optional<bool> Fields::boolean(std::string_view name) const {
  const JsonValue* v = get(name);
  if (v == nullptr) return std::nullopt;
  if (!v->is(Kind::kBool)) fail(name, "true or false");
  return v->boolean;
}

std::optional<double> Fields::number(std::string_view name, double least, double most) const {
  const JsonValue* v = get(name);
  if (v == nullptr) return std::nullopt;
  const double d = v->is(Kind::kNumber) ? v->as_double() : std::numeric_limits<double>::quiet_NaN();
  if (!(d >= least && d <= most)) fail(name, "a number " + range(least, most));
  return d;
}

std::optional<std::int64_t> Fields::integer(std::string_view name, std::int64_t least, std::int64_t most) const {
  const JsonValue* v = get(name);
  if (v == nullptr) return std::nullopt;
  const std::optional<std::int64_t> n = to_integer(*v);
  if (!n || *n < least || *n > most) fail(name, "an integer " + range(least, most));
  return n;
}

std::optional<std::string> Fields::text(std::string_view name) const {
  const JsonValue* v = get(name);
  if (v == nullptr) return std::nullopt;
  if (!v->is(Kind::kString)) fail(name, "a string");
  return v->text;
}

std::string Fields::required_text(std::string_view name) const {
  const std::optional<std::string> s = text(name);
  if (!s) fail(name, "a string");
  return *s;
}

const JsonValue* Fields::array(std::string_view name) const {
  const JsonValue* v = get(name);
  if (v != nullptr && !v->is(Kind::kArray)) fail(name, "an array");
  return v;
}

const JsonValue* Fields::object(std::string_view name) const {
  const JsonValue* v = get(name);
  if (v != nullptr && !v->is(Kind::kObject)) fail(name, "an object");
  return v;
}

std::optional<std::vector<std::int32_t>> Fields::ids(std::string_view name) const {
  const JsonValue* v = array(name);
  if (v == nullptr) return std::nullopt;
  return read_ids(*v, at(name));
}

std::vector<std::int32_t> read_ids(const JsonValue& array, const std::string& path) {
  std::vector<std::int32_t> ids;
  ids.reserve(array.items.size());
  for (std::size_t i = 0; i < array.items.size(); ++i) {
    const std::optional<std::int64_t> id = to_integer(array.items[i]);
    if (!id || *id < 0 || *id > std::numeric_limits<std::int32_t>::max()) {
      throw bad_field(fmt::format("{}[{}]", path, i), shown(array.items[i]), "a token id");
    }
    ids.push_back(static_cast<std::int32_t>(*id));
  }
  return ids;
}

JsonValue parse_body(std::string_view body) {
  if (body.empty()) throw bad_field("body", "nothing", "a JSON object");
  try {
    JsonValue value = parse_json_value(body, "body");
    if (!value.is(Kind::kObject)) throw bad_field("body", shown(value), "a JSON object");
    return value;
  } catch (const Error& e) { throw ApiError({.message = e.what(), .param = "body", .code = "invalid_json"}); }
}

}  // namespace glint::server
