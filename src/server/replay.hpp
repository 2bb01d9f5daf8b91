#pragma once
// The ids of recent conversations as the model read and wrote them. A text has many tokenisations, and the one that was
// sampled need not be the tokenizer's own: a prompt that repeats an answer gets the sampled ids again, so that it finds
// the answer's rows in the prefix cache. The text stays what the chat template makes it; only the ids of identical text
// are replaced.

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "glint/engine.hpp"

namespace glint::server {

// Thread-safe. Bounded memory: the conversation that was not used for the longest time is forgotten first.
class ReplayMemory {
 public:
  explicit ReplayMemory(std::size_t max_bytes = std::size_t{64} << 20) : max_bytes_(max_bytes) {}

  // Prompt and answer of a generation that ended.
  void remember(const Engine& engine, std::span<const std::int32_t> ids);

  // The ids of a chat prompt: as far as it repeats a remembered conversation, that one's; engine.encode() for the rest.
  // Always decodes to the text.
  std::vector<std::int32_t> encode(const Engine& engine, std::string_view text);

  std::size_t bytes() const;

 private:
  struct Conversation {
    std::string text;
    std::vector<std::int32_t> ids;
    std::vector<std::uint32_t> ends;  // of each id's bytes in the text
    // What malloc, the list and the count of owners add.
    static constexpr std::size_t kBlocks = 160;
    std::size_t bytes() const { return text.size() + ids.size() * 2 * sizeof(std::int32_t) + sizeof(*this) + kBlocks; }
  };
  using List = std::list<std::shared_ptr<const Conversation>>;

  // How many of the conversation's ids may stand for the beginning of the text.
  static std::size_t reusable_ids(const Conversation& c, std::string_view text, const std::unordered_set<int>& tags);
  const std::unordered_set<int>& tags(const Engine& engine);

  const std::size_t max_bytes_;
  mutable std::mutex mutex_;
  std::once_flag tags_read_;
  std::unordered_set<int> tags_;  // ids of the template's tags
  List recent_;                   // the last used one first
  std::size_t bytes_ = 0;
};

}  // namespace glint::server
