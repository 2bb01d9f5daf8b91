#include "load_report.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/json.hpp"

namespace glint::apps {
namespace {

double at_share(const std::vector<double>& sorted, double share) {
  const auto rank = static_cast<std::size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::clamp<std::size_t>(rank, 1, sorted.size()) - 1];
}

std::string level_name(double clients, double rate) {
  return clients > 0 ? fmt::format("{:.0f} clients", clients) : fmt::format("{:g} a second", rate);
}

json::object json_of(const Percentiles& p) { return {{"p50", p.p50}, {"p90", p.p90}, {"p99", p.p99}, {"max", p.max}}; }

std::vector<double> first_tokens(const LoadLevel& level) {
  std::vector<double> v;
  for (const LoadAnswer& a : level.answers) {
    if (a.ok() && a.first_s > 0) v.push_back(a.first_token_s());
  }
  return v;
}

std::vector<double> gaps(const LoadLevel& level) {
  std::vector<double> v;
  for (const LoadAnswer& a : level.answers) {
    if (a.ok()) v.insert(v.end(), a.gaps_s.begin(), a.gaps_s.end());
  }
  return v;
}

// ---- the plot ---------------------------------------------------------------------------------------------------

constexpr std::array kColours{"#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b"};
constexpr double kWidth = 420, kHeight = 280, kLeft = 60, kTop = 40;

// A step that gives 4 to 8 marks up to `top`: 1, 2 or 5 times a power of ten.
double mark_step(double top) {
  const double rough = top / 5, power = std::pow(10, std::floor(std::log10(rough)));
  for (const double m : {1.0, 2.0, 5.0}) {
    if (rough <= m * power) return m * power;
  }
  return 10 * power;
}

void panel(const std::vector<LoadLevel>& levels, std::vector<double> (*values)(const LoadLevel&), double x0,
           const std::string& title, std::string& out) {
  std::vector<std::vector<double>> curves;
  double top = 0;
  for (const LoadLevel& level : levels) {
    curves.push_back(values(level));
    std::sort(curves.back().begin(), curves.back().end());
    if (!curves.back().empty()) top = std::max(top, at_share(curves.back(), 0.999) * 1e3);
  }
  if (top <= 0) top = 1;
  const auto x = [x0](double share) { return x0 + kLeft + share * kWidth; };
  const auto y = [top](double ms) { return kTop + kHeight * (1 - std::min(ms / top, 1.0)); };
  out += fmt::format("<text x=\"{:.0f}\" y=\"22\" font-weight=\"bold\">{}</text>\n", x(0), title);
  const double step = mark_step(top);
  for (double ms = 0; ms <= top * 1.0001; ms += step) {
    out += fmt::format(
        "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#ddd\"/>"
        "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{:g}</text>\n",
        x(0), y(ms), x(1), y(ms), x(0) - 6, y(ms) + 4, ms);
  }
  for (const double share : {0.0, 0.5, 0.9, 0.99}) {
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{:.0f} %</text>\n", x(share),
                       kTop + kHeight + 18, share * 100);
  }
  for (std::size_t i = 0; i < curves.size(); ++i) {
    if (curves[i].empty()) continue;
    std::string points;
    for (int p = 0; p <= 200; ++p) {
      const double share = p / 200.0;
      points += fmt::format("{:.1f},{:.1f} ", x(share), y(at_share(curves[i], share) * 1e3));
    }
    out += fmt::format("<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"2\" points=\"{}\"/>\n",
                       kColours[i % kColours.size()], points);
  }
}

}  // namespace

Percentiles percentiles(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  return {at_share(values, 0.5), at_share(values, 0.9), at_share(values, 0.99), values.back()};
}

LoadSummary summarise(const LoadLevel& level, const LoadGoal& goal) {
  LoadSummary s{.clients = level.clients, .rate = level.rate, .seconds = level.seconds};
  std::vector<double> token_s;
  for (const LoadAnswer& a : level.answers) {
    ++s.answers;
    if (!a.ok()) {
      if (s.errors++ == 0) s.first_error = a.error;
      continue;
    }
    s.prompt_tokens += a.prompt_tokens;
    s.cached_tokens += a.cached_tokens;
    s.completion_tokens += a.completion_tokens;
    if (a.completion_tokens > 1) token_s.push_back(a.seconds_a_token());
    if (a.first_s > 0 && a.first_token_s() <= goal.first_token_s && a.seconds_a_token() <= goal.token_s) ++s.good;
  }
  s.first_token_s = percentiles(first_tokens(level));
  s.gap_s = percentiles(gaps(level));
  s.token_s = percentiles(std::move(token_s));
  return s;
}

