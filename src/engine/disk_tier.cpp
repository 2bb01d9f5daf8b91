#include "engine/disk_tier.hpp"

#include <algorithm>
#include <utility>

#include "base/check.hpp"
#include "base/clock.hpp"

namespace glint {

DiskTier::DiskTier(Scheduler& scheduler, KvStore& store, KvDiskOptions options)
    : scheduler_(scheduler), store_(store), page_tokens_(scheduler.options().page_tokens), disk_(std::move(options)) {}

DiskTier::~DiskTier() {
  constexpr double kDrainSeconds = 10;
  const double end = now_s() + kDrainSeconds;
  while (!saves_.empty() && now_s() < end) {
    disk_.wait(std::chrono::milliseconds(10));
    collect();
  }
}

// Where the block's pages lie; those before from_page are there already and must not be written to.
std::vector<std::byte*> DiskTier::page_bytes(SequenceId pin, const KvDisk::Block& block, std::int64_t from_page) const {
  const std::span<const PageId> pages = scheduler_.kv().pages(pin);
  std::vector<std::byte*> out(block.n_pages, nullptr);
  for (std::uint32_t p = 0; p < block.n_pages; ++p) {
    if (block.first_page + p < from_page) continue;
    out[p] = store_.page(0, pages[block.first_page + p]);
  }
  return out;
}

std::int64_t DiskTier::n_loading() const {
  std::int64_t n = 0;
  for (const auto& [id, load] : loads_) n += static_cast<std::int64_t>(load->requests.size());
  return n;
}

// ---- reading ---------------------------------------------------------------------------------------------------

bool DiskTier::load(RequestId request, std::span<const std::int32_t> prompt) {
  prompt = prompt.first(prompt.size() - 1);  // the last token is always computed
  const std::int64_t from_page = scheduler_.kv().match(prompt).tokens / page_tokens_;
  std::vector<KvDisk::Block> blocks = disk_.find(prompt, static_cast<std::uint32_t>(from_page));
  if (blocks.empty()) return false;
  if (const auto other = loading_.find(blocks.front().key); other != loading_.end()) {
    loads_.at(other->second)->requests.push_back(request);
    return true;
  }
  // What another load brings, the request will find when it starts.
  const auto shared =
      std::find_if(blocks.begin(), blocks.end(), [&](const auto& b) { return loading_.contains(b.key); });
  blocks.erase(shared, blocks.end());
  const auto end_of = [](const KvDisk::Block& b) { return std::int64_t{b.first_page} + b.n_pages; };
  const SequenceId pin = scheduler_.pin(prompt, static_cast<std::int32_t>(end_of(blocks.back()) - from_page));
  const auto pinned = static_cast<std::int64_t>(scheduler_.kv().pages(pin).size());
  while (!blocks.empty() && end_of(blocks.back()) > pinned) blocks.pop_back();
  if (blocks.empty()) {
    scheduler_.unpin(pin, prompt.first(static_cast<std::size_t>(from_page * page_tokens_)));
    return false;
  }
  const std::uint64_t id = next_id_++;
  auto load = std::make_unique<Load>();
  load->requests.push_back(request);
  load->pin = pin;
  load->tokens.assign(prompt.begin(), prompt.begin() + end_of(blocks.back()) * page_tokens_);
  load->good_tokens = from_page * page_tokens_;
  load->left = blocks.size();
  for (const KvDisk::Block& block : blocks) {
    const std::uint64_t job = next_id_++;
    loading_[block.key] = id;
    load_of_job_[job] = id;
    disk_.read({.id = job,
                .block = block,
                .tokens = {prompt.begin(), prompt.begin() + end_of(block) * page_tokens_},
                .pages = page_bytes(pin, block, from_page),
                .layer_stride = store_.layer_bytes()});
  }
  loads_[id] = std::move(load);
  return true;
}

// Jobs of a load come back in order: one thread reads them.
void DiskTier::take_loaded(const KvDisk::Job& job, std::vector<RequestId>* ready) {
  const std::uint64_t id = load_of_job_.at(job.id);
  Load& load = *loads_.at(id);
  load_of_job_.erase(job.id);
  loading_.erase(job.block.key);
  load.failed |= !job.ok;
  if (!load.failed) {
    const std::int64_t end = (std::int64_t{job.block.first_page} + job.block.n_pages) * page_tokens_;
    loaded_tokens_ += end - load.good_tokens;
    load.good_tokens = end;
  }
  if (--load.left > 0) return;
  scheduler_.unpin(load.pin, std::span(load.tokens).first(static_cast<std::size_t>(load.good_tokens)));
  ready->insert(ready->end(), load.requests.begin(), load.requests.end());
  loads_.erase(id);
}

std::vector<RequestId> DiskTier::collect() {
  std::vector<RequestId> ready;
  for (const KvDisk::Job& job : disk_.take_done()) {
    const auto save = saves_.find(job.id);
    if (save == saves_.end()) {
      take_loaded(job, &ready);
      continue;
    }
    saving_pages_ -= save->second.n_pages;
    scheduler_.unpin(save->second.pin, {});
    saves_.erase(save);
  }
  while (!backlog_.empty() && saving_pages_ < most_saving_pages()) {
    const std::vector<std::int32_t> tokens = std::move(backlog_.front());
    backlog_.pop_front();
    const std::size_t before = backlog_.size();
    save(tokens);
    if (backlog_.size() > before) break;  // again too many
  }
  return ready;
}

// ---- writing ---------------------------------------------------------------------------------------------------

// Pinned pages are missing elsewhere.
std::int64_t DiskTier::most_saving_pages() const {
  return std::max<std::int64_t>(KvDisk::kBlockPages, scheduler_.kv().n_pages() / 4);
}

void DiskTier::save(std::span<const std::int32_t> tokens) {
  if (tokens.size() < KvDisk::kLeastPages * static_cast<std::size_t>(page_tokens_)) return;
  const std::int64_t n_pages = scheduler_.kv().match(tokens).tokens / page_tokens_;
  for (const KvDisk::Block& block : disk_.blocks(tokens, static_cast<std::uint32_t>(n_pages))) {
    if (block.n_pages < KvDisk::kLeastPages) return;
    if (disk_.needs_no_write(block)) continue;
    if (saving_pages_ > 0 && saving_pages_ + block.n_pages > most_saving_pages()) {
      constexpr std::size_t kMostBacklog = 32;
      if (backlog_.size() == kMostBacklog) backlog_.pop_front();
      backlog_.emplace_back(tokens.begin(), tokens.end());
      return;
    }
    const auto held =
        tokens.first((std::size_t{block.first_page} + block.n_pages) * static_cast<std::size_t>(page_tokens_));
    const SequenceId pin = scheduler_.pin(held, 0);
    const std::uint64_t job = next_id_++;
    if (!disk_.write({.id = job,
                      .block = block,
                      .tokens = {held.begin(), held.end()},
                      .pages = page_bytes(pin, block, 0),
                      .layer_stride = store_.layer_bytes()})) {
      scheduler_.unpin(pin, {});
      continue;
    }
    saves_[job] = {.pin = pin, .n_pages = block.n_pages};
    saving_pages_ += block.n_pages;
  }
}

}  // namespace glint
