#pragma once
// Runs a grammar over bytes. A configuration is every way in which the text so far can be read: a set of stacks, which
// share their lower frames. Configurations and the steps between them are kept, so that a step taken before is a
// look-up.

#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <unordered_map>
#include <vector>

#include "grammar/grammar.hpp"

namespace glint::grammar {

using NodeId = std::int32_t;
using ConfigId = std::int32_t;
inline constexpr NodeId kBottom = -1;  // below the first frame
inline constexpr ConfigId kDead = 0;   // no way to read the text

// The limits of the frame at the bottom: kept, or noted instead, so that one walk answers for every count.
enum class Limits : std::uint8_t { kKept, kNoted };
inline constexpr std::int64_t kNoNeed = std::numeric_limits<std::int64_t>::max();

class Machine {
 public:
  struct Node {
    StateId state = 0;
    NodeId parent = kBottom;  // the frame that called, as it goes on afterwards
    std::int64_t count = 0;
    int depth = 1;  // frames from the bottom
    // Of the frame at the bottom, where limits are noted: the least count at which it had to have enough.
    std::int64_t enough = kNoNeed;
    bool operator==(const Node&) const = default;
  };
  struct Config {
    std::vector<NodeId> nodes;  // whose states read something
    bool end = false;           // all frames may have ended
    std::vector<NodeId> ends;   // as what, where limits are noted
    std::unique_ptr<std::array<ConfigId, 256>> next;
  };

  // most_noted: counts beyond it are noted as it.
  explicit Machine(const Grammar& grammar, Limits limits = Limits::kKept, std::int64_t most_noted = 0);

  // A frame in `state` with nothing below it.
  ConfigId start(StateId state, std::int64_t count);
  // The frame `node` goes on.
  ConfigId resume(NodeId node) { return intern({node}); }
  ConfigId step(ConfigId from, std::uint8_t byte);
  ConfigId step_symbol(ConfigId from, std::int32_t token);

  const Config& config(ConfigId id) const { return configs_[static_cast<std::size_t>(id)]; }
  const Node& bottom_of(NodeId id) const;
  const Node& node(NodeId id) const { return nodes_[static_cast<std::size_t>(id)]; }
  std::size_t n_configs() const { return configs_.size(); }
  std::size_t n_nodes() const { return nodes_.size(); }

  // Forgets all but this configuration, whose new name is returned.
  ConfigId keep_only(ConfigId id);

 private:
  struct NodeHash {
    std::size_t operator()(const Node& n) const;
  };
  struct SetHash {
    std::size_t operator()(const std::vector<NodeId>& v) const;
  };
  bool pass(const Node& from, Count count, StateId to, Node& out) const;
  NodeId intern_node(const Node& node);
  ConfigId intern(std::vector<NodeId> todo);
  NodeId copy(const Machine& from, NodeId id, std::unordered_map<NodeId, NodeId>& names);
  void reset();

  const Grammar* grammar_;
  Limits limits_;
  std::int64_t most_noted_;
  std::vector<Node> nodes_;
  std::unordered_map<Node, NodeId, NodeHash> node_ids_;
  std::vector<Config> configs_;
  std::unordered_map<std::vector<NodeId>, ConfigId, SetHash> config_ids_;  // by nodes, ends below 0
  std::vector<NodeId> scratch_;
};

}  // namespace glint::grammar