std::string load_table_head() {
  return fmt::format("{:>14} {:>8} {:>6} {:>9} {:>9} {:>9} {:>26} {:>26} {:>7}", "load", "answers", "errors",
                     "answers/s", "good/s", "tokens/s", "first token p50/90/99 ms", "gap p50/90/99 ms", "cached");
}

std::string load_table_row(const LoadSummary& s) {
  const auto three = [](const Percentiles& p) {
    return fmt::format("{:.1f} / {:.1f} / {:.1f}", p.p50 * 1e3, p.p90 * 1e3, p.p99 * 1e3);
  };
  const double cached =
      s.prompt_tokens > 0 ? static_cast<double>(s.cached_tokens) / static_cast<double>(s.prompt_tokens) : 0;
  return fmt::format("{:>14} {:>8} {:>6} {:>9.2f} {:>9.2f} {:>9.1f} {:>26} {:>26} {:>5.1f} %",
                     level_name(s.clients, s.rate), s.answers, s.errors, s.answers_per_s(), s.good_per_s(),
                     s.tokens_per_s(), three(s.first_token_s), three(s.gap_s), cached * 100);
}

std::string load_json(const std::vector<LoadSummary>& levels, const LoadGoal& goal) {
  json::array rows;
  for (const LoadSummary& s : levels) {
    json::object row;
    if (s.clients > 0) row["clients"] = static_cast<std::int64_t>(s.clients);
    if (s.rate > 0) row["rate"] = s.rate;
    row["seconds"] = s.seconds;
    row["answers"] = s.answers;
    row["errors"] = s.errors;
    row["answers_per_s"] = s.answers_per_s();
    row["good_per_s"] = s.good_per_s();
    row["tokens_per_s"] = s.tokens_per_s();
    row["prompt_tokens"] = s.prompt_tokens;
    row["cached_tokens"] = s.cached_tokens;
    row["completion_tokens"] = s.completion_tokens;
    row["first_token_s"] = json_of(s.first_token_s);
    row["gap_s"] = json_of(s.gap_s);
    row["seconds_a_token"] = json_of(s.token_s);
    if (!s.first_error.empty()) row["first_error"] = s.first_error;
    rows.push_back(std::move(row));
  }
  const json::object out{
      {"goal", json::object{{"first_token_s", goal.first_token_s}, {"seconds_a_token", goal.token_s}}},
      {"levels", std::move(rows)}};
  return json::dump_python(out);
}

std::string load_csv(const std::vector<LoadLevel>& levels) {
  std::string out =
      "clients,rate,start_s,first_token_s,seconds,max_gap_s,prompt_tokens,cached_tokens,completion_tokens,status,ok\n";
  for (const LoadLevel& level : levels) {
    const double origin = level.answers.empty() ? 0 : level.answers.front().start_s;
    for (const LoadAnswer& a : level.answers) {
      const double longest = a.gaps_s.empty() ? 0 : *std::max_element(a.gaps_s.begin(), a.gaps_s.end());
      out += fmt::format("{:.0f},{:g},{:.4f},{:.4f},{:.4f},{:.4f},{},{},{},{},{}\n", level.clients, level.rate,
                         a.start_s - origin, a.first_s > 0 ? a.first_token_s() : 0, a.end_s - a.start_s, longest,
                         a.prompt_tokens, a.cached_tokens, a.completion_tokens, a.status, a.ok() ? 1 : 0);
    }
  }
  return out;
}

std::string load_plot(const std::vector<LoadLevel>& levels) {
  const double width = 2 * (kWidth + kLeft) + 40;
  const double height = kTop + kHeight + 44 + 18 * static_cast<double>(levels.size());
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} {1:.0f}\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      width, height);
  panel(levels, first_tokens, 0, "Time to the first token, ms, by the share of answers", out);
  panel(levels, gaps, kWidth + kLeft + 20, "Gap between pieces, ms, by the share of gaps", out);
  for (std::size_t i = 0; i < levels.size(); ++i) {
    const double y = kTop + kHeight + 44 + 18 * static_cast<double>(i);
    out += fmt::format(
        "<rect x=\"{:.0f}\" y=\"{:.0f}\" width=\"18\" height=\"4\" fill=\"{}\"/><text x=\"{:.0f}\" y=\"{:.0f}\">{}"
        "</text>\n",
        kLeft, y - 6, kColours[i % kColours.size()], kLeft + 26, y, level_name(levels[i].clients, levels[i].rate));
  }
  return out + "</svg>\n";
}

}  // namespace glint::apps
