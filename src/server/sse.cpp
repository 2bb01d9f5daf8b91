#include "server/sse.hpp"

#include <random>

#include "base/json_value.hpp"

namespace glint::server {

void append_data(std::string& out, std::string_view json) { out.append("data: ").append(json).append("\n\n"); }

void append_event(std::string& out, std::string_view name, std::string_view json) {
  out.append("event: ").append(name).append("\ndata: ").append(json).append("\n\n");
}

void append_comment(std::string& out, std::string_view text) { out.append(": ").append(text).append("\n\n"); }

std::string quoted(std::string_view text) {
  std::string out = "\"";
  append_json_escaped(text, out);
  out += '"';
  return out;
}

std::string random_id(std::string_view prefix) {
  static constexpr std::string_view kLetters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  thread_local std::mt19937_64 random{std::random_device{}()};
  std::uniform_int_distribution<std::size_t> letter(0, kLetters.size() - 1);
  std::string id(prefix);
  for (int i = 0; i < 24; ++i) id += kLetters[letter(random)];
  return id;
}

}  // namespace glint::server
