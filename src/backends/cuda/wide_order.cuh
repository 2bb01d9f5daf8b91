#pragma once
// Which value stands at a place of a row of x in a WideOrder, and where a value stands.

#include "backends/cuda/kernels.hpp"

namespace glint::cuda {

__device__ __forceinline__ int wide_value(WideOrder o, int place) {
  const int p = place % 8, in_eight = o.apart ? p / 2 + p % 2 * 4 : p;
  if (o.share_log2 == 0) return place - p + in_eight;
  const int r = place & ((4 << o.share_log2) - 1), pair = r / 8 % 4;
  const int v = o.apart ? pair + r % 2 * 4 : 2 * pair + r % 2;
  return place - r + (p / 2 << o.share_log2) + r / 32 * 8 + v;
}
__device__ __forceinline__ int wide_place(WideOrder o, int value) {
  const int v = value % 8, pair = o.apart ? v % 4 : v / 2, of_pair = o.apart ? v / 4 : v % 2;
  if (o.share_log2 == 0) return value - v + 2 * pair + of_pair;
  const int r = value & ((4 << o.share_log2) - 1), eight = (r & ((1 << o.share_log2) - 1)) / 8;
  return value - r + eight * 32 + pair * 8 + (r >> o.share_log2) * 2 + of_pair;
}

}  // namespace glint::cuda
