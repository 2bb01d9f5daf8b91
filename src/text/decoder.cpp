#include "text/decoder.hpp"

#include <utility>

#include "text/utf8.hpp"

namespace glint {
namespace {

constexpr std::string_view kReplacement = "\uFFFD";

// Appends the characters of `bytes` to `out` and returns the incomplete one at its end, if there is one.
std::string_view append_characters(std::string_view bytes, std::string& out) {
  std::size_t copied = 0, i = 0;  // bytes[copied, i) is well-formed and not yet in `out`
  while (i < bytes.size()) {
    const Utf8Step step = decode_utf8(bytes.substr(i));
    if (step.status == Utf8Status::kTruncated) break;
    if (step.status == Utf8Status::kInvalid) {
      out += bytes.substr(copied, i - copied);
      out += kReplacement;
      copied = i + step.length;
    }
    i += step.length;
  }
  out += bytes.substr(copied, i - copied);
  return bytes.substr(i);
}

}  // namespace

std::string Utf8Stream::push(std::string_view bytes) {
  std::string out;
  if (held_.empty()) {
    held_ = append_characters(bytes, out);
  } else {
    const std::string joined = std::exchange(held_, {}).append(bytes);
    held_ = append_characters(joined, out);
  }
  return out;
}

std::string Utf8Stream::flush() {
  // What is held back is one truncated character, which is one maximal subpart.
  return std::exchange(held_, {}).empty() ? std::string() : std::string(kReplacement);
}

std::string IncrementalDecoder::push(std::int32_t id) {
  if (options_.skip_special && tokenizer_->is_special(id)) return {};
  return stream_.push(tokenizer_->token_bytes(id));
}

std::string replace_invalid_utf8(std::string_view bytes) {
  Utf8Stream stream;
  std::string out = stream.push(bytes);
  out += stream.flush();
  return out;
}

}  // namespace glint
