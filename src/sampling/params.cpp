#include "sampling/params.hpp"

#include <cmath>
#include <string>

#include <fmt/format.h>

#include "base/error.hpp"

namespace glint {
namespace {

void require(bool ok, const char* name, double found, const char* expected) {
  if (ok) return;
  throw Error(ErrorParts{.what = name, .found = fmt::format("{}", found), .expected = expected, .hint = {}});
}

}  // namespace

double min_p_nats(const SamplerParams& params) {
  return static_cast<double>(params.temperature) * std::log(static_cast<double>(params.min_p));
}

// Comparisons are written so that NaN fails them.
void validate(const SamplerParams& p, std::int64_t vocab) {
  require(p.temperature >= 0 && p.temperature <= 100, "temperature", p.temperature, "0 (greedy) to 100");
  require(p.top_p > 0 && p.top_p <= 1, "top_p", p.top_p, "more than 0, at most 1 (off)");
  require(p.top_k >= 0, "top_k", p.top_k, "0 (off) or more");
  require(p.min_p >= 0 && p.min_p < 1, "min_p", p.min_p, "0 (off) or more, less than 1");
  require(p.repetition_penalty > 0 && p.repetition_penalty <= 10, "repetition_penalty", p.repetition_penalty,
          "more than 0, at most 10; 1 is off");
  require(std::abs(p.presence_penalty) <= 2, "presence_penalty", p.presence_penalty, "-2 to 2");
  require(std::abs(p.frequency_penalty) <= 2, "frequency_penalty", p.frequency_penalty, "-2 to 2");
  require(p.logprobs >= -1 && p.logprobs <= kMaxTopLogprobs, "logprobs", p.logprobs, "-1 (none) to 20");
  for (const auto& [id, bias] : p.logit_bias) {
    if (id < 0 || id >= vocab) {
      throw Error(ErrorParts{.what = "logit_bias",
                             .found = fmt::format("token id {}", id),
                             .expected = fmt::format("0 to {}", vocab - 1),
                             .hint = {}});
    }
    const std::string name = fmt::format("logit_bias of token {}", id);
    require(std::abs(bias) <= 100, name.c_str(), bias, "-100 to 100");
  }
}

}  // namespace glint
