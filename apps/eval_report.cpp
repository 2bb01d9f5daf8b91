// The tables and the plot of `glint eval all`.

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "calibration_text.hpp"
#include "eval_rows.hpp"
#include "models/glm_4_7_flash/quant_recipe.hpp"

namespace glint::apps {
namespace {

std::string percent(double share, int digits = 2) { return fmt::format("{:+.{}f} %", 100 * share, digits); }

std::string right_of(const Tally& t) { return t.total == 0 ? "–" : fmt::format("{} of {}", t.right, t.total); }

std::string verdict_text(const Verdict& v) {
  if (!v.judged) return "–";
  return v.good ? "meets" : "**misses**: " + v.why;
}

std::string kl_cells(const KlResult& k) {
  return fmt::format("{:.4f} | {} | {:.1e} | {:.1e} | {:.2f} %", std::exp(k.nll), percent(k.change()), k.mean, k.p99,
                     100 * k.top1_agreement);
}

const RowResult* find(const Results& results, const std::string& name) {
  const auto it = results.find(name);
  return it == results.end() ? nullptr : &it->second;
}

std::string answer_cells(const RowResult& r, const RowResult* reference) {
  static const RowResult kNothing;
  const RowResult& ref = reference != nullptr ? *reference : kNothing;
  const Tally tasks = tally(r.tasks, ref.tasks), calls = tally(r.toolcalls, ref.toolcalls);
  const std::int64_t total = tasks.total + calls.total;
  const std::string same =
      total == 0
          ? "–"
          : fmt::format("{:.0f} %", 100.0 * static_cast<double>(tasks.same + calls.same) / static_cast<double>(total));
  return fmt::format("{} | {} | {} | {} of {}", right_of(tasks), right_of(calls), same, r.loops.looping,
                     r.loops.answers);
}

constexpr const char* kAnswerHead = "tasks right | tool calls right | same answers | looping";

void weight_table(std::string& out, const std::vector<RowSpec>& rows, const Results& results) {
  out += fmt::format(
      "| weights | bits a weight | tiny file | real model | read a token | perplexity | change | mean KL | p99 KL | "
      "same "
      "first token | {} | bar |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
      kAnswerHead);
  const RowResult* reference = find(results, rows.front().name);
  for (const RowSpec& spec : rows) {
    const RowResult* r = find(results, spec.name);
    if (r == nullptr || (spec.is_cache() && spec.name != rows.front().name) || r->windows.empty()) continue;
    out +=
        fmt::format("| {} | {:.2f} | {:.1f} MB | {:.1f} GB | {:.2f} GB | {} | {} | {} |\n", spec.name, r->bits,
                    static_cast<double>(r->file_bytes) / 1e6, r->real_bytes / 1e9, r->active_bytes / 1e9,
                    kl_cells(r->windows.front().kl), answer_cells(*r, reference), verdict_text(judge(spec, results)));
  }
}

void cache_table(std::string& out, const std::vector<RowSpec>& rows, const Results& results) {
  out += fmt::format(
      "| cache | bits a number | bytes a token (real) | window | perplexity | change | mean KL | p99 KL | same first "
      "token | {} | bar |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
      kAnswerHead);
  const RowResult* reference = find(results, rows.front().name);
  for (const RowSpec& spec : rows) {
    const RowResult* r = find(results, spec.name);
    if (r == nullptr || !spec.is_cache() || spec.name == rows.front().name) continue;
    for (const WindowResult& w : r->windows) {
      const bool first = &w == &r->windows.front();
      out += fmt::format("| {} | {:.2f} | {:.0f} | {} | {} | {} | {} |\n", first ? spec.kv : "", r->bits, r->real_bytes,
                         w.window, kl_cells(w.kl), first ? answer_cells(*r, reference) : " | | | ",
                         first ? verdict_text(judge(spec, results)) : "");
    }
  }
}

struct Point {
  double bits, kl;
  std::string name;
  bool tuned;
};

std::string escape(const std::string& s) {
  std::string out;
  for (const char c : s) out += c == '&' ? std::string("&amp;") : c == '<' ? std::string("&lt;") : std::string(1, c);
  return out;
}

}  // namespace

std::string report_markdown(const std::vector<RowSpec>& rows, const Results& results, const ReportInfo& info) {
  const RowResult* reference = find(results, rows.front().name);
  double seconds = 0;
  for (const auto& [name, r] : results) seconds += r.cpu_seconds;
  std::string out = "# Quality of every format\n\n";
  out += fmt::format(
      "Made by one command, {} on {}, {:.0f} minutes of CPU time:\n\n```\n{}\n```\n\n"
      "Every row is compared with the bundled model in BF16 with an F32 cache, over at most {} tokens a window length\n"
      "of text that neither training nor calibration saw. *rtn* is plain rounding, *mse* searched scales, *gptq*\n"
      "error-compensated rounding calibrated on `models/calibration.txt` (the presets on {} tokens as `glint "
      "quantize`\n"
      "does, the other rows on {}); both of a pair take the same bytes. Bits a weight, the file and what a decoded "
      "token\n"
      "reads are those of the real model's shape, scales counted, where the column does not say tiny. *Same answers* "
      "are\n"
      "greedy answers equal to the reference's token for token; *looping* ones repeat 16 tokens three times.\n\n",
      info.date, info.backend, seconds / 60, info.command, info.max_tokens, kCalibrationTokens,
      info.calibration_tokens);
  out += "Bars:\n\n";
  for (const Bar b : {Bar::kWide, Bar::kWeights8, Bar::kWeights4, Bar::kCache8, Bar::kCache4})
    out += "- " + bar_text(b) + "\n";
  if (reference != nullptr && !reference->windows.empty())
    out += fmt::format("\n## Weights (windows of {}, F32 cache)\n\n", reference->windows.front().window);
  else out += "\n## Weights (F32 cache)\n\n";
  weight_table(out, rows, results);
  out +=
      "\n`int4-…`, `nf4`, `int8` and `fp8` have that format in every matrix of the layers but kv_b (8 bits or more); "
      "what a preset\nkeeps higher is in `docs/quantisation.md`.\n\n";
  out += fmt::format("![Mean KL by bits a weight]({})\n\n## Cache (BF16 weights)\n\n", info.plot);
  cache_table(out, rows, results);
  return out;
}

std::string report_svg(const std::vector<RowSpec>& rows, const Results& results) {
  std::vector<Point> points;
  for (const RowSpec& spec : rows) {
    const RowResult* r = find(results, spec.name);
    if (r == nullptr || spec.is_cache() || r->windows.empty() || !(r->windows.front().kl.mean > 0)) continue;
    points.push_back({r->bits, r->windows.front().kl.mean, spec.name, spec.method != QuantMethod::kRtn});
  }
  constexpr double kWidth = 860, kHeight = 520, kLeft = 70, kRight = 20, kTop = 30, kBottom = 50;
  double low = 4, high = 8.5, least = 1e-3, most = 1e-1;
  for (const Point& p : points) {
    low = std::min(low, std::floor(p.bits));
    high = std::max(high, p.bits + 0.5);
    least = std::min(least, std::pow(10, std::floor(std::log10(p.kl))));
    most = std::max(most, std::pow(10, std::ceil(std::log10(p.kl))));
  }
  const auto x = [&](double bits) { return kLeft + (bits - low) / (high - low) * (kWidth - kLeft - kRight); };
  const auto y = [&](double kl) {
    return kTop +
           (std::log10(most) - std::log10(kl)) / (std::log10(most) - std::log10(least)) * (kHeight - kTop - kBottom);
  };
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"white\"/>\n",
      kWidth, kHeight);
  for (double b = low; b <= high; b += 1) {
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{:.0f}</text>\n", x(b), kHeight - 30, b);
    out += fmt::format("<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1}\" y2=\"{2}\" stroke=\"#ddd\"/>\n", x(b), kTop,
                       kHeight - kBottom);
  }
  for (double k = least; k <= most * 1.001; k *= 10) {
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{:.0e}</text>\n", kLeft - 6, y(k) + 4, k);
    out += fmt::format("<line x1=\"{1}\" x2=\"{2}\" y1=\"{0:.1f}\" y2=\"{0:.1f}\" stroke=\"#ddd\"/>\n", y(k), kLeft,
                       kWidth - kRight);
  }
  out += fmt::format(
      "<line x1=\"{0}\" x2=\"{1}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\" stroke=\"#c33\" stroke-dasharray=\"6 4\"/>\n"
      "<text x=\"{3:.1f}\" y=\"{4:.1f}\" text-anchor=\"end\" fill=\"#c33\">bar of 4 bits: 0.02</text>\n",
      kLeft, kWidth - kRight, y(0.02), kWidth - kRight - 4, y(0.02) - 5);
  for (const Point& p : points) {
    out += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4\" fill=\"{}\"><title>{}</title></circle>\n",
                       x(p.bits), y(p.kl), p.tuned ? "#1a6" : "#888", escape(p.name));
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" font-size=\"10\" fill=\"{}\">{}</text>\n", x(p.bits) + 6,
                       y(p.kl) + 3, p.tuned ? "#1a6" : "#888", escape(p.name));
  }
  out += fmt::format(
      "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">bits a weight (real model)</text>\n"
      "<text x=\"{:.1f}\" y=\"18\">mean KL from BF16, nats a token (green: tuned, grey: plain "
      "rounding)</text>\n</svg>\n",
      (kLeft + kWidth - kRight) / 2, kHeight - 10, kLeft);
  return out;
}

}  // namespace glint::apps
