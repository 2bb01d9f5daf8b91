#include "grammar/machine.hpp"

#include <algorithm>
#include <utility>

#include "base/check.hpp"

namespace glint::grammar {
namespace {
// Ways kept at a time. To drop one narrows the language and never strands it: each can be brought to an end.
constexpr std::size_t kMaxWays = 2048;
constexpr ConfigId kUnknown = -1;

std::size_t mix(std::size_t h, std::size_t v) { return (h ^ v) * 0x9E3779B97F4A7C15ULL ^ (h >> 29); }
}  // namespace

std::size_t Machine::NodeHash::operator()(const Node& n) const {
  const std::size_t place = mix(static_cast<std::size_t>(n.state), static_cast<std::size_t>(n.parent));
  return mix(mix(place, static_cast<std::size_t>(n.count)), static_cast<std::size_t>(n.enough));
}
std::size_t Machine::SetHash::operator()(const std::vector<NodeId>& v) const {
  std::size_t h = v.size();
  for (const NodeId n : v) h = mix(h, static_cast<std::size_t>(n));
  return h;
}

Machine::Machine(const Grammar& grammar, Limits limits, std::int64_t most_noted)
    : grammar_(&grammar), limits_(limits), most_noted_(most_noted) {
  reset();
}

void Machine::reset() {
  nodes_.clear();
  node_ids_.clear();
  configs_.clear();
  config_ids_.clear();
  configs_.emplace_back();
  config_ids_.emplace(std::vector<NodeId>{}, kDead);
}

ConfigId Machine::start(StateId state, std::int64_t count) {
  return intern({intern_node({.state = state, .count = count})});
}

// The frame `from` moves to a state: false if its count or the depth forbids it.
bool Machine::pass(const Node& from, Count count, StateId to, Node& out) const {
  const State& target = grammar_->states[static_cast<std::size_t>(to)];
  const Rule& rule = grammar_->rules[static_cast<std::size_t>(target.rule)];
  const bool noted = limits_ == Limits::kNoted && from.parent == kBottom;
  if (!noted && count == Count::kAdd && rule.max >= 0 && from.count >= rule.max) return false;
  if (!noted && count == Count::kEnough && from.count < rule.min) return false;
  if (from.depth + target.depth > kMaxFrames) return false;
  out = from;
  out.state = to;
  if (noted) {
    if (count == Count::kAdd) out.count = std::min(from.count + 1, most_noted_);
    if (count == Count::kEnough) out.enough = std::min(from.enough, from.count);
    return true;
  }
  // Without a limit nothing is counted beyond the least.
  if (count == Count::kAdd && (rule.max >= 0 || from.count < rule.min)) ++out.count;
  return true;
}

NodeId Machine::intern_node(const Node& node) {
  const auto [it, is_new] = node_ids_.emplace(node, static_cast<NodeId>(nodes_.size()));
  if (is_new) nodes_.push_back(node);
  return it->second;
}

// Follows what reads nothing: calls, empty edges, ends of rules.
ConfigId Machine::intern(std::vector<NodeId> todo) {
  std::vector<NodeId> seen;
  std::vector<NodeId> reading;
  std::vector<NodeId> ends;
  const auto visit = [&](NodeId id) {
    const auto at = std::lower_bound(seen.begin(), seen.end(), id);
    if (at != seen.end() && *at == id) return false;
    if (seen.size() >= kMaxWays) return false;
    seen.insert(at, id);
    return true;
  };
  std::erase_if(todo, [&](NodeId id) { return !visit(id); });
  const auto push = [&](const Node& node) {
    const NodeId id = intern_node(node);
    if (visit(id)) todo.push_back(id);
  };
  Node moved;
  while (!todo.empty()) {
    const NodeId id = todo.back();
    todo.pop_back();
    const Node node = nodes_[static_cast<std::size_t>(id)];
    const State& state = grammar_->states[static_cast<std::size_t>(node.state)];
    if (state.reads()) reading.push_back(id);
    if (state.end && node.parent == kBottom) ends.push_back(id);
    if (state.end && node.parent != kBottom && visit(node.parent)) todo.push_back(node.parent);
    for (const State::Empty& e : state.empties) {
      if (pass(node, e.count, e.to, moved)) push(moved);
    }
    for (const State::Call& c : state.calls) {
      const StateId entry = grammar_->rules[static_cast<std::size_t>(c.rule)].entry;
      const int below = grammar_->states[static_cast<std::size_t>(entry)].depth;
      if (node.depth + 1 + below > kMaxFrames || !pass(node, c.count, c.to, moved)) continue;
      push({.state = entry, .parent = intern_node(moved), .depth = node.depth + 1});
    }
  }
  std::sort(reading.begin(), reading.end());
  const bool end = !ends.empty();
  if (limits_ == Limits::kKept) ends.clear();  // how it ended makes no difference
  std::sort(ends.begin(), ends.end());
  std::vector<NodeId> key = reading;
  if (end) key.push_back(kBottom);
  for (const NodeId id : ends) key.push_back(kBottom - 1 - id);
  const auto [it, is_new] = config_ids_.emplace(std::move(key), static_cast<ConfigId>(configs_.size()));
  if (is_new) configs_.push_back({.nodes = std::move(reading), .end = end, .ends = std::move(ends)});
  return it->second;
}

ConfigId Machine::step(ConfigId from, std::uint8_t byte) {
  if (from == kDead) return kDead;
  {
    Config& c = configs_[static_cast<std::size_t>(from)];
    if (!c.next) {
      c.next = std::make_unique<std::array<ConfigId, 256>>();
      c.next->fill(kUnknown);
    }
    if (const ConfigId known = (*c.next)[byte]; known != kUnknown) return known;
  }
  std::vector<NodeId> targets;
  Node moved;
  // By index: intern_node may move the nodes.
  for (const NodeId id : configs_[static_cast<std::size_t>(from)].nodes) {
    const Node node = nodes_[static_cast<std::size_t>(id)];
    for (const State::Bytes& e : grammar_->states[static_cast<std::size_t>(node.state)].bytes) {
      if (byte >= e.first && byte <= e.last && pass(node, e.count, e.to, moved)) targets.push_back(intern_node(moved));
    }
  }
  const ConfigId to = targets.empty() ? kDead : intern(std::move(targets));
  (*configs_[static_cast<std::size_t>(from)].next)[byte] = to;
  return to;
}

ConfigId Machine::step_symbol(ConfigId from, std::int32_t token) {
  std::vector<NodeId> targets;
  Node moved;
  for (const NodeId id : configs_[static_cast<std::size_t>(from)].nodes) {
    const Node node = nodes_[static_cast<std::size_t>(id)];
    for (const State::Symbol& e : grammar_->states[static_cast<std::size_t>(node.state)].symbols) {
      if (e.token == token && pass(node, Count::kFree, e.to, moved)) targets.push_back(intern_node(moved));
    }
  }
  return targets.empty() ? kDead : intern(std::move(targets));
}

const Machine::Node& Machine::bottom_of(NodeId id) const {
  while (node(id).parent != kBottom) id = node(id).parent;
  return node(id);
}

NodeId Machine::copy(const Machine& from, NodeId id, std::unordered_map<NodeId, NodeId>& names) {
  if (id == kBottom) return kBottom;
  if (const auto known = names.find(id); known != names.end()) return known->second;
  Node node = from.node(id);
  node.parent = copy(from, node.parent, names);  // as deep as kMaxFrames at most
  return names[id] = intern_node(node);
}

ConfigId Machine::keep_only(ConfigId id) {
  CHECK(limits_ == Limits::kKept);
  Machine old = std::move(*this);
  reset();
  const Config& c = old.config(id);
  std::unordered_map<NodeId, NodeId> names;
  std::vector<NodeId> nodes;
  for (const NodeId n : c.nodes) nodes.push_back(copy(old, n, names));
  std::sort(nodes.begin(), nodes.end());
  std::vector<NodeId> key = nodes;
  if (c.end) key.push_back(kBottom);
  const auto [it, is_new] = config_ids_.emplace(std::move(key), static_cast<ConfigId>(configs_.size()));
  if (is_new) configs_.push_back({.nodes = std::move(nodes), .end = c.end});
  return it->second;
}

}  // namespace glint::grammar
