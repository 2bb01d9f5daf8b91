#pragma once
// The rows of `glint eval all`: which formats are measured, what is kept of a measurement, and which bar it must meet.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "eval.hpp"
#include "models/glm_4_7_flash/quantize.hpp"

namespace glint::apps {

// What a row must meet to be called good. The figures stand in bar_text().
enum class Bar : std::uint8_t { kNone, kWide, kWeights8, kWeights4, kCache8, kCache4 };

struct RowSpec {
  std::string name;  // "int4-g64 gptq", "q4", "cache fp8"
  Bar bar = Bar::kNone;
  std::string kv = "f32";
  std::string preset;  // empty: the model as it is
  std::string rules;   // over the preset, KEY=SPEC with commas
  QuantMethod method = QuantMethod::kRtn;
  std::string rival;  // the row of plain rounding at the same size, which this one must beat

  bool is_cache() const { return preset.empty(); }
  bool is_preset() const { return !preset.empty() && preset != "bf16"; }
  QuantRecipe recipe() const;
};

// All rows in the order of the tables. The first is the model as it is.
std::vector<RowSpec> all_rows();

// What was measured over windows of one length.
struct WindowResult {
  std::int64_t window = 0;
  KlResult kl;
};

struct RowResult {
  std::uint64_t file_bytes = 0;  // safetensors files of the measured model
  double bits = 0;               // a weight of the real model; cache rows: a number of the cache
  double real_bytes = 0;         // the real model's weights, or its cache a token
  double active_bytes = 0;       // weights that a decoded token of the real model reads
  std::vector<WindowResult> windows;
  std::vector<Outcome> tasks;
  std::vector<Outcome> toolcalls;
  LoopResult loops;
  double cpu_seconds = 0;
};
using Results = std::map<std::string, RowResult>;

// JSON text of one row, and back. Throws Error naming `source` when fields are missing.
std::string row_json(const RowResult& r);
RowResult parse_row(std::string_view text, std::string_view source);

struct Verdict {
  bool judged = false;  // false: no bar for this row, or what it is compared with is not there
  bool good = false;
  std::string why;  // of a bar that is missed
};
Verdict judge(const RowSpec& spec, const Results& results);
std::string bar_text(Bar bar);

// Right answers, and answers that are the reference's token for token.
struct Tally {
  std::int64_t right = 0;
  std::int64_t same = 0;
  std::int64_t total = 0;
  std::int64_t lost = 0;  // right in the reference, wrong here
  std::int64_t won = 0;   // the other way
};
Tally tally(const std::vector<Outcome>& tested, const std::vector<Outcome>& reference);

// The report of `results`: rows that are not there are left out.
struct ReportInfo {
  std::string command;  // that makes it again
  std::string backend;
  std::string date;
  std::int64_t max_tokens = 0;
  std::int64_t calibration_tokens = 0;
  std::string plot;  // name of the SVG file
};
std::string report_markdown(const std::vector<RowSpec>& rows, const Results& results, const ReportInfo& info);
std::string report_svg(const std::vector<RowSpec>& rows, const Results& results);

}  // namespace glint::apps
