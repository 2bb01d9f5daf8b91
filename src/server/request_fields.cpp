#include "server/request_fields.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>

namespace glint::server {
namespace {

using Kind = JsonValue::Kind;

constexpr std::size_t kMaxStops = 64;
constexpr std::size_t kMaxStopBytes = 4096;
constexpr std::size_t kMaxToolName = 256;  // of the parser, which must tell a name from text

void read_logit_bias(const Fields& body, SamplingParams& p) {
  const JsonValue* bias = body.object("logit_bias");
  if (bias == nullptr) return;
  p.logit_bias.clear();
  for (std::size_t i = 0; i < bias->items.size(); ++i) {
    const std::string& key = bias->keys[i];
    std::int32_t id = 0;
    const auto r = std::from_chars(key.data(), key.data() + key.size(), id);
    if (r.ec != std::errc() || r.ptr != key.data() + key.size() || id < 0) {
      throw bad_field("logit_bias", '"' + key.substr(0, 40) + '"', "token ids as keys");
    }
    const double value = bias->items[i].is(Kind::kNumber) ? bias->items[i].as_double() : 1e9;
    if (!(value >= -100 && value <= 100)) {
      throw bad_field("logit_bias." + key, shown(bias->items[i]), "a number from -100 to 100");
    }
    p.logit_bias.emplace_back(id, static_cast<float>(value));
  }
}

}  // namespace

SamplingParams read_sampling(const Fields& body, const SamplingParams& defaults) {
  SamplingParams p = defaults;
  const auto read = [&body](std::string_view name, double least, double most, float& out) {
    if (const auto v = body.number(name, least, most)) out = static_cast<float>(*v);
  };
  read("temperature", 0, 2, p.temperature);
  read("top_p", 0, 1, p.top_p);
  if (p.top_p <= 0) body.fail("top_p", "a number above 0, at most 1");
  read("min_p", 0, 1, p.min_p);
  if (p.min_p >= 1) body.fail("min_p", "a number from 0, less than 1");
  read("presence_penalty", -2, 2, p.presence_penalty);
  read("frequency_penalty", -2, 2, p.frequency_penalty);
  read("repetition_penalty", 0, 10, p.repetition_penalty);
  if (p.repetition_penalty <= 0) body.fail("repetition_penalty", "a number above 0, at most 10");
  if (const auto k = body.integer("top_k", -1, std::numeric_limits<int>::max())) {
    p.top_k = std::max(0, static_cast<int>(*k));  // -1 is another way to say off
  }
  constexpr auto kLeast = std::numeric_limits<std::int64_t>::min();
  constexpr auto kMost = std::numeric_limits<std::int64_t>::max();
  if (const auto seed = body.integer("seed", kLeast, kMost)) p.seed = static_cast<std::uint64_t>(*seed);
  read_logit_bias(body, p);
  return p;
}

std::vector<std::string> read_stop(const Fields& body, std::string_view name) {
  const JsonValue* v = body.get(name);
  if (v == nullptr) return {};
  std::vector<std::string> stops;
  const auto add = [&](const JsonValue& stop, const std::string& where) {
    if (!stop.is(Kind::kString)) throw bad_field(where, shown(stop), "a text");
    if (stop.text.empty()) throw bad_field(where, "an empty text", "a text");
    if (stop.text.size() > kMaxStopBytes) throw bad_field(where, "a longer one", "a text of at most 4096 bytes");
    stops.push_back(stop.text);
  };
  if (v->is(Kind::kString)) {
    if (!v->text.empty()) add(*v, body.at(name));  // some clients send "" for none
    return stops;
  }
  if (!v->is(Kind::kArray)) body.fail(name, "a text or an array of texts");
  if (v->items.size() > kMaxStops) body.fail(name, fmt::format("at most {} texts", kMaxStops));
  for (std::size_t i = 0; i < v->items.size(); ++i) add(v->items[i], fmt::format("{}[{}]", body.at(name), i));
  return stops;
}

void read_schedule(const Fields& body, Request& request) {
  constexpr double kMostSeconds = 24 * 60 * 60;
  constexpr std::int64_t kLeast = std::numeric_limits<int>::min();
  constexpr std::int64_t kMost = std::numeric_limits<int>::max();
  request.priority = static_cast<int>(body.integer("priority", kLeast, kMost).value_or(0));
  request.timeout_s = body.number("timeout", 1, kMostSeconds).value_or(0);
}

void check_model(const Fields& body) { body.text("model"); }

void check_fits(std::size_t prompt_tokens, const Engine& engine, const std::string& param) {
  const std::int64_t context = engine.info().max_context;
  if (static_cast<std::int64_t>(prompt_tokens) < context) return;
  throw ApiError({.message = fmt::format("{}: the prompt has {} tokens, and the context holds {} with the answer",
                                         param, prompt_tokens, context),
                  .param = param,
                  .code = "context_length_exceeded"});
}

void append_choices(const Request& request, std::size_t n, std::vector<Request>& out) {
  for (std::size_t i = 0; i < n; ++i) {
    out.push_back(request);
    if (request.sampling.seed) out.back().sampling.seed = *request.sampling.seed + i;
  }
}

bool valid_tool_name(std::string_view name) {
  return !name.empty() && name.size() <= kMaxToolName && std::all_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) > ' ' && c != '<' && c != '>' && c != '{' && c != '}' && c != 0x7f;
  });
}

std::string read_tool_name(const Fields& tool, std::vector<std::string>& names) {
  std::string name = tool.required_text("name");
  if (!valid_tool_name(name)) tool.fail("name", "at most 256 characters without spaces, braces and <>");
  if (std::find(names.begin(), names.end(), name) != names.end()) {
    throw bad_field(tool.at("name"), '"' + name + "\" again", "names that differ");
  }
  names.push_back(name);
  return name;
}

}  // namespace glint::server
