#include "grammar/token_constraint.hpp"

#include <algorithm>

#include "base/check.hpp"

namespace glint::grammar {
namespace {

// Masks with fewer tokens than this are lists.
constexpr std::size_t kMinBits = 1024;
// Nodes of the tree that warm() looks at before it leaves the rest to the steps: about 0.1 s of one core.
constexpr std::size_t kWarmNodes = 5'000'000;
// Configurations that a request keeps before it forgets those of the past.
constexpr std::size_t kMaxConfigs = 1024;
constexpr std::size_t kMaxNodes = 1 << 16;
// Frames above it leave no doubt that a token opens no more than kMaxFrames; above them nothing is shared.
constexpr int kMaxSharedFrames = kMaxFrames / 2;

// Steps through the tree below `root` from `start`; visit(node, configuration) for what can be read.
template <typename Visit>
std::size_t walk(Machine& machine, ConfigId start, const TokenTrie& trie, std::int32_t root, Visit&& visit) {
  const std::vector<TokenTrie::Node>& nodes = trie.nodes();
  const std::int32_t end = nodes[static_cast<std::size_t>(root)].subtree;
  const std::size_t base = nodes[static_cast<std::size_t>(root)].depth;
  std::array<ConfigId, 257> path;
  path[0] = start;
  std::size_t visited = 0;
  for (std::int32_t i = root + 1; i < end;) {
    const TokenTrie::Node& node = nodes[static_cast<std::size_t>(i)];
    const std::size_t depth = node.depth - base;
    const ConfigId c = machine.step(path[depth - 1], node.byte);
    ++visited;
    if (c == kDead) {
      i = node.subtree;
      continue;
    }
    path[depth] = c;
    visit(i, c);
    ++i;
  }
  return visited;
}

void set_bit(std::span<std::uint64_t> bits, std::int32_t id) {
  bits[static_cast<std::size_t>(id) / 64] |= std::uint64_t{1} << (static_cast<std::size_t>(id) % 64);
}

class GrammarConstraint final : public TokenConstraint {
 public:
  explicit GrammarConstraint(std::shared_ptr<TokenGrammar> grammar)
      : grammar_(std::move(grammar)), machine_(grammar_->grammar()) {
    const Grammar& g = grammar_->grammar();
    at_ = machine_.start(g.rules[static_cast<std::size_t>(g.root)].entry, 0);
  }

  void mask(std::span<std::uint64_t> bits) override {
    const Vocabulary& vocabulary = grammar_->vocabulary();
    CHECK(bits.size() == vocabulary.n_words());
    std::fill(bits.begin(), bits.end(), 0);
    if (ended_) return;
    const std::vector<NodeId> nodes = machine_.config(at_).nodes;  // a copy: the machine grows below
    const auto allow = [&](std::int32_t tree_node, ConfigId) {
      for (std::int32_t t = vocabulary.trie().nodes()[static_cast<std::size_t>(tree_node)].token; t >= 0;
           t = vocabulary.trie().next_same(t)) {
        set_bit(bits, t);
      }
    };
    const bool deep =
        std::any_of(nodes.begin(), nodes.end(), [this](NodeId n) { return machine_.node(n).depth > kMaxSharedFrames; });
    if (deep) {
      walk(machine_, at_, vocabulary.trie(), 0, allow);
    } else {
      for (const NodeId n : nodes) add_shared(machine_.node(n), bits, allow);
    }
    for (const NodeId n : nodes) {
      const StateId state = machine_.node(n).state;
      for (const auto& e : grammar_->grammar().states[static_cast<std::size_t>(state)].symbols) set_bit(bits, e.token);
    }
    if (can_end()) {
      for (const std::int32_t id : vocabulary.end_ids()) set_bit(bits, id);
    }
  }

  bool accept(std::int32_t token) override {
    if (ended_) return false;
    const Vocabulary& vocabulary = grammar_->vocabulary();
    const auto ends = vocabulary.end_ids();
    if (std::find(ends.begin(), ends.end(), token) != ends.end()) {
      ended_ = can_end();
      return ended_;
    }
    const std::string_view text = vocabulary.text(token);
    ConfigId to = text.empty() ? machine_.step_symbol(at_, token) : at_;
    for (const char c : text) to = machine_.step(to, static_cast<std::uint8_t>(c));
    if (to == kDead) return false;
    at_ = to;
    if (machine_.n_configs() > kMaxConfigs || machine_.n_nodes() > kMaxNodes) at_ = machine_.keep_only(at_);
    return true;
  }

  bool can_end() const override { return !ended_ && machine_.config(at_).end; }

