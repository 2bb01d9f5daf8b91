#pragma once
// The counter-based random numbers of a request: a pure function of (seed, position, purpose). No state is carried, so
// batching, chunking, preemption and speculation cannot change a draw.

#include <array>
#include <cstdint>

namespace glint {

// Independent draws of one position.
enum class Draw : std::uint32_t {
  kToken = 0,     // the sampler's token
  kDraft = 1,     // a draft token, from the drafter's distribution
  kAccept = 2,    // whether a draft is accepted
  kResidual = 3,  // the token in place of a refused draft
};

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key);

// Uniform in [0, 1), 53 bits. position: tokens that precede the drawn one.
double uniform(std::uint64_t seed, std::int64_t position, Draw draw);

}  // namespace glint
