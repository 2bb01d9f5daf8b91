#pragma once
// Finds stop strings in streamed text, over the borders of tokens. Text that may be the beginning of a stop string is
// held back until it is certain; a stop string itself never comes out.

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace glint {

class StopMatcher {
 public:
  StopMatcher() = default;
  explicit StopMatcher(std::vector<std::string> stops);  // none of them empty

  // Takes the next text and appends to *out what is certain to belong to the answer. Returns the stop string that was
  // reached, or nullptr; after one, the rest of the text is dropped and the matcher takes no more. Of several, the one
  // that ends first counts, and of those the longest: the result does not depend on how the text was cut.
  const std::string* feed(std::string_view text, std::string* out);

  // The end of the answer: gives out what is held back.
  void flush(std::string* out);

 private:
  std::size_t held_length() const;

  std::vector<std::string> stops_;
  std::string held_;  // invariant: shorter than the longest stop string between calls
};

}  // namespace glint
