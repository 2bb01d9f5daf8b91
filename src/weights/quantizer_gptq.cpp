#include "weights/quantizer_gptq.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "weights/quantizer_grid.hpp"

namespace glint {
namespace {

constexpr std::size_t kLanes = 16;  // rows of the matrix that are rounded together
using Lane = std::array<float, kLanes>;

// The loops that take the time are compiled for wide vectors too and chosen when the program starts. They round the
// same: products and sums are never fused. Not under sanitizers, which run before the choice can.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define GLINT_WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define GLINT_WIDE
#endif

// sum += Σ_j r[j] · e[j] for j < n.
GLINT_WIDE void accumulate(const float* r, const Lane* e, std::size_t n, Lane& sum) {
  Lane s = sum;
  for (std::size_t j = 0; j < n; ++j) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) s[lane] += r[j] * e[j][lane];
  }
  sum = s;
}

// to[j] += factor · h[j] for j < n, a factor a lane.
GLINT_WIDE void spread(const float* h, const Lane& factor, std::size_t n, Lane* to) {
  for (std::size_t j = 0; j < n; ++j) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) to[j][lane] += h[j] * factor[lane];
  }
}

constexpr std::int64_t kPiece = 64;  // rows of x that are added to a Hessian together

// h[j] += a · piece[j] for j < n, piece [n, kPiece].
GLINT_WIDE void add_products(const float* a, const float* piece, std::int64_t n, float* h) {
  for (std::int64_t j = 0; j < n; ++j) {
    std::array<float, 16> sums{};
    const float* b = piece + j * kPiece;
    for (std::size_t i = 0; i < kPiece; i += 16) {
      for (std::size_t l = 0; l < 16; ++l) sums[l] += a[i + l] * b[i + l];
    }
    float sum = 0;
    for (const float s : sums) sum += s;
    h[j] += sum;
  }
}

// Dot product of n floats in eight sums.
float dot(const float* a, const float* b, std::size_t n) {
  std::array<float, 8> sums{};
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (std::size_t j = 0; j < 8; ++j) sums[j] += a[i + j] * b[i + j];
  }
  float sum = 0;
  for (; i < n; ++i) sum += a[i] * b[i];
  for (const float s : sums) sum += s;
  return sum;
}

double dot(const double* a, const double* b, std::size_t n) {
  std::array<double, 4> sums{};
  std::size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (std::size_t j = 0; j < 4; ++j) sums[j] += a[i + j] * b[i + j];
  }
  double sum = 0;
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum + ((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// The reversed matrix's Cholesky factor: with columns counted from the end, H = L Lᵀ and R D^½ is L read backwards.
// l [n, n]: rows of L; false when H is not positive definite.
bool cholesky_reversed(const Hessian& h, double added, std::vector<double>& l) {
  const std::int64_t n = h.size();
  const auto at = [n](std::int64_t i, std::int64_t j) { return static_cast<std::size_t>(i * n + j); };
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) {
      // (i, j) reversed is (n-1-i, n-1-j), of which the lower half is (n-1-j, n-1-i).
      double v = static_cast<double>(h.at(n - 1 - j, n - 1 - i)) + (i == j ? added : 0.0);
      v -= dot(&l[at(i, 0)], &l[at(j, 0)], static_cast<std::size_t>(j));
      if (i == j) {
        if (!(v > added * 1e-6) || !std::isfinite(v)) return false;
        l[at(i, i)] = std::sqrt(v);
      } else {
        l[at(i, j)] = v / l[at(j, j)];
      }
    }
  }
  return true;
}

struct Scales {
  Lane scale;
  Lane inverse;
  Lane min;
  void set(std::size_t lane, const GroupScale& s) {
    scale[lane] = s.scale;
    inverse[lane] = 1.0F / s.scale;
    min[lane] = s.min;
  }
};

// Sixteen rows of the matrix, column by column.
class RowBlock {
 public:
  RowBlock(const QuantSpec& spec, const HessianFactor& f, const std::vector<float>& shrink)
      : spec_(spec),
        f_(f),
        shrink_(shrink),
        w_(static_cast<std::size_t>(f.n)),
        e_(static_cast<std::size_t>(f.n)),
        base_(static_cast<std::size_t>(f.n)) {}

