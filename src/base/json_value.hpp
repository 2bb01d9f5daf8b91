#pragma once
// JsonValue: a JSON document as plain data, for text that goes back to a model or a client unchanged. It keeps what
// Boost.JSON (base/json.hpp) loses and Python keeps: the digits of every number (12345678901234567890123 stays one) and
// the order of keys. Large files (tokenizer.json, config.json) use base/json.hpp, which is faster.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace glint {

struct JsonValue {
  enum class Kind : std::uint8_t { kNull, kBool, kNumber, kString, kArray, kObject };

  Kind kind = Kind::kNull;
  bool boolean = false;
  std::string text;               // kString: the characters (UTF-8); kNumber: the token as written, e.g. "-0.50"
  std::vector<std::string> keys;  // kObject: keys[i] names items[i]; unique, in order of first appearance
  std::vector<JsonValue> items;   // kArray and kObject

  JsonValue() = default;
  JsonValue(std::string s) : kind(Kind::kString), text(std::move(s)) {}
  JsonValue(const char* s) : kind(Kind::kString), text(s) {}
  static JsonValue from_bool(bool b);
  static JsonValue from_number(std::string token);  // the caller vouches for JSON number syntax
  static JsonValue make_array(std::vector<JsonValue> elements = {});
  static JsonValue make_object();

  bool is(Kind k) const { return kind == k; }
  bool is_integer() const;  // a number without fraction and exponent
  double as_double() const;
  const JsonValue* find(std::string_view key) const;  // nullptr if absent or if this is no object
  // Adds or replaces, as a Python dict does: a replaced key keeps its place. Returns *this, to chain.
  JsonValue& set(std::string key, JsonValue value);
  bool operator==(const JsonValue&) const = default;
};

// "null", "a boolean", "a number" …: for error messages.
std::string_view json_kind_name(JsonValue::Kind kind);

// Strict RFC 8259 (UTF-8 checked, lone surrogates refused), nesting at most 128; of equal keys the last value wins.
// Throws Error naming `source`, line and column.
JsonValue parse_json_value(std::string_view text, std::string_view source);
std::optional<JsonValue> try_parse_json_value(std::string_view text);

enum class NumberStyle : std::uint8_t {
  kPython,   // as json.dumps(json.loads(x)): integers keep their digits, others become repr(float)
  kVerbatim  // the token as it was written; always valid JSON
};
// As Python's json.dumps(value, ensure_ascii=False): ", " and ": ", key order kept.
std::string dump_json(const JsonValue& value, NumberStyle style);

// Appends `s` with JSON's escapes and without the quotes. Escaping the parts of a text equals escaping the whole.
void append_json_escaped(std::string_view s, std::string& out);

// repr(float(x)): shortest digits that round-trip, exponent form below 1e-4 and from 1e16 on; "inf", "-inf", "nan".
std::string python_float_repr(double x);

}  // namespace glint
