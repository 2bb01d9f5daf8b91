#include "cache/plan_tree.hpp"

#include <algorithm>

#include "base/check.hpp"

namespace glint {
namespace {

using Tokens = std::span<const std::int32_t>;

bool less(Tokens a, Tokens b) { return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end()); }

std::int64_t common(Tokens a, Tokens b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

bool begins_with(Tokens tokens, Tokens head) {
  return tokens.size() >= head.size() && std::equal(head.begin(), head.end(), tokens.begin());
}

}  // namespace

bool PrefixNode::ByTokens::operator()(const PrefixNode* a, const PrefixNode* b) const {
  return less(a->tokens, b->tokens);
}
bool PrefixNode::ByTokens::operator()(const PrefixNode* a, Tokens b) const { return less(a->tokens, b); }
bool PrefixNode::ByTokens::operator()(Tokens a, const PrefixNode* b) const { return less(a, b->tokens); }

PrefixTree::PrefixTree(std::int32_t n_pages, std::int32_t page_tokens)
    : page_tokens_(page_tokens), by_page_(static_cast<std::size_t>(n_pages)) {}

PrefixTree::Path PrefixTree::find(Tokens tokens) const {
  Path path;
  const auto page = static_cast<std::size_t>(page_tokens_);
  const PrefixNode* at = &root_;
  while (!tokens.empty()) {
    const Tokens head = tokens.first(std::min(page, tokens.size()));
    // In the order of tokens the longest common beginning is that of a neighbour.
    const auto next = at->children.lower_bound(head);
    if (next != at->children.end() && head.size() == page && begins_with((*next)->tokens, head)) {
      path.full.push_back(*next);
      at = *next;
      tokens = tokens.subspan(page);
      continue;
    }
    const auto consider = [&](PrefixNode* node) {
      const std::int64_t n = common(node->tokens, head);
      if (n > path.partial_tokens) {
        path.partial = node;
        path.partial_tokens = n;
      }
    };
    if (next != at->children.end()) consider(*next);
    if (next != at->children.begin()) consider(*std::prev(next));
    break;
  }
  return path;
}

PrefixNode* PrefixTree::child(const PrefixNode* parent, Tokens tokens) const {
  const auto& children = node_or_root(parent).children;
  const auto it = children.lower_bound(tokens);
  return it != children.end() && begins_with((*it)->tokens, tokens) ? *it : nullptr;
}

// Nothing stands between a beginning and its longer version: it would begin with it too, and siblings do not.
PrefixNode* PrefixTree::shorter(const PrefixNode* parent, Tokens tokens) const {
  const auto& children = node_or_root(parent).children;
  const auto it = children.lower_bound(tokens);
  if (it == children.begin()) return nullptr;
  PrefixNode* before = *std::prev(it);
  return begins_with(tokens, before->tokens) ? before : nullptr;
}

PrefixNode* PrefixTree::add(PrefixNode* parent, Tokens tokens, PageId page) {
  auto& slot = by_page_[static_cast<std::size_t>(page)];
  CHECK(slot == nullptr && !tokens.empty() && tokens.size() <= static_cast<std::size_t>(page_tokens_),
        "page " + std::to_string(page));
  slot = std::make_unique<PrefixNode>();
  slot->tokens.assign(tokens.begin(), tokens.end());
  slot->page = page;
  slot->parent = parent;
  slot->last_use = now_;
  slot->order = next_order_++;
  if (parent != nullptr && parent->idle) leaves_.erase(parent);
  node_or_root(parent).children.insert(slot.get());
  ++n_nodes_;
  return slot.get();
}

void PrefixTree::remove(PrefixNode* leaf) {
  CHECK(leaf->children.empty());
  set_idle(leaf, false);
  node_or_root(leaf->parent).children.erase(leaf);
  if (leaf->parent != nullptr && leaf->parent->idle && leaf->parent->children.empty()) leaves_.insert(leaf->parent);
  --n_nodes_;
  by_page_[static_cast<std::size_t>(leaf->page)].reset();
}

void PrefixTree::touch(PrefixNode* node) {
  if (node->last_use == now_) return;
  const bool listed = leaves_.erase(node) > 0;
  node->last_use = now_;
  if (listed) leaves_.insert(node);
}

void PrefixTree::set_idle(PrefixNode* node, bool idle) {
  if (node->idle == idle) return;
  node->idle = idle;
  n_idle_ += idle ? 1 : -1;
  if (!node->children.empty()) return;
  if (idle) {
    leaves_.insert(node);
  } else {
    leaves_.erase(node);
  }
}

PrefixNode* PrefixTree::leaf_of(PrefixNode* node) {
  while (!node->children.empty()) node = *node->children.begin();
  return node;
}

std::string PrefixTree::check_node(const PrefixNode& node, std::int32_t* n_nodes, std::int32_t* n_idle) const {
  const PrefixNode* before = nullptr;
  for (const PrefixNode* c : node.children) {
    const std::string name = "tree: page " + std::to_string(c->page);
    const auto n = static_cast<std::int32_t>(c->tokens.size());
    if (at(c->page) != c) return name + " is not listed";
    if ((c->parent == nullptr ? &root_ : c->parent) != &node) return name + " has another parent";
    if (n < 1 || n > page_tokens_) return name + " holds " + std::to_string(n) + " tokens";
    if (n < page_tokens_ && !c->children.empty()) return name + " is not full and goes on";
    if (before != nullptr && begins_with(c->tokens, before->tokens)) return name + " begins with its sibling";
    if (&node != &root_ && c->last_use > node.last_use) return name + " was used after its parent";
    if (&node != &root_ && !c->idle && node.idle) return name + " is used and its parent is not";
    if (leaves_.contains(const_cast<PrefixNode*>(c)) != (c->idle && c->children.empty()))
      return name + ": wrongly (not) listed for eviction";
    ++*n_nodes;
    *n_idle += c->idle ? 1 : 0;
    before = c;
    if (std::string wrong = check_node(*c, n_nodes, n_idle); !wrong.empty()) return wrong;
  }
  return {};
}

std::string PrefixTree::check_integrity() const {
  std::int32_t nodes = 0;
  std::int32_t idle = 0;
  if (std::string wrong = check_node(root_, &nodes, &idle); !wrong.empty()) return wrong;
  const auto listed = std::count_if(by_page_.begin(), by_page_.end(), [](const auto& n) { return n != nullptr; });
  if (nodes != n_nodes_ || nodes != listed) return "tree: " + std::to_string(nodes) + " nodes";
  if (idle != n_idle_) return "tree: " + std::to_string(idle) + " idle nodes, counted " + std::to_string(n_idle_);
  return {};
}

}  // namespace glint
