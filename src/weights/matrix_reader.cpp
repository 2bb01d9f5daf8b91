#include "weights/matrix_reader.hpp"

#include <algorithm>

#include "weights/format_parts.hpp"

namespace glint {
namespace {

// In order of trial: the particular before the general, plain matrices last.
std::vector<MatrixScheme> collect() {
  std::vector<MatrixScheme> all;
  for (const auto schemes : {fp8_schemes(), fp4_schemes(), integer_schemes(), awq_schemes(), gptq_schemes(),
                             bitsandbytes_schemes(), plain_schemes()}) {
    all.insert(all.end(), schemes.begin(), schemes.end());
  }
  return all;
}

// Every suffix, longest first: ".weight_scale" must not be taken for "_scale".
const std::vector<std::string_view>& all_suffixes() {
  static const std::vector<std::string_view> list = [] {
    std::vector<std::string_view> out(std::begin(kActivationSuffixes), std::end(kActivationSuffixes));
    for (const MatrixScheme& s : matrix_schemes()) out.insert(out.end(), s.suffixes.begin(), s.suffixes.end());
    std::sort(out.begin(), out.end(), [](std::string_view a, std::string_view b) {
      return a.size() != b.size() ? a.size() > b.size() : a < b;
    });
    out.erase(std::unique(out.begin(), out.end()), out.end());
    return out;
  }();
  return list;
}

}  // namespace

std::span<const MatrixScheme> matrix_schemes() {
  static const std::vector<MatrixScheme> all = collect();
  return all;
}

const MatrixScheme* find_scheme(const Checkpoint& checkpoint, const std::string& base) {
  for (const MatrixScheme& s : matrix_schemes()) {
    if (s.matches(checkpoint, base)) return &s;
  }
  return nullptr;
}

bool has_matrix(const Checkpoint& checkpoint, const std::string& base) {
  return std::any_of(all_suffixes().begin(), all_suffixes().end(),
                     [&](std::string_view suffix) { return find_part(checkpoint, base, suffix) != nullptr; });
}

StoredMatrix read_matrix(const Checkpoint& checkpoint, const std::string& base, std::int64_t rows, std::int64_t cols,
                         const QuantConfig& config) {
  CHECK(rows > 0 && cols > 0);
  if (const MatrixScheme* s = find_scheme(checkpoint, base)) return s->read(checkpoint, base, rows, cols, config);
  std::string found;
  for (const std::string_view suffix : all_suffixes()) {
    if (find_part(checkpoint, base, suffix) != nullptr) found += (found.empty() ? "only " : ", ") + std::string(suffix);
  }
  const std::string shape = "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
  if (found.empty()) {
    throw Error({.what = checkpoint.dir() + ": tensor " + base + ".weight",
                 .found = "no such tensor",
                 .expected = "BF16 " + shape + " or a quantised form of it"});
  }
  throw Error({.what = checkpoint.dir() + ": matrix " + base,
               .found = found,
               .expected = "the codes of a " + shape + " matrix too: weight, weight_packed or qweight",
               .hint = config.method.empty() ? "" : "quant_method is " + config.method});
}

std::string matrix_base(std::string_view tensor_name) {
  for (const std::string_view suffix : all_suffixes()) {
    if (tensor_name.ends_with(suffix)) return std::string(tensor_name.substr(0, tensor_name.size() - suffix.size()));
  }
  return std::string(tensor_name);
}

}  // namespace glint
