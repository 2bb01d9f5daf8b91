#include "engine/request_state.hpp"

#include <algorithm>
#include <utility>

namespace glint {
namespace {
bool contains(std::span<const std::int32_t> ids, std::int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}
}  // namespace

Event RequestState::take(const Sample& sample, std::span<const std::int32_t> eos_ids, double now) {
  if (first_token_s == 0) first_token_s = now;
  last_token_s = now;
  tokens.push_back(sample.token);
  if (sampling.needs_counts()) counts.add_generated(sample.token);

  Event event;
  event.token = sample.token;
  event.prefill_done = prompt_tokens;
  if (sampling.logprobs >= 0) {
    event.logprob = TokenLogprob{sample.token, sample.logprob};
    event.top_logprobs.reserve(static_cast<std::size_t>(sample.n_top));
    for (int i = 0; i < sample.n_top; ++i) {
      const ScoredToken& top = sample.top[static_cast<std::size_t>(i)];
      event.top_logprobs.push_back({top.id, top.logprob});
    }
  }

  const std::string* stop = nullptr;
  if (!ignore_eos && contains(eos_ids, sample.token)) {
    event.finish = Finish::kEos;
  } else if (contains(stop_ids, sample.token)) {
    event.finish = Finish::kStop;
  } else if (decoder) {
    stop = stops.feed(decoder->push(sample.token), &event.text);  // end tokens have no text
  }
  if (stop == nullptr && event.finish == Finish::kNone && generated() >= max_tokens) event.finish = Finish::kLength;
  if (stop == nullptr && event.finish != Finish::kNone && decoder) {
    stop = stops.feed(decoder->flush(), &event.text);
    if (stop == nullptr) stops.flush(&event.text);
  }
  if (stop != nullptr) {
    event.finish = Finish::kStop;
    event.stop_string = *stop;
  }
  event.usage = usage();
  return event;
}

Event RequestState::end(Finish finish, std::string error) {
  Event event;
  stops.flush(&event.text);  // whole characters that were held back belong to the answer
  event.prefill_done = first_token_s > 0 ? prompt_tokens : 0;
  event.finish = finish;
  event.error = std::move(error);
  event.usage = usage();
  return event;
}

Usage RequestState::usage() const {
  Usage u;
  u.prompt_tokens = prompt_tokens;
  u.cached_tokens = cached_tokens;
  u.generated_tokens = generated();
  u.seed = sampling.seed;
  if (started_s > 0) u.queue_s = started_s - submitted_s;
  if (first_token_s > 0) u.prefill_s = first_token_s - started_s;
  if (last_token_s > 0) u.decode_s = last_token_s - first_token_s;
  return u;
}

}  // namespace glint