  template <typename Grid>
  void quantize(QuantizedWeight& q, const float* values, std::int64_t r0, const Grid& grid, int sweeps) {
    scales_.clear();
    const std::int64_t n_rows = std::min<std::int64_t>(kLanes, q.w.rows - r0);
    for (std::int64_t k = 0; k < f_.n; ++k) {
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        const std::int64_t r = r0 + std::min<std::int64_t>(static_cast<std::int64_t>(lane), n_rows - 1);
        w_[static_cast<std::size_t>(k)][lane] = values[r * f_.n + k];
      }
    }
    for (std::int64_t k0 = 0; k0 < f_.n; k0 += q.w.group) {
      const auto begin = static_cast<std::size_t>(k0);
      const auto end = static_cast<std::size_t>(std::min(f_.n, k0 + q.w.group));
      scales_.push_back(choose_scales(begin, end, grid));
      round_group(begin, end, scales_.back(), grid);
    }
    if (sweeps > 0) start_sweeps();
    for (int i = 0; i < sweeps; ++i) {
      move_codes(q.w.group, grid);
      move_scales(q.w);
    }
    emit(q, r0, n_rows, grid);
  }

 private:
  // to += Σ_{begin ≤ j < end} e_j R_jk.
  void add_feedback(std::size_t k, std::size_t begin, std::size_t end, Lane& to) const {
    accumulate(f_.feedback.data() + k * static_cast<std::size_t>(f_.n) + begin, e_.data() + begin, end - begin, to);
  }

  // Rounds columns [begin, end), whose base_ holds the target without the group's own feedback. Returns the error
  // Σ D_k (target - rounded)².
  template <typename Grid>
  Lane round_group(std::size_t begin, std::size_t end, const Scales& s, const Grid& grid) {
    Lane error{};
    for (std::size_t k = begin; k < end; ++k) {
      Lane target = base_[k];
      add_feedback(k, begin, k, target);
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        const float x = (target[lane] - s.min[lane]) * s.inverse[lane];
        const float rounded = s.scale[lane] * grid.level(x) + s.min[lane];
        e_[k][lane] = w_[k][lane] - rounded;
        error[lane] += f_.cost[k] * (target[lane] - rounded) * (target[lane] - rounded);
      }
    }
    return error;
  }

  template <typename Grid>
  Scales choose_scales(std::size_t begin, std::size_t end, const Grid& grid) {
    // The group's values if nothing in it were rounded: what its scale must cover.
    std::vector<float> free_values(kLanes * (end - begin));
    for (std::size_t k = begin; k < end; ++k) {
      base_[k] = w_[k];
      add_feedback(k, 0, begin, base_[k]);  // e_j of the group itself is not known yet
    }
    for (std::size_t k = begin; k < end; ++k) {
      Lane target = base_[k];
      add_feedback(k, begin, k, target);
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        e_[k][lane] = w_[k][lane] - target[lane];
        free_values[lane * (end - begin) + k - begin] = target[lane];
      }
    }
    std::array<GroupScale, kLanes> plain;
    Scales best{};
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      plain[lane] =
          plain_scale(spec_, free_values.data() + lane * (end - begin), static_cast<std::int64_t>(end - begin));
      best.set(lane, plain[lane]);
    }
    // A search runs the group once a factor: too dear for whole rows, where it gains least.
    if (shrink_.size() == 1 || end - begin > kLargestSearched) return best;
    Lane least = round_group(begin, end, best, grid);
    for (std::size_t f = 1; f < shrink_.size(); ++f) {
      Scales s{};
      for (std::size_t lane = 0; lane < kLanes; ++lane) s.set(lane, shrunk_scale(spec_, plain[lane], shrink_[f]));
      const Lane error = round_group(begin, end, s, grid);
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        if (error[lane] >= least[lane]) continue;
        least[lane] = error[lane];
        best.set(lane, {.scale = s.scale[lane], .min = s.min[lane]});
      }
    }
    return best;
  }

  // ---- sweeps: w - e are the rounded values, g = e H ---------------------------------------------------------

  void start_sweeps() {
    const auto n = static_cast<std::size_t>(f_.n);
    for (std::size_t j = 0; j < n; ++j) {
      base_[j] = Lane{};
      accumulate(f_.moments.data() + j * n, e_.data(), n, base_[j]);  // base_ is g from here on
    }
  }

  // The rounded value of column k that makes the error least is ŵ + g_k / H_kk: to the nearest code of it.
  template <typename Grid>
  void move_codes(std::int64_t group, const Grid& grid) {
    const auto n = static_cast<std::size_t>(f_.n);
    for (std::size_t k = 0; k < n; ++k) {
      const Scales& s = scales_[k / static_cast<std::size_t>(group)];
      const float* h = f_.moments.data() + k * n;
      const float inverse = 1.0F / h[k];
      Lane back;  // minus the change
      float any = 0;
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        const float now = w_[k][lane] - e_[k][lane];
        const float x = (now + base_[k][lane] * inverse - s.min[lane]) * s.inverse[lane];
        back[lane] = now - (s.scale[lane] * grid.level(x) + s.min[lane]);
        // A change below half a step is rounding noise of the same code.
        if (std::fabs(back[lane]) < 0.01F * std::fabs(s.scale[lane])) back[lane] = 0;
        any += std::fabs(back[lane]);
      }
      if (any == 0) continue;
      for (std::size_t lane = 0; lane < kLanes; ++lane) e_[k][lane] += back[lane];
      spread(h, back, n, base_.data());
    }
  }

  // Scaling a group's rounded values v by 1 + t, its zero point kept: the error falls most at t = (v·g) / (v H v).
  void move_scales(const Weight& w) {
    const auto n = static_cast<std::size_t>(f_.n);
    std::vector<Lane> v(static_cast<std::size_t>(w.group));
    for (std::size_t i = 0; i < scales_.size(); ++i) {
      const std::size_t begin = i * v.size(), end = std::min(n, begin + v.size());
      Lane along{}, square{};
      for (std::size_t k = begin; k < end; ++k) {
        for (std::size_t lane = 0; lane < kLanes; ++lane) {
          v[k - begin][lane] = w_[k][lane] - e_[k][lane];
          along[lane] += v[k - begin][lane] * base_[k][lane];
        }
      }
      for (std::size_t k = begin; k < end; ++k) {
        Lane hv{};
        accumulate(f_.moments.data() + k * n + begin, v.data(), end - begin, hv);
        for (std::size_t lane = 0; lane < kLanes; ++lane) square[lane] += v[k - begin][lane] * hv[lane];
      }
      const Scales before = scales_[i];
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        if (!(square[lane] > 0)) continue;
        const GroupScale now{.scale = before.scale[lane], .min = before.min[lane]};
        const GroupScale next = shrunk_scale(spec_, now, 1.0F + along[lane] / square[lane]);
        const float t = next.scale / now.scale - 1.0F;  // as the scale's type allows it
        if (2 * t * along[lane] > t * t * square[lane]) scales_[i].set(lane, next);
      }
      for (std::size_t k = begin; k < end; ++k) {
        Lane change;  // minus what is added to v
        for (std::size_t lane = 0; lane < kLanes; ++lane) {
          const float level = (v[k - begin][lane] - before.min[lane]) * before.inverse[lane];
          const float to = level * scales_[i].scale[lane] + scales_[i].min[lane];
          change[lane] = scales_[i].scale[lane] == before.scale[lane] ? 0.0F : v[k - begin][lane] - to;
          e_[k][lane] += change[lane];
        }
        spread(f_.moments.data() + k * n, change, n, base_.data());
      }
    }
  }

  template <typename Grid>
  void emit(QuantizedWeight& q, std::int64_t r0, std::int64_t n_rows, const Grid& grid) const {
    const auto group = static_cast<std::size_t>(q.w.group);
    for (std::size_t lane = 0; lane < static_cast<std::size_t>(n_rows); ++lane) {
      const std::int64_t r = r0 + static_cast<std::int64_t>(lane);
      for (std::size_t k = 0; k < static_cast<std::size_t>(f_.n); ++k) {
        const Scales& s = scales_[k / group];
        const auto col = static_cast<std::int64_t>(k);
        if (k % group == 0) set_scale(q, r, col / q.w.group, {.scale = s.scale[lane], .min = s.min[lane]});
        set_code(q, r, col, grid.code((w_[k][lane] - e_[k][lane] - s.min[lane]) * s.inverse[lane]));
      }
    }
  }

  static constexpr std::size_t kLargestSearched = 256;

  const QuantSpec& spec_;
  const HessianFactor& f_;
  const std::vector<float>& shrink_;
  std::vector<Lane> w_;         // the values
  std::vector<Lane> e_;         // w - ŵ of the columns done
  std::vector<Lane> base_;      // targets of the current group without its own feedback; in the sweeps: e H
  std::vector<Scales> scales_;  // of the groups done
};

}  // namespace

