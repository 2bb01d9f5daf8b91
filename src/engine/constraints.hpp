#pragma once
// The grammars of an engine's requests: compiled by the thread that submits, kept for the next request of the same
// form.

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "grammar/token_constraint.hpp"
#include "text/tokenizer.hpp"

namespace glint {

// Thread-safe.
class Constraints {
 public:
  // valid_vocab: ids from here on are padding. vocab: the size of a row of logits. The tokenizer must outlive this.
  Constraints(const Tokenizer& tokenizer, std::vector<std::int32_t> eos_ids, std::int64_t valid_vocab,
              std::int64_t vocab);

  // spec: Request::constraint. Throws Error when it is wrong or not supported.
  std::unique_ptr<grammar::TokenConstraint> make(const std::string& spec);

 private:
  std::shared_ptr<const grammar::Vocabulary> vocabulary();
  std::shared_ptr<grammar::TokenGrammar> find(const std::string& spec);

  const Tokenizer& tokenizer_;
  const std::vector<std::int32_t> eos_ids_;
  const std::int64_t valid_vocab_, vocab_;
  std::mutex mutex_;                                       // never held while a grammar is compiled
  std::shared_ptr<const grammar::Vocabulary> vocabulary_;  // made for the first request that needs it
  std::list<std::pair<std::string, std::shared_ptr<grammar::TokenGrammar>>> recent_;  // the last used first
};

}  // namespace glint
