// The header parser: Boost.JSON's event parser, because its document form silently drops duplicate names.

#include <algorithm>
#include <bit>
#include <boost/json/basic_parser_impl.hpp>
#include <cstring>
#include <limits>
#include <optional>
#include <unordered_set>

#include "base/error.hpp"
#include "weights/safetensors.hpp"

namespace glint {
namespace {

namespace bj = boost::json;

// Turns JSON events into entries. Depth 1: the header object; 2: one tensor or __metadata__; 3: shape or data_offsets.
// begin and end are relative to the data until check_layout() makes them absolute.
struct HeaderHandler {
  static constexpr std::size_t max_object_size = std::size_t(-1);
  static constexpr std::size_t max_array_size = std::size_t(-1);
  static constexpr std::size_t max_key_size = std::size_t(-1);
  static constexpr std::size_t max_string_size = std::size_t(-1);

  using Text = bj::string_view;
  using Code = bj::error_code;

  explicit HeaderHandler(std::string_view file) : source(file) {}

  std::string_view source;
  SafetensorsHeader header;
  std::unordered_set<std::string> names;

  enum class Field { kNone, kDtype, kShape, kOffsets };
  int depth = 0;
  bool in_metadata = false;
  bool in_array = false;
  Field field = Field::kNone;
  std::string text;  // the parts of a key or string so far
  std::string key;   // of depth 1: the tensor's name; in the metadata: the name of the value
  SafetensorsEntry entry;
  std::string metadata_key;
  bool has_dtype = false, has_shape = false, has_offsets = false;
  int n_offsets = 0;

  [[noreturn]] void refuse(const std::string& found, const std::string& expected) const {
    std::string what(source);
    if (depth >= 2) what += in_metadata ? ": __metadata__" : ": tensor " + key;
    throw Error({.what = what, .found = found, .expected = expected});
  }
  [[noreturn]] void unexpected(const char* kind) const {
    if (depth == 0) refuse(std::string("a header that is ") + kind, "a JSON object");
    if (depth == 1) refuse(std::string(kind) + " for " + key, "an object with dtype, shape and data_offsets");
    if (in_metadata) refuse(std::string(kind) + " for " + metadata_key, "a string");
    if (field == Field::kDtype) refuse(std::string(kind) + " for dtype", "a string");
    if (field == Field::kShape) refuse(std::string(kind) + " in shape", "a list of non-negative integers");
    refuse(std::string(kind) + " in data_offsets", "[begin, end], non-negative integers");
  }

  bool on_document_begin(Code&) { return true; }
  bool on_document_end(Code&) { return true; }

  bool on_object_begin(Code&) {
    if (depth >= 2 || in_array) unexpected("an object");
    ++depth;
    if (depth == 2 && !in_metadata) {
      entry = {};
      entry.name = key;
      has_dtype = has_shape = has_offsets = false;
    }
    field = Field::kNone;
    return true;
  }
  bool on_object_end(std::size_t, Code&) {
    if (depth == 2 && !in_metadata) {
      if (!has_dtype || !has_shape || !has_offsets) {
        refuse(std::string("no ") + (!has_dtype   ? "dtype"
                                     : !has_shape ? "shape"
                                                  : "data_offsets"),
               "dtype, shape and data_offsets");
      }
      header.tensors.push_back(std::move(entry));
    }
    if (depth == 2) in_metadata = false;
    --depth;
    return true;
  }

  bool on_array_begin(Code&) {
    if (depth != 2 || in_metadata || in_array || (field != Field::kShape && field != Field::kOffsets))
      unexpected("a list");
    in_array = true;
    n_offsets = 0;
    return true;
  }
  bool on_array_end(std::size_t, Code&) {
    in_array = false;
    if (field == Field::kOffsets && n_offsets != 2) refuse(std::to_string(n_offsets) + " data_offsets", "2");
    field = Field::kNone;
    return true;
  }

