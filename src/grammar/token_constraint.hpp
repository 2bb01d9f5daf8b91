#pragma once
// What a request's answer may be, token by token: the mask before the sampler's chain, and the state after each token.

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "grammar/grammar.hpp"
#include "grammar/machine.hpp"
#include "grammar/token_trie.hpp"

namespace glint::grammar {

class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  // Sets bit id % 64 of word id / 64 for each token that may come next and clears the others.
  virtual void mask(std::span<std::uint64_t> bits) = 0;
  // The next token. False if it may not come here; then nothing has changed.
  virtual bool accept(std::int32_t token) = 0;
  // Whether the answer may be over: end tokens are allowed.
  virtual bool can_end() const = 0;
};

// The model's tokens as a grammar sees them. Read-only once built.
class Vocabulary {
 public:
  struct Token {
    std::int32_t id = 0;
    std::string bytes;    // empty: no text
    bool is_tag = false;  // never part of text: reached by name only
  };
  // size: of the masks, in tokens (the model's logits, padding included).
  Vocabulary(std::vector<Token> tokens, std::vector<std::int32_t> end_ids, std::int64_t size);

  const TokenTrie& trie() const { return trie_; }
  std::span<const std::int32_t> end_ids() const { return end_ids_; }
  std::size_t n_words() const { return static_cast<std::size_t>((size_ + 63) / 64); }
  // -1 if there is no such tag.
  std::int32_t tag(std::string_view text) const;
  // Empty for tags and end tokens.
  std::string_view text(std::int32_t id) const;

 private:
  static TokenTrie make_trie(const std::vector<Token>& tokens, std::span<const std::int32_t> end_ids);

  std::vector<Token> tokens_;  // by id
  std::vector<std::int32_t> end_ids_;
  std::int64_t size_;
  TokenTrie trie_;
};

// A grammar with the masks of its states, which all requests with this grammar share. Thread-safe.
class TokenGrammar {
 public:
  TokenGrammar(Grammar grammar, std::shared_ptr<const Vocabulary> vocabulary);

  // The tokens that one frame allows, whatever lies below it.
  struct Mask {
    std::vector<std::uint64_t> bits;  // empty: ids
    std::vector<std::int32_t> ids;
    std::vector<std::int32_t> open;  // nodes of the tree at which the frame has ended, and more bytes follow
  };
  std::shared_ptr<const Mask> mask(StateId state, std::int64_t count);

  // Works out masks ahead, up to a bound of work, so that no step waits for them.
  void warm();

  std::size_t visited() const { return visited_; }  // nodes of the vocabulary's tree that masks cost so far

  const Grammar& grammar() const { return grammar_; }
  const Vocabulary& vocabulary() const { return *vocabulary_; }

 private:
  // How far a frame's count is from its limits, as far as a token can tell.
  struct Room {
    std::int64_t missing = 0;  // to the least
    std::int64_t left = 0;     // to the most
    bool operator==(const Room&) const = default;
  };
  // What a counting frame's state allows at any count: tokens by what they ask of it, from one walk.
  struct Noted {
    struct Way {
      std::int64_t added = 0;   // at most `left`
      std::int64_t enough = 0;  // at least `missing`
      bool operator<(const Way& other) const { return std::tie(added, enough) < std::tie(other.added, other.enough); }
      bool fits(const Room& room) const { return added <= room.left && enough >= room.missing; }
    };
    struct Group {
      std::vector<std::int32_t> ids, open;
    };
    std::map<Way, Group> groups;
  };
  using Key = std::pair<StateId, Room>;
  struct KeyHash {
    std::size_t operator()(const Key& k) const {
      const auto room = static_cast<std::size_t>(k.second.missing << 16 ^ k.second.left);
      return room * 0x9E3779B97F4A7C15ULL + static_cast<std::size_t>(k.first);
    }
  };
  std::int64_t longest() const { return static_cast<std::int64_t>(vocabulary_->trie().longest()) + 1; }
  Room room(const Rule& rule, std::int64_t count) const;
  std::shared_ptr<const Noted> noted(StateId state);
  Noted note(StateId state);
  Mask work_out(StateId state);
  Mask select(const Noted& noted, const Room& room) const;

  const Grammar grammar_;
  const std::shared_ptr<const Vocabulary> vocabulary_;
  std::mutex mutex_;
  std::atomic<std::size_t> visited_ = 0;
  std::unordered_map<Key, std::shared_ptr<const Mask>, KeyHash> masks_;
  std::unordered_map<StateId, std::shared_ptr<const Noted>> noted_;
};

std::unique_ptr<TokenConstraint> make_constraint(std::shared_ptr<TokenGrammar> grammar);

}  // namespace glint::grammar
