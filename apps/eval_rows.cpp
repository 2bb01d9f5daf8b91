#include "eval_rows.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "base/error.hpp"
#include "base/json.hpp"

namespace glint::apps {
namespace {

// One format in every matrix that may have four bits; the rest at eight, as in every preset.
std::string uniform(const std::string& format) {
  std::string rules;
  for (const char* role : {"attention", "dense_mlp", "experts", "shared"})
    rules += std::string(role) + "=" + format + ",";
  return rules;
}

constexpr const char* kRest8 = "embed=int8,head=int8,kv_b=int8,eh_proj=int8,mtp=int8";

void add_pair(std::vector<RowSpec>& rows, const std::string& name, Bar bar, const std::string& preset,
              const std::string& rules, QuantMethod method = QuantMethod::kGptq) {
  const std::string plain = name + " rtn";
  rows.push_back({.name = plain, .preset = preset, .rules = rules, .method = QuantMethod::kRtn});
  rows.push_back({.name = name + (method == QuantMethod::kGptq ? " gptq" : " mse"),
                  .bar = bar,
                  .preset = preset,
                  .rules = rules,
                  .method = method,
                  .rival = plain});
}

double number(const json::object& o, std::string_view key, std::string_view source) {
  const json::value* v = o.if_contains(key);
  if (v == nullptr || !v->is_number()) {
    throw Error({.what = std::string(source) + ": field " + std::string(key),
                 .found = v == nullptr ? "nothing" : json::serialize(*v),
                 .expected = "a number"});
  }
  return v->to_number<double>();
}

const json::array& list(const json::object& o, std::string_view key, std::string_view source) {
  const json::value* v = o.if_contains(key);
  if (v == nullptr || !v->is_array())
    throw Error({.what = std::string(source) + ": field " + std::string(key), .expected = "a list"});
  return v->get_array();
}

json::array outcomes_json(const std::vector<Outcome>& outcomes) {
  json::array a;
  for (const Outcome& o : outcomes)
    a.push_back(json::array{json::value(o.task), o.right, fmt::format("{:016x}", o.answer)});
  return a;
}

std::vector<Outcome> parse_outcomes(const json::array& a, std::string_view source) {
  std::vector<Outcome> out;
  for (const json::value& v : a) {
    const json::array* o = v.if_array();
    if (o == nullptr || o->size() != 3 || !(*o)[0].is_string() || !(*o)[1].is_bool() || !(*o)[2].is_string())
      throw Error({.what = std::string(source), .found = json::serialize(v), .expected = "[task, right, hash]"});
    out.push_back({.task = std::string((*o)[0].get_string()),
                   .right = (*o)[1].get_bool(),
                   .answer = std::strtoull((*o)[2].get_string().c_str(), nullptr, 16)});
  }
  return out;
}

}  // namespace

QuantRecipe RowSpec::recipe() const {
  QuantRecipe recipe = QuantRecipe::preset(preset.empty() ? "bf16" : preset);
  for (std::string_view rest = rules; !rest.empty();) {
    const std::size_t comma = std::min(rest.find(','), rest.size());
    if (comma > 0) recipe.set(rest.substr(0, comma));
    rest.remove_prefix(std::min(rest.size(), comma + 1));
  }
  return recipe;
}

std::vector<RowSpec> all_rows() {
  std::vector<RowSpec> rows;
  rows.push_back({.name = "bf16"});
  rows.push_back({.name = "int8",
                  .bar = Bar::kWeights8,
                  .preset = "bf16",
                  .rules = uniform("int8") + kRest8,
                  .method = QuantMethod::kRtn});
  rows.push_back({.name = "fp8 rtn",
                  .bar = Bar::kWeights8,
                  .preset = "bf16",
                  .rules = uniform("fp8") + "embed=fp8,head=fp8,eh_proj=fp8"});
  rows.push_back({.name = "fp8-128x128 rtn",
                  .bar = Bar::kWeights8,
                  .preset = "bf16",
                  .rules = uniform("fp8-128x128") + "embed=fp8,head=fp8,eh_proj=fp8"});
  for (const char* format : {"int4-g32", "int4-g64", "int4-g128", "int4-g32-asym", "int4-g64-asym", "int4-g128-asym"})
    add_pair(rows, format, Bar::kWeights4, "bf16", uniform(format) + kRest8);
  add_pair(rows, "nf4", Bar::kWeights4, "bf16", uniform("nf4") + "kv_b=bf16,mtp.experts=nf4");
  add_pair(rows, "preset q4", Bar::kWeights4, "q4", "");
  add_pair(rows, "preset nf4", Bar::kWeights4, "nf4", "");
  add_pair(rows, "preset fp8", Bar::kWeights8, "fp8", "");
  add_pair(rows, "preset q8", Bar::kWeights8, "q8", "", QuantMethod::kSearch);
  for (const auto& [kv, bar] : {std::pair{"int16", Bar::kWide},
                                {"f16", Bar::kWide},
                                {"bf16", Bar::kWide},
                                {"fp8", Bar::kCache8},
                                {"int8", Bar::kCache8},
                                {"int4", Bar::kCache4}}) {
    rows.push_back({.name = std::string("cache ") + kv, .bar = bar, .kv = kv});
  }
  return rows;
}

std::string row_json(const RowResult& r) {
  json::array windows;
  for (const WindowResult& w : r.windows) {
    windows.push_back(json::object{{"window", w.window},
                                   {"positions", w.kl.positions},
                                   {"reference_nll", w.kl.reference_nll},
                                   {"nll", w.kl.nll},
                                   {"kl_mean", w.kl.mean},
                                   {"kl_p99", w.kl.p99},
                                   {"kl_max", w.kl.max},
                                   {"top1_agreement", w.kl.top1_agreement}});
  }
  return json::serialize(json::object{{"file_bytes", r.file_bytes},
                                      {"bits", r.bits},
                                      {"real_bytes", r.real_bytes},
                                      {"active_bytes", r.active_bytes},
                                      {"windows", std::move(windows)},
                                      {"tasks", outcomes_json(r.tasks)},
                                      {"toolcalls", outcomes_json(r.toolcalls)},
                                      {"answers", r.loops.answers},
                                      {"looping", r.loops.looping},
                                      {"cpu_seconds", r.cpu_seconds}});
}

RowResult parse_row(std::string_view text, std::string_view source) {
  const json::value v = json::parse_text(text, source);
  if (!v.is_object()) throw Error({.what = std::string(source), .expected = "an object"});
  const json::object& o = v.get_object();
  const auto whole = [&](const json::object& from, std::string_view key) {
    return static_cast<std::int64_t>(number(from, key, source));
  };
  RowResult r{.file_bytes = static_cast<std::uint64_t>(whole(o, "file_bytes")),
              .bits = number(o, "bits", source),
              .real_bytes = number(o, "real_bytes", source),
              .active_bytes = number(o, "active_bytes", source),
              .tasks = parse_outcomes(list(o, "tasks", source), source),
              .toolcalls = parse_outcomes(list(o, "toolcalls", source), source),
              .loops = {.answers = whole(o, "answers"), .looping = whole(o, "looping")},
              .cpu_seconds = number(o, "cpu_seconds", source)};
  for (const json::value& w : list(o, "windows", source)) {
    if (!w.is_object()) throw Error({.what = std::string(source) + ": windows", .expected = "objects"});
    const json::object& from = w.get_object();
    r.windows.push_back({.window = whole(from, "window"),
                         .kl = {.positions = whole(from, "positions"),
                                .reference_nll = number(from, "reference_nll", source),
                                .nll = number(from, "nll", source),
                                .mean = number(from, "kl_mean", source),
                                .p99 = number(from, "kl_p99", source),
                                .max = number(from, "kl_max", source),
                                .top1_agreement = number(from, "top1_agreement", source)}});
  }
  return r;
}

Tally tally(const std::vector<Outcome>& tested, const std::vector<Outcome>& reference) {
  Tally t{.total = static_cast<std::int64_t>(tested.size())};
  for (std::size_t i = 0; i < tested.size(); ++i) {
    t.right += tested[i].right ? 1 : 0;
    if (i >= reference.size()) continue;
    t.same += tested[i].answer == reference[i].answer ? 1 : 0;
    t.lost += reference[i].right && !tested[i].right ? 1 : 0;
    t.won += tested[i].right && !reference[i].right ? 1 : 0;
  }
  return t;
}

std::string bar_text(Bar bar) {
  switch (bar) {
    case Bar::kWide:
      return "16 bits: perplexity within 0.1 %, mean KL at most 1e-4";
    case Bar::kWeights8:
      return "8-bit weights: perplexity within 0.2 %, right answers unchanged within noise (lost - won ≤ 2 √(lost + "
             "won))";
    case Bar::kWeights4:
      return "4-bit weights: perplexity within 2 %, mean KL at most 0.02, nearer than plain rounding at the same size";
    case Bar::kCache8:
      return "8-bit cache: perplexity within 0.1 %";
    case Bar::kCache4:
      return "4-bit cache: perplexity within 1 %";
    case Bar::kNone:
      break;
  }
  return "";
}

Verdict judge(const RowSpec& spec, const Results& results) {
  const auto found = results.find(spec.name);
  if (spec.bar == Bar::kNone || found == results.end()) return {};
  const RowResult& r = found->second;
  Verdict v{.judged = true, .good = true};
  const auto require = [&](bool ok, const std::string& why) {
    if (ok) return;
    v.good = false;
    if (v.why.find(why) != v.why.npos) return;  // in another window
    v.why += (v.why.empty() ? "" : ", ") + why;
  };
  const auto limits = [&](double change, double kl) {
    for (const WindowResult& w : r.windows) {
      require(std::fabs(w.kl.change()) <= change, "perplexity");
      require(w.kl.mean <= kl, "KL");
    }
  };
  switch (spec.bar) {
    case Bar::kWide:
      limits(1e-3, 1e-4);
      break;
    case Bar::kWeights8:
      limits(2e-3, 1e9);
      break;
    case Bar::kWeights4:
      limits(2e-2, 2e-2);
      break;
    case Bar::kCache8:
      limits(1e-3, 1e9);
      break;
    case Bar::kCache4:
      limits(1e-2, 1e9);
      break;
    case Bar::kNone:
      break;
  }
  if (spec.bar == Bar::kWeights8) {
    const auto reference = results.find(all_rows().front().name);
    if (reference == results.end()) return {};
    Tally t = tally(r.tasks, reference->second.tasks);
    const Tally calls = tally(r.toolcalls, reference->second.toolcalls);
    t.lost += calls.lost;
    t.won += calls.won;
    require(static_cast<double>(t.lost - t.won) <= 2 * std::sqrt(static_cast<double>(t.lost + t.won)), "answers");
  }
  if (spec.bar == Bar::kWeights4 && !spec.rival.empty()) {
    const auto rival = results.find(spec.rival);
    if (rival == results.end()) return {};
    require(r.windows.front().kl.mean < rival->second.windows.front().kl.mean, "not nearer than plain rounding");
  }
  return v;
}

}  // namespace glint::apps