  bool on_key_part(Text s, std::size_t, Code&) {
    text.append(s.data(), s.size());
    return true;
  }
  bool on_key(Text s, std::size_t, Code&) {
    text.append(s.data(), s.size());
    std::string name = std::exchange(text, {});
    if (depth == 1) {
      in_metadata = name == "__metadata__";
      if (!names.insert(name).second)
        throw Error({.what = std::string(source), .found = "the name " + name + " twice"});
      key = std::move(name);
    } else if (in_metadata) {
      metadata_key = std::move(name);
    } else {
      tensor_field(name);
    }
    return true;
  }
  void tensor_field(const std::string& name) {
    bool* seen = nullptr;
    if (name == "dtype") {
      field = Field::kDtype;
      seen = &has_dtype;
    } else if (name == "shape") {
      field = Field::kShape;
      seen = &has_shape;
    } else if (name == "data_offsets") {
      field = Field::kOffsets;
      seen = &has_offsets;
    } else {
      refuse("a field " + name, "dtype, shape and data_offsets");
    }
    if (*seen) refuse(name + " twice", "each field once");
    *seen = true;
  }

  bool on_string_part(Text s, std::size_t, Code&) {
    text.append(s.data(), s.size());
    return true;
  }
  bool on_string(Text s, std::size_t, Code&) {
    text.append(s.data(), s.size());
    std::string value = std::exchange(text, {});
    if (depth == 2 && in_metadata) {
      header.metadata.emplace_back(metadata_key, std::move(value));
      return true;
    }
    if (depth != 2 || field != Field::kDtype) unexpected("a string");
    const std::optional<DType> dtype = dtype_from_name(value);
    if (!dtype) refuse("dtype " + value, "one of F32, F16, BF16, F8_E4M3, I8, U8, I32, I64");
    entry.dtype = *dtype;
    field = Field::kNone;
    return true;
  }

