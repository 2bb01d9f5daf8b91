#pragma once
// Reads the fields of a JSON object with checks whose errors name the field. null counts as absent; fields that nobody
// asks for are left alone.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_value.hpp"
#include "server/api_error.hpp"

namespace glint::server {

// The value as an error message shows it: short, and never a long text of the user's.
std::string shown(const JsonValue& value);

class Fields {
 public:
  // `path` is the place of the object in the body, "" for the body itself. Throws if it is no object. The value must
  // outlive this.
  Fields(const JsonValue& object, std::string path);

  std::string at(std::string_view name) const;  // "messages[2].content"
  const JsonValue* get(std::string_view name) const;
  bool has(std::string_view name) const { return get(name) != nullptr; }

  std::optional<bool> boolean(std::string_view name) const;
  std::optional<double> number(std::string_view name, double least, double most) const;
  std::optional<std::int64_t> integer(std::string_view name, std::int64_t least, std::int64_t most) const;
  std::optional<std::string> text(std::string_view name) const;
  std::string required_text(std::string_view name) const;
  // nullptr if absent.
  const JsonValue* array(std::string_view name) const;
  const JsonValue* object(std::string_view name) const;
  // Token ids; the engine checks them against the vocabulary.
  std::optional<std::vector<std::int32_t>> ids(std::string_view name) const;

  [[noreturn]] void fail(std::string_view name, std::string_view expected) const;

 private:
  const JsonValue& object_;
  std::string path_;
};

// Every element is an integer that a token id may be. Throws ApiError naming the element.
std::vector<std::int32_t> read_ids(const JsonValue& array, const std::string& path);

// The body of a request: an object. Throws ApiError 400.
JsonValue parse_body(std::string_view body);

}  // namespace glint::server
