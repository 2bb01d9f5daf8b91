#pragma once
// Error-compensated rounding: the columns of a matrix are rounded one after another, and each column's target takes up
// what the rounding of the columns before it did to the output. Minimises Σ_x ‖(W - Ŵ) x‖² = tr (W-Ŵ) H (W-Ŵ)ᵀ with
// H = Σ x xᵀ greedily. GPTQ (Frantar et al., arXiv 2210.17323) in the form of LDLQ (Chee et al., arXiv 2307.13304),
// which needs a factor of H and no inverse:
//   H = R D Rᵀ, R unit upper triangular:   error = Σ_k D_k (e_k + Σ_{j<k} e_j R_jk)²,   e = w - ŵ of a row,
// so that ŵ_k = round(w_k + Σ_{j<k} e_j R_jk) makes each term as small as rounding allows.

#include <cstdint>
#include <vector>

#include "weights/quantizer.hpp"

namespace glint {

// Σ weight · x xᵀ over the rows seen.
class Hessian {
 public:
  explicit Hessian(std::int64_t n) : n_(n), h_(start_of_row(n), 0.0F) {}

  std::int64_t size() const { return n_; }
  std::int64_t rows_seen() const { return rows_seen_; }
  // Adds x [rows, n], row r with weight weights[r] (null: 1). With a pool, by all its threads. Rows are gathered into
  // pieces, so that an expert that gets a few at a time costs no more a row.
  void add(const float* x, std::int64_t rows, const float* weights = nullptr, ThreadPool* pool = nullptr);
  // Adds the last piece. Before reading.
  void finish();
  bool is_finished() const { return pending_ == 0; }
  // Element (i, j), j ≤ i; the other half is not kept.
  float at(std::int64_t i, std::int64_t j) const { return h_[start_of_row(i) + static_cast<std::size_t>(j)]; }
  std::vector<float> diagonal() const;

 private:
  void add_piece(ThreadPool* pool);
  static std::size_t start_of_row(std::int64_t i) { return static_cast<std::size_t>(i * (i + 1) / 2); }

  std::int64_t n_;
  std::int64_t rows_seen_ = 0;
  std::int64_t pending_ = 0;  // rows in piece_
  std::vector<float> piece_;  // [n, 64], transposed
  std::vector<float> h_;      // rows of the lower half, one after another
};

struct HessianFactor {
  std::int64_t n = 0;
  std::vector<float> feedback;  // [n, n]: row k holds R_jk for j < k
  std::vector<float> cost;      // [n]: D_k
  std::vector<float> moments;   // [n, n]: H itself, damped, in the same units
};

// damping: share of the mean of the diagonal that is added to it. Grows tenfold until the factor exists.
HessianFactor factor(const Hessian& h, double damping);

// Rounds values [rows, cols] with feedback; each group's scale is the one of the search that gives the least error with
// feedback inside the group. Then `sweeps` times: each code moves to where the others want it (the greedy order could
// not know the later ones), and each scale to its least squares; neither is done unless the error falls.
// spec.group_rows must be 1 and cols the factor's size (CHECK).
QuantizedWeight quantize_gptq(const QuantSpec& spec, const float* values, std::int64_t rows, std::int64_t cols,
                              const HessianFactor& factor, const ScaleSearch& search, ThreadPool& pool, int sweeps = 4);

// Σ_rows e H eᵀ of a quantised matrix against `values`, through the factor: the error that quantize_gptq minimises.
double output_error(const QuantizedWeight& q, const float* values, const HessianFactor& factor);

}  // namespace glint
