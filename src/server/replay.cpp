#include "server/replay.hpp"

#include <algorithm>
#include <cstring>

namespace glint::server {
namespace {

// Tags of the chat format (model facts §6.1). The tokenizer splits the text at them before anything else, so ids on
// one side never depend on the text of the other.
constexpr std::string_view kTags[] = {"[gMASK]",       "<sop>",           "<|system|>",      "<|user|>",
                                      "<|assistant|>", "<|observation|>", "<think>",         "</think>",
                                      "<tool_call>",   "</tool_call>",    "<tool_response>", "</tool_response>",
                                      "<arg_key>",     "</arg_key>",      "<arg_value>",     "</arg_value>"};

std::size_t common_length(std::string_view a, std::string_view b) {
  const std::size_t n = std::min(a.size(), b.size());
  constexpr std::size_t kBlock = 4096;
  std::size_t i = 0;
  while (i + kBlock <= n && std::memcmp(a.data() + i, b.data() + i, kBlock) == 0) i += kBlock;
  while (i < n && a[i] == b[i]) ++i;
  return i;
}

bool begins_with_tag(std::string_view text) {
  return std::any_of(std::begin(kTags), std::end(kTags), [&](std::string_view tag) { return text.starts_with(tag); });
}

}  // namespace

const std::unordered_set<int>& ReplayMemory::tags(const Engine& engine) {
  std::call_once(tags_read_, [&] {
    std::unordered_set<int> found;
    for (const std::string_view tag : kTags) {
      const std::vector<std::int32_t> ids = engine.encode(tag);
      if (ids.size() != 1) return;  // a tokenizer without the format's tags: nothing is replayed
      found.insert(ids[0]);
    }
    tags_ = std::move(found);
  });
  return tags_;
}

void ReplayMemory::remember(const Engine& engine, std::span<const std::int32_t> ids) {
  if (tags(engine).empty()) return;
  auto c = std::make_shared<Conversation>();
  c->ids.assign(ids.begin(), ids.end());
  c->ends.reserve(ids.size());
  for (const std::int32_t& id : ids) {
    c->text += engine.decode({&id, 1});
    c->ends.push_back(static_cast<std::uint32_t>(c->text.size()));
  }
  c->text.shrink_to_fit();  // it grew by doubling
  const std::size_t size = c->bytes();
  if (size > max_bytes_) return;
  const std::lock_guard lock(mutex_);
  const auto drop = [this](List::iterator it) {
    bytes_ -= (*it)->bytes();
    return recent_.erase(it);
  };
  for (auto it = recent_.begin(); it != recent_.end();) {  // what it goes on from
    const std::vector<std::int32_t>& old = (*it)->ids;
    const bool goes_on = old.size() <= c->ids.size() && std::equal(old.begin(), old.end(), c->ids.begin());
    it = goes_on ? drop(it) : std::next(it);
  }
  recent_.push_front(std::move(c));
  bytes_ += size;
  while (bytes_ > max_bytes_) drop(std::prev(recent_.end()));
}

std::size_t ReplayMemory::reusable_ids(const Conversation& c, std::string_view text,
                                       const std::unordered_set<int>& tags) {
  const std::size_t same = common_length(c.text, text);
  auto n = static_cast<std::size_t>(std::upper_bound(c.ends.begin(), c.ends.end(), same) - c.ends.begin());
  for (; n > 0; --n) {
    const std::string_view rest = text.substr(c.ends[n - 1]);
    if (rest.empty() || tags.contains(c.ids[n - 1]) || begins_with_tag(rest)) return n;
  }
  return 0;
}

std::vector<std::int32_t> ReplayMemory::encode(const Engine& engine, std::string_view text) {
  const std::unordered_set<int>& known_tags = tags(engine);
  if (known_tags.empty()) return engine.encode(text);
  List recent;
  {
    const std::lock_guard lock(mutex_);
    recent = recent_;
  }
  std::shared_ptr<const Conversation> best;
  std::size_t best_ids = 0;
  std::size_t best_end = 0;
  for (const std::shared_ptr<const Conversation>& c : recent) {
    const std::size_t n = reusable_ids(*c, text, known_tags);
    if (n == 0 || c->ends[n - 1] <= best_end) continue;
    best = c;
    best_ids = n;
    best_end = c->ends[n - 1];
  }
  if (!best) return engine.encode(text);
  {
    const std::lock_guard lock(mutex_);
    const auto it = std::find(recent_.begin(), recent_.end(), best);
    if (it != recent_.end()) recent_.splice(recent_.begin(), recent_, it);
  }
  std::vector<std::int32_t> ids(best->ids.begin(), best->ids.begin() + static_cast<std::ptrdiff_t>(best_ids));
  const std::vector<std::int32_t> rest = engine.encode(text.substr(best_end));
  ids.insert(ids.end(), rest.begin(), rest.end());
  return ids;
}

std::size_t ReplayMemory::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

}  // namespace glint::server
