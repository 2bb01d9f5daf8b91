#include "engine/constraints.hpp"

#include <algorithm>

#include "grammar/constraint_spec.hpp"

namespace glint {
namespace {
constexpr std::size_t kKept = 32;  // grammars; each a few MB at most
}  // namespace

Constraints::Constraints(const Tokenizer& tokenizer, std::vector<std::int32_t> eos_ids, std::int64_t valid_vocab,
                         std::int64_t vocab)
    : tokenizer_(tokenizer), eos_ids_(std::move(eos_ids)), valid_vocab_(valid_vocab), vocab_(vocab) {}

std::shared_ptr<const grammar::Vocabulary> Constraints::vocabulary() {
  const std::lock_guard lock(mutex_);
  if (vocabulary_) return vocabulary_;
  std::vector<grammar::Vocabulary::Token> tokens;
  const std::int64_t n = std::min<std::int64_t>(tokenizer_.vocab_size(), valid_vocab_);
  for (std::int32_t id = 0; id < n; ++id) {
    const std::string_view bytes = tokenizer_.token_bytes(id);
    if (!bytes.empty()) tokens.push_back({id, std::string(bytes), tokenizer_.is_added(id)});
  }
  vocabulary_ = std::make_shared<grammar::Vocabulary>(std::move(tokens), eos_ids_, vocab_);
  return vocabulary_;
}

std::shared_ptr<grammar::TokenGrammar> Constraints::find(const std::string& spec) {
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(recent_.begin(), recent_.end(), [&](const auto& r) { return r.first == spec; });
  if (found == recent_.end()) return nullptr;
  recent_.splice(recent_.begin(), recent_, found);
  return recent_.front().second;
}

std::unique_ptr<grammar::TokenConstraint> Constraints::make(const std::string& spec) {
  if (auto known = find(spec)) return grammar::make_constraint(std::move(known));
  const auto words = vocabulary();
  auto made = std::make_shared<grammar::TokenGrammar>(grammar::compile_constraint(spec, *words), words);
  made->warm();
  {
    const std::lock_guard lock(mutex_);
    recent_.emplace_front(spec, made);
    if (recent_.size() > kKept) recent_.pop_back();
  }
  return grammar::make_constraint(std::move(made));
}

}  // namespace glint