  bool number(std::uint64_t v) {
    if (!in_array) unexpected("a number");
    if (field == Field::kShape) {
      if (entry.shape.rank() == Shape::kMaxRank) refuse("more than 4 dimensions", "at most 4");
      if (v > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
        refuse("dimension " + std::to_string(v), "a size below 2^63");
      entry.shape.push_back(static_cast<std::int64_t>(v));
    } else {
      if (n_offsets == 0) entry.begin = v;
      if (n_offsets == 1) entry.end = v;
      ++n_offsets;
    }
    return true;
  }
  bool on_int64(std::int64_t v, Text, Code&) {
    if (v < 0) unexpected("a negative number");
    return number(static_cast<std::uint64_t>(v));
  }
  bool on_uint64(std::uint64_t v, Text, Code&) { return number(v); }
  bool on_double(double, Text, Code&) { unexpected("a number that is no 64-bit integer"); }
  bool on_number_part(Text, Code&) { return true; }
  bool on_bool(bool, Code&) { unexpected("a boolean"); }
  bool on_null(Code&) { unexpected("null"); }
  bool on_comment_part(Text, Code&) { return true; }
  bool on_comment(Text, Code&) { return true; }
};

// The bytes of an entry by its shape, or nothing when that overflows.
std::optional<std::uint64_t> shape_bytes(const SafetensorsEntry& t) {
  std::uint64_t n = dtype_bytes(t.dtype);
  for (int i = 0; i < t.shape.rank(); ++i) {
    if (__builtin_mul_overflow(n, static_cast<std::uint64_t>(t.shape[i]), &n)) return std::nullopt;
  }
  return n;
}

std::string range(const SafetensorsEntry& t) {
  return "bytes " + std::to_string(t.begin) + ".." + std::to_string(t.end);
}

// Each tensor by itself: its range lies in the data and has the size of its shape.
void check_entry(const SafetensorsEntry& t, std::uint64_t data_begin, std::uint64_t data_bytes,
                 const std::string& what) {
  if (t.begin > t.end) throw Error({.what = what, .found = range(t), .expected = "begin ≤ end"});
  if (t.end > data_bytes) {
    throw Error({.what = what,
                 .found = range(t) + " of " + std::to_string(data_bytes) + " bytes of data",
                 .expected = "a range inside the file",
                 .hint = "the file is truncated or its header is wrong; download it again"});
  }
  const std::optional<std::uint64_t> bytes = shape_bytes(t);
  const std::string described = std::string(dtype_name(t.dtype)) + " " + t.shape.to_string();
  if (!bytes) throw Error({.what = what, .found = described, .expected = "a size below 2^64 bytes"});
  if (*bytes != t.end - t.begin) {
    throw Error({.what = what,
                 .found = std::to_string(t.end - t.begin) + " bytes",
                 .expected = std::to_string(*bytes) + " bytes for " + described});
  }
  if ((data_begin + t.begin) % dtype_bytes(t.dtype) != 0) {
    throw Error({.what = what,
                 .found = "data at byte " + std::to_string(data_begin + t.begin),
                 .expected = "a multiple of " + std::to_string(dtype_bytes(t.dtype)) + " for " + described,
                 .hint = "misaligned; save the file again with a current safetensors"});
  }
}

// All tensors together: sorted, they cover the data exactly. Makes begin and end absolute.
void check_layout(SafetensorsHeader& header, std::uint64_t data_begin, std::uint64_t data_bytes,
                  std::string_view source) {
  const std::string file(source);
  for (const SafetensorsEntry& t : header.tensors) check_entry(t, data_begin, data_bytes, file + ": tensor " + t.name);
  std::stable_sort(header.tensors.begin(), header.tensors.end(),
                   [](const auto& a, const auto& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  std::uint64_t covered = 0;
  const SafetensorsEntry* previous = nullptr;
  for (const SafetensorsEntry& t : header.tensors) {
    if (t.begin < covered) {
      throw Error({.what = file + ": tensor " + t.name,
                   .found = range(t) + " over " + previous->name + " with " + range(*previous),
                   .expected = "tensors that do not overlap"});
    }
    if (t.begin > covered) {
      throw Error({.what = file + ": tensor " + t.name,
                   .found = std::to_string(t.begin - covered) + " unused bytes before its data",
                   .expected = "no gap"});
    }
    covered = t.end;
    previous = &t;
  }
  if (covered != data_bytes) {
    throw Error({.what = file,
                 .found = std::to_string(data_bytes - covered) + " bytes after the last tensor",
                 .expected = "a file of " + std::to_string(data_begin + covered) + " bytes"});
  }
  for (SafetensorsEntry& t : header.tensors) {
    t.begin += data_begin;
    t.end += data_begin;
  }
}

}  // namespace

SafetensorsHeader parse_safetensors(std::span<const std::byte> file, std::string_view source) {
  static_assert(std::endian::native == std::endian::little, "tensor data is mapped as it lies in the file");
  constexpr std::uint64_t kPrefix = 8;
  const std::string name(source);
  if (file.size() < kPrefix) {
    throw Error({.what = name,
                 .found = std::to_string(file.size()) + " bytes",
                 .expected = "a safetensors file, which begins with 8 bytes of header length"});
  }
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), kPrefix);
  if (length > kMaxSafetensorsHeader) {
    throw Error({.what = name,
                 .found = "a header of " + std::to_string(length) + " bytes",
                 .expected = "at most " + std::to_string(kMaxSafetensorsHeader),
                 .hint = "not a safetensors file?"});
  }
  if (length > file.size() - kPrefix) {
    throw Error({.what = name,
                 .found = "a header of " + std::to_string(length) + " bytes in a file of " +
                          std::to_string(file.size()) + " bytes",
                 .expected = "a complete header",
                 .hint = "the file is truncated; download it again"});
  }
  const char* text = reinterpret_cast<const char*>(file.data() + kPrefix);
  bj::parse_options options;
  options.max_depth = 8;
  bj::basic_parser<HeaderHandler> parser(options, source);
  bj::error_code ec;
  const std::size_t used = parser.write_some(false, text, length, ec);
  const std::string_view rest(text + used, length - used);
  if (!ec && rest.find_first_not_of(" \t\r\n") != std::string_view::npos) ec = bj::error::extra_data;
  if (ec) {
    throw Error({.what = name,
                 .found = ec.message() + " at byte " + std::to_string(used) + " of the header",
                 .expected = "a JSON header"});
  }
  SafetensorsHeader header = std::move(parser.handler().header);
  check_layout(header, kPrefix + length, file.size() - kPrefix - length, source);
  return header;
}

}  // namespace glint