 private:
  // By value: the machine's nodes may move.
  template <typename Allow>
  void add_shared(Machine::Node node, std::span<std::uint64_t> bits, const Allow& allow) {
    if (grammar_->grammar().states[static_cast<std::size_t>(node.state)].bytes.empty()) return;
    const std::shared_ptr<const TokenGrammar::Mask> m = grammar_->mask(node.state, node.count);
    for (std::size_t i = 0; i < m->bits.size(); ++i) bits[i] |= m->bits[i];
    for (const std::int32_t id : m->ids) set_bit(bits, id);
    if (node.parent == kBottom || m->open.empty()) return;
    const ConfigId below = machine_.resume(node.parent);
    for (const std::int32_t tree_node : m->open) {
      walk(machine_, below, grammar_->vocabulary().trie(), tree_node, allow);
    }
  }

  std::shared_ptr<TokenGrammar> grammar_;
  Machine machine_;
  ConfigId at_ = kDead;
  bool ended_ = false;
};

}  // namespace

// ---- vocabulary ------------------------------------------------------------------------------------------------

TokenTrie Vocabulary::make_trie(const std::vector<Token>& tokens, std::span<const std::int32_t> end_ids) {
  std::vector<std::pair<std::string_view, std::int32_t>> texts;
  for (const Token& t : tokens) {
    const bool ends = std::find(end_ids.begin(), end_ids.end(), t.id) != end_ids.end();
    if (!t.is_tag && !ends && !t.bytes.empty()) texts.emplace_back(t.bytes, t.id);
  }
  return TokenTrie(std::move(texts));
}

Vocabulary::Vocabulary(std::vector<Token> tokens, std::vector<std::int32_t> end_ids, std::int64_t size)
    : end_ids_(std::move(end_ids)), size_(size), trie_(make_trie(tokens, end_ids_)) {
  for (Token& t : tokens) {
    CHECK(t.id >= 0 && t.id < size);
    if (static_cast<std::size_t>(t.id) >= tokens_.size()) tokens_.resize(static_cast<std::size_t>(t.id) + 1);
    Token& own = tokens_[static_cast<std::size_t>(t.id)];
    own = std::move(t);
  }
  for (const std::int32_t id : end_ids_) CHECK(id >= 0 && id < size);
}

std::int32_t Vocabulary::tag(std::string_view text) const {
  for (const Token& t : tokens_) {
    if (t.is_tag && t.bytes == text) return t.id;
  }
  return -1;
}

std::string_view Vocabulary::text(std::int32_t id) const {
  if (id < 0 || static_cast<std::size_t>(id) >= tokens_.size()) return {};
  const Token& t = tokens_[static_cast<std::size_t>(id)];
  return t.is_tag ? std::string_view() : std::string_view(t.bytes);
}

// ---- masks -----------------------------------------------------------------------------------------------------

TokenGrammar::TokenGrammar(Grammar grammar, std::shared_ptr<const Vocabulary> vocabulary)
    : grammar_(std::move(grammar)), vocabulary_(std::move(vocabulary)) {}

// A token has fewer than longest() characters: counts that far from both limits are alike.
TokenGrammar::Room TokenGrammar::room(const Rule& rule, std::int64_t count) const {
  const std::int64_t most = longest();
  if (!rule.counts()) return {.missing = 0, .left = most};
  return {.missing = std::clamp<std::int64_t>(rule.min - count, 0, most),
          .left = rule.max < 0 ? most : std::clamp<std::int64_t>(rule.max - count, 0, most)};
}

std::shared_ptr<const TokenGrammar::Mask> TokenGrammar::mask(StateId state, std::int64_t count) {
  const Rule& rule = grammar_.rules[static_cast<std::size_t>(grammar_.states[static_cast<std::size_t>(state)].rule)];
  const Key key(state, room(rule, count));
  {
    const std::lock_guard lock(mutex_);
    if (const auto known = masks_.find(key); known != masks_.end()) return known->second;
  }
  auto made = std::make_shared<const Mask>(rule.counts() ? select(*noted(state), key.second) : work_out(state));
  const std::lock_guard lock(mutex_);
  return masks_.emplace(key, std::move(made)).first->second;
}

TokenGrammar::Mask TokenGrammar::work_out(StateId state) {
  Machine machine(grammar_);
  Mask out;
  const TokenTrie& trie = vocabulary_->trie();
  visited_ += walk(machine, machine.start(state, 0), trie, 0, [&](std::int32_t i, ConfigId c) {
    const TokenTrie::Node& node = trie.nodes()[static_cast<std::size_t>(i)];
    for (std::int32_t t = node.token; t >= 0; t = trie.next_same(t)) out.ids.push_back(t);
    if (machine.config(c).end && node.subtree > i + 1) out.open.push_back(i);
  });
  if (out.ids.size() >= kMinBits) {
    out.bits.assign(vocabulary_->n_words(), 0);
    for (const std::int32_t id : out.ids) set_bit(out.bits, id);
    out.ids = {};
  }
  return out;
}

std::shared_ptr<const TokenGrammar::Noted> TokenGrammar::noted(StateId state) {
  {
    const std::lock_guard lock(mutex_);
    if (const auto known = noted_.find(state); known != noted_.end()) return known->second;
  }
  auto made = std::make_shared<const Noted>(note(state));
  const std::lock_guard lock(mutex_);
  return noted_.emplace(state, std::move(made)).first->second;
}

TokenGrammar::Noted TokenGrammar::note(StateId state) {
  Machine machine(grammar_, Limits::kNoted, longest());
  Noted out;
  // What the ways of a configuration ask, without those that ask no less than another.
  const auto ways_of = [&machine](std::span<const NodeId> nodes) {
    std::vector<Noted::Way> all;
    for (const NodeId n : nodes) {
      const Machine::Node& bottom = machine.bottom_of(n);
      all.push_back({.added = bottom.count, .enough = bottom.enough});
    }
    std::sort(all.begin(), all.end(), [](const Noted::Way& a, const Noted::Way& b) {
      return std::pair(a.added, -a.enough) < std::pair(b.added, -b.enough);
    });
    std::vector<Noted::Way> best;
    for (const Noted::Way& w : all) {
      if (best.empty() || w.enough > best.back().enough) best.push_back(w);
    }
    return best;
  };
  struct Groups {
    std::vector<Noted::Group*> reads, ends;
  };
  std::unordered_map<ConfigId, Groups> by_config;
  const auto groups_of = [&](ConfigId c) -> const Groups& {
    const auto [it, is_new] = by_config.try_emplace(c);
    if (!is_new) return it->second;
    const Machine::Config& config = machine.config(c);
    std::vector<NodeId> all = config.nodes;
    all.insert(all.end(), config.ends.begin(), config.ends.end());
    for (const Noted::Way& w : ways_of(all)) it->second.reads.push_back(&out.groups[w]);
    for (const Noted::Way& w : ways_of(config.ends)) it->second.ends.push_back(&out.groups[w]);
    return it->second;
  };
  const TokenTrie& trie = vocabulary_->trie();
  visited_ += walk(machine, machine.start(state, 0), trie, 0, [&](std::int32_t i, ConfigId c) {
    const TokenTrie::Node& node = trie.nodes()[static_cast<std::size_t>(i)];
    const Groups& groups = groups_of(c);
    for (std::int32_t t = node.token; t >= 0; t = trie.next_same(t)) {
      for (Noted::Group* g : groups.reads) g->ids.push_back(t);
    }
    if (node.subtree == i + 1) return;
    for (Noted::Group* g : groups.ends) g->open.push_back(i);
  });
  return out;
}

TokenGrammar::Mask TokenGrammar::select(const Noted& noted, const Room& room) const {
  Mask out;
  std::vector<const Noted::Group*> fitting;
  std::size_t n_ids = 0;
  for (const auto& [way, group] : noted.groups) {
    if (!way.fits(room)) continue;
    fitting.push_back(&group);
    n_ids += group.ids.size();
  }
  if (n_ids >= kMinBits) out.bits.assign(vocabulary_->n_words(), 0);
  for (const Noted::Group* g : fitting) {
    if (out.bits.empty()) {
      out.ids.insert(out.ids.end(), g->ids.begin(), g->ids.end());
    } else {
      for (const std::int32_t id : g->ids) set_bit(out.bits, id);
    }
    out.open.insert(out.open.end(), g->open.begin(), g->open.end());
  }
  // One that fits in two ways is in two groups.
  std::sort(out.open.begin(), out.open.end());
  out.open.erase(std::unique(out.open.begin(), out.open.end()), out.open.end());
  return out;
}

void TokenGrammar::warm() {
  for (std::size_t s = 0; s < grammar_.states.size() && visited() < kWarmNodes; ++s) {
    if (grammar_.states[s].bytes.empty()) continue;
    mask(static_cast<StateId>(s), 0);
    visited_ += 64;  // what a mask costs besides
  }
}

std::unique_ptr<TokenConstraint> make_constraint(std::shared_ptr<TokenGrammar> grammar) {
  return std::make_unique<GrammarConstraint>(std::move(grammar));
}

}  // namespace glint::grammar
