#pragma once
// What an op must move and compute at least: the floor that every timing is compared with.

#include <cstdint>

#include "ops/params.hpp"

namespace glint {

// bytes: weights read once, activations and cache rows read and written once. flops: 2 a multiply-add.
struct Cost {
  double bytes = 0;
  double flops = 0;
  Cost& operator+=(const Cost& o) {
    bytes += o.bytes;
    flops += o.flops;
    return *this;
  }
};

Cost cost(const EmbedParams& p);
Cost cost(const RmsNormParams& p);
Cost cost(const LinearParams& p);
Cost cost(const MlaProjectParams& p);
Cost cost(const MlaAppendParams& p);
Cost cost(const MlaAttendParams& p);  // of each sequence the cheaper form; reads the host arrays of p.batch
Cost cost(const RouteParams& p);
Cost cost(const MoeParams& p);  // reads p.ids to count the distinct experts
Cost cost(const MlpParams& p);
Cost cost(const LmHeadParams& p);
Cost cost(const MtpInputParams& p);

}  // namespace glint
