#pragma once
// PrefixTree: which tokens the pages hold that outlive their requests. A radix tree over token ids whose edges are
// pages: a node is one page, its path from the root says what the page holds. KvPlan owns it and counts the references;
// the tree knows shapes and ages only.
//
// Invariants (check_integrity): a node with children is a full page; no node's tokens begin with those of a sibling;
// a node is used no less recently than its children.

#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace glint {

using PageId = std::int32_t;

struct PrefixNode {
  struct ByTokens {
    using is_transparent = void;  // NOLINT(readability-identifier-naming): the name that std::set asks for
    bool operator()(const PrefixNode* a, const PrefixNode* b) const;
    bool operator()(const PrefixNode* a, std::span<const std::int32_t> b) const;
    bool operator()(std::span<const std::int32_t> a, const PrefixNode* b) const;
  };
  std::vector<std::int32_t> tokens;  // a full page of them; fewer only in a leaf
  PageId page = -1;
  PrefixNode* parent = nullptr;  // nullptr: the root
  std::set<PrefixNode*, ByTokens> children;
  std::int64_t last_use = 0;
  std::int64_t order = 0;  // of creation: breaks ties of last_use
  bool idle = false;       // no sequence lists the page
};

class PrefixTree {
 public:
  PrefixTree(std::int32_t n_pages, std::int32_t page_tokens);

  struct Path {
    std::vector<PrefixNode*> full;    // the nodes of whole pages that match
    PrefixNode* partial = nullptr;    // of its tokens the first partial_tokens match too
    std::int64_t partial_tokens = 0;  // < page_tokens
  };
  // The longest match of the tokens.
  Path find(std::span<const std::int32_t> tokens) const;

  // The child of `parent` (nullptr: the root) that holds these tokens or begins with them; nullptr: none.
  PrefixNode* child(const PrefixNode* parent, std::span<const std::int32_t> tokens) const;
  // The leaf of which these tokens are a longer version; nullptr: none.
  PrefixNode* shorter(const PrefixNode* parent, std::span<const std::int32_t> tokens) const;
  PrefixNode* add(PrefixNode* parent, std::span<const std::int32_t> tokens, PageId page);
  void remove(PrefixNode* leaf);
  // It was used now; to be called from the root downwards.
  void touch(PrefixNode* node);

  PrefixNode* at(PageId page) const { return by_page_[static_cast<std::size_t>(page)].get(); }
  void set_idle(PrefixNode* node, bool idle);
  std::int32_t n_idle() const { return n_idle_; }
  std::int32_t n_nodes() const { return n_nodes_; }
  // The idle leaf that was not used for the longest time; nullptr: none.
  PrefixNode* oldest() const { return leaves_.empty() ? nullptr : *leaves_.begin(); }
  // A leaf below the node, or the node.
  static PrefixNode* leaf_of(PrefixNode* node);

  // Time of what comes next; the caller's steps.
  void advance() { ++now_; }

  std::string check_integrity() const;

 private:
  struct ByAge {
    bool operator()(const PrefixNode* a, const PrefixNode* b) const {
      return std::pair(a->last_use, a->order) < std::pair(b->last_use, b->order);
    }
  };
  const PrefixNode& node_or_root(const PrefixNode* node) const { return node == nullptr ? root_ : *node; }
  PrefixNode& node_or_root(PrefixNode* node) { return node == nullptr ? root_ : *node; }
  std::string check_node(const PrefixNode& node, std::int32_t* n_nodes, std::int32_t* n_idle) const;

  std::int32_t page_tokens_;
  PrefixNode root_;  // holds no page
  std::vector<std::unique_ptr<PrefixNode>> by_page_;
  std::set<PrefixNode*, ByAge> leaves_;  // the idle ones
  std::int32_t n_nodes_ = 0;
  std::int32_t n_idle_ = 0;
  std::int64_t now_ = 1;
  std::int64_t next_order_ = 1;
};

}  // namespace glint