// Transposed, so that an element of H takes a dot product of contiguous memory.
void Hessian::add(const float* x, std::int64_t rows, const float* weights, ThreadPool* pool) {
  if (piece_.empty()) piece_.assign(static_cast<std::size_t>(n_ * kPiece), 0.0F);
  for (std::int64_t r = 0; r < rows; ++r) {
    const float factor = weights != nullptr ? std::sqrt(weights[r]) : 1.0F;
    for (std::int64_t i = 0; i < n_; ++i)
      piece_[static_cast<std::size_t>(i * kPiece + pending_)] = factor * x[r * n_ + i];
    if (++pending_ == kPiece) add_piece(pool);
  }
  rows_seen_ += rows;
}

void Hessian::add_piece(ThreadPool* pool) {
  const auto add_row = [&](std::int64_t i, int) {
    add_products(&piece_[static_cast<std::size_t>(i * kPiece)], piece_.data(), i + 1, &h_[start_of_row(i)]);
  };
  if (pool != nullptr) pool->parallel_for(n_, add_row);
  for (std::int64_t i = 0; pool == nullptr && i < n_; ++i) add_row(i, 0);
  pending_ = 0;
  std::fill(piece_.begin(), piece_.end(), 0.0F);
}

void Hessian::finish() {
  if (pending_ > 0) add_piece(nullptr);
}

