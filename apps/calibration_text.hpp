#pragma once
// The tokens that `glint quantize` calibrates on.

#include <cstdint>
#include <string>
#include <vector>

namespace glint::apps {

// The first `limit` tokens of a text file ("": the text that comes with Glint), by the model's tokenizer. Documents end
// with <|endoftext|> and are read as in training: each begins with [gMASK]<sop>. A text without those marks is one
// document. Tags of the chat format count as tags. Throws Error.
std::vector<std::int32_t> calibration_ids(const std::string& model_dir, const std::string& path, std::int64_t limit);

// Tokens that quantising reads unless told otherwise: all of the bundled text with the bundled model's tokenizer. Twice
// their hidden states are held, 1.3 GB for the real model.
inline constexpr std::int64_t kCalibrationTokens = 81920;

}  // namespace glint::apps
