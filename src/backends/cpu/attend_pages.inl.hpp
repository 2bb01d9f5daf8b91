// What attention does with each page whatever its rows become. Included inside the kernel namespace, after exp.inl.hpp.

#include "backends/cpu/attend_positions.inl.hpp"

inline constexpr std::int64_t kFewQueries = kStreamedQueries;

inline float exp_one(float x) {
  float v[kLanes];
  store(v, exp(set1(x)));
  return v[0];
}

inline void scale_latent(float* latent, float by) {
  if (by == 1.0F) return;  // the same bits, and the usual case: the maximum seldom moves
  for (std::int64_t c = 0; c < kLatent; c += kLanes) store(latent + c, mul(load(latent + c), set1(by)));
}

// Scores of one query over a page → exp(s - top), zeros outside [lo, hi); updates the running maximum, sum and latent.
inline void soften(float* s, std::int64_t lo, std::int64_t hi, float* top, float* total, float* latent) {
  for (std::int64_t j = 0; j < lo; ++j) s[j] = kLowest;
  for (std::int64_t j = hi; j < kPageTokens; ++j) s[j] = kLowest;
  V highest = set1(*top);
  for (std::int64_t j = 0; j < kPageTokens; j += kLanes) highest = larger(load(s + j), highest);
  float tops[kLanes];
  store(tops, highest);
  float new_top = tops[0];
  for (int i = 1; i < kLanes; ++i) new_top = tops[i] > new_top ? tops[i] : new_top;
  V partial = zero();
  for (std::int64_t j = 0; j < kPageTokens; j += kLanes) {
    const V e = exp(sub(load(s + j), set1(new_top)));
    store(s + j, e);
  }
  for (std::int64_t j = 0; j < lo; ++j) s[j] = 0;
  for (std::int64_t j = hi; j < kPageTokens; ++j) s[j] = 0;
  for (std::int64_t j = 0; j < kPageTokens; j += kLanes) partial = add(partial, load(s + j));
  const float keep = *total == 0.0F ? 1.0F : exp_one(*top - new_top);  // nothing to keep yet: latent is zero
  *total = *total * keep + sum(partial);
  *top = new_top;
  scale_latent(latent, keep);
}

// Queries [i, n) in groups of four, two and one: fn<M>(i).
template <typename Fn>
inline void for_few(std::int64_t n, const Fn& fn) {
  std::int64_t i = 0;
  for (; i + 4 <= n; i += 4) fn.template operator()<4>(i);
  for (; i + 2 <= n; i += 2) fn.template operator()<2>(i);
  if (i < n) fn.template operator()<1>(i);
}

// The same in whole tiles and what is left of them.
template <typename Fn>
inline void for_tiles(std::int64_t n, const Fn& fn) {
  std::int64_t i = 0;
  for (; whole_tile(n - i); i += kTileM) fn.template operator()<kTileM>(i);
  for (; i + 2 <= n; i += 2) fn.template operator()<2>(i);
  if (i < n) fn.template operator()<1>(i);
}

template <typename Page>
inline void attend_pages(const AttendArgs& a, Page page_of) {
  for (std::int64_t i = 0; i < a.n; ++i) {
    a.out.top[i] = kLowest;
    a.out.sum[i] = 0;
  }
  __builtin_memset(a.out.latent, 0, static_cast<std::size_t>(a.n * kLatent) * sizeof(float));
  const auto [from, to] = seen_positions(a);
  for (std::int64_t page = from / kPageTokens * kPageTokens; page < to; page += kPageTokens) {
    const std::int64_t lo = from > page ? from - page : 0;
    const std::int64_t hi = to - page < kPageTokens ? to - page : kPageTokens;
    page_of.open(page, lo, hi);
    page_of.score(lo, hi);
    for (std::int64_t i = 0; i < a.n; ++i) {
      float* s = page_of.scores + i * kPageTokens;
      const std::int64_t first = a.first[i] > page + lo ? a.first[i] - page : lo;
      const std::int64_t last = a.last[i] < page + hi ? a.last[i] - page : hi;
      if (first < last) {
        soften(s, first, last, a.out.top + i, a.out.sum + i, a.out.latent + i * kLatent);
      } else {
        __builtin_memset(s, 0, kPageTokens * sizeof(float));
      }
    }
    page_of.weigh(lo, hi);
  }
}