std::vector<float> Hessian::diagonal() const {
  std::vector<float> d(static_cast<std::size_t>(n_));
  for (std::int64_t i = 0; i < n_; ++i) d[static_cast<std::size_t>(i)] = at(i, i);
  return d;
}

HessianFactor factor(const Hessian& h, double damping) {
  const std::int64_t n = h.size();
  CHECK(h.is_finished(), "rows are pending");
  double mean = 0;
  for (std::int64_t i = 0; i < n; ++i) mean += static_cast<double>(h.at(i, i)) / static_cast<double>(n);
  if (!(mean > 0)) mean = 1;  // nothing seen: the identity, which makes it plain rounding
  std::vector<double> l(static_cast<std::size_t>(n * n), 0.0);
  double added = damping * mean;
  while (!cholesky_reversed(h, added, l)) added = std::max(added * 10, mean * 1e-4);

  HessianFactor f{.n = n,
                  .feedback = std::vector<float>(static_cast<std::size_t>(n * n), 0.0F),
                  .cost = std::vector<float>(static_cast<std::size_t>(n)),
                  .moments = std::vector<float>(static_cast<std::size_t>(n * n))};
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) {
      const double v = (static_cast<double>(h.at(i, j)) + (i == j ? added : 0.0)) / mean;
      f.moments[static_cast<std::size_t>(i * n + j)] = f.moments[static_cast<std::size_t>(j * n + i)] =
          static_cast<float>(v);
    }
  }
  for (std::int64_t k = 0; k < n; ++k) {
    const std::int64_t m = n - 1 - k;  // k counted from the end
    const double d = l[static_cast<std::size_t>(m * n + m)];
    f.cost[static_cast<std::size_t>(k)] = static_cast<float>(d * d / mean);
    for (std::int64_t j = 0; j < k; ++j) {
      f.feedback[static_cast<std::size_t>(k * n + j)] =
          static_cast<float>(l[static_cast<std::size_t>((n - 1 - j) * n + m)] / d);
    }
  }
  return f;
}

QuantizedWeight quantize_gptq(const QuantSpec& spec, const float* values, std::int64_t rows, std::int64_t cols,
                              const HessianFactor& f, const ScaleSearch& search, ThreadPool& pool, int sweeps) {
  CHECK(spec.group_rows == 1 && cols == f.n, spec.name() + ", " + std::to_string(f.n));
  QuantizedWeight q = allocate_quantized(spec, rows, cols);
  const std::vector<float> shrink = shrink_factors(spec, search);
  constexpr auto kStep = static_cast<std::int64_t>(kLanes);
  quantizer::with_grid(spec, [&](const auto& grid) {
    pool.parallel_for((rows + kStep - 1) / kStep, [&](std::int64_t item, int) {
      RowBlock block(spec, f, shrink);
      block.quantize(q, values, item * kStep, grid, sweeps);
    });
  });
  return q;
}

double output_error(const QuantizedWeight& q, const float* values, const HessianFactor& f) {
  const auto n = static_cast<std::size_t>(f.n);
  std::vector<float> e(n);
  double sum = 0;
  for (std::int64_t r = 0; r < q.w.rows; ++r) {
    decode_row(q.w, r, e.data());
    for (std::size_t k = 0; k < n; ++k) e[k] = values[static_cast<std::size_t>(r) * n + k] - e[k];
    for (std::size_t k = 0; k < n; ++k) {
      const double c = e[k] + dot(e.data(), f.feedback.data() + k * n, k);
      sum += static_cast<double>(f.cost[k]) * c * c;
    }
  }
  return sum;
}

}  // namespace glint
