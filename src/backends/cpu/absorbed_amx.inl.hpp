// kv_b in INT8 against 16-bit codes of what it meets, by AMX: the exact sums of absorbed_vnni.inl.hpp, for many rows.
// Included by kernels_amx.inl.hpp.
//
// A code is 256 h + l, h a signed byte and l an unsigned one, so that 256 Σ w h + Σ w l is the sum itself.

alignas(64) inline constexpr ByteOrder kCodeOrder = byte_order([](int i) { return i; });

// Rows of x as bytes: [h, l][row][Depth].
template <std::int64_t Depth>
struct WholeBytes {
  alignas(64) std::int8_t bytes[2][kRowChunk + 12][Depth];  // whole tiles

  void set(std::int64_t m, const Code* codes) {
    for (std::int64_t k = 0; k < Depth; k += 64) {
      const I a = load_ints(codes + k), b = load_ints(codes + k + 32);
      store_ints(bytes[0][m] + k, pick_bytes(a, load_ints(kCodeOrder.high), b));
      store_ints(bytes[1][m] + k, pick_bytes(a, load_ints(kCodeOrder.low), b));
    }
  }
  // 16 rows from m on against two columns of tiles of W, each [Depth / 64] tiles one after the other.
  void multiply(Tiles& tiles, std::int64_t m, const std::int8_t* w0, const std::int8_t* w1) const {
    clear_sums(tiles);
    for (std::int64_t k = 0; k < Depth; k += 64) {
      tiles.load<4>(bytes[0][m] + k, Depth);
      tiles.load<5>(bytes[1][m] + k, Depth);
      tiles.load<6>(w0 + k * 16, 64);
      tiles.multiply<0, 4, 6>();
      tiles.multiply_unsigned<1, 5, 6>();
      tiles.load<7>(w1 + k * 16, 64);
      tiles.multiply<2, 4, 7>();
      tiles.multiply_unsigned<3, 5, 7>();
    }
  }
};

inline V whole_sum(const TileSums& sums, int i, std::int64_t r) {
  return to_floats(add_ints(shift_left(load_ints(sums[2 * i][r]), 8), load_ints(sums[2 * i + 1][r])));
}

// W_UV: rows [n0, n1) of W, a multiple of 16.
void dot_whole_amx(const DotArgs& a) {
  WholeBytes<kLatent> x;
  alignas(64) std::int8_t w[kStrip / 16][kLatent / 64][16][64];  // [group][step][word][16 rows · 4]
  alignas(64) float scales[kStrip] = {};
  alignas(64) TileSums sums;
  Tiles tiles;
  tiles.shape(whole_tiles());
  const std::int64_t rows = a.m1 - a.m0;
  for (std::int64_t m = 0; m < rows; ++m)
    x.set(m, static_cast<const Code*>(a.x->data) + (a.m0 + m) * kCodeStride<kLatent>);
  for (std::int64_t n = a.n0; n < a.n1; n += kStrip) {
    const std::int64_t count = a.n1 - n < kStrip ? a.n1 - n : kStrip;
    const std::int64_t groups = count / kLanes;
    for (std::int64_t j = 0; j < count; ++j) scales[j] = factor_at(a.w.scales, a.w.scale_dtype, n + j);
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::uint8_t* from[16];
      for (std::int64_t i = 0; i < 16; ++i)
        from[i] = reinterpret_cast<const std::uint8_t*>(codes_of_row(a.w, n + g * 16 + i));
      for (std::int64_t step = 0; step < kLatent / 64; ++step) {
        I v[16];
        load_transposed(from, step * 64, v);
        for (int i = 0; i < 16; ++i) store_ints(w[g][step][i], v[i]);
      }
    }
    for (std::int64_t m = 0; m < rows; m += 16) {
      const std::int64_t some = rows - m < 16 ? rows - m : 16;
      for (std::int64_t g = 0; g < groups; g += 2) {
        const std::int64_t other = g + 1 < groups ? g + 1 : g;
        x.multiply(tiles, m, w[g][0][0], w[other][0][0]);
        store_sums(tiles, sums);
        for (std::int64_t r = 0; r < some; ++r) {
          const V scale = set1(a.x->scales[(a.m0 + m + r) * a.x->scale_stride]);
          float* out = a.out + (m + r) * a.out_stride + (n - a.n0) + g * kLanes;
          store(out, mul(whole_sum(sums, 0, r), mul(scale, load(scales + g * kLanes))));
          if (other != g) store(out + kLanes, mul(whole_sum(sums, 1, r), mul(scale, load(scales + other * kLanes))));
        }
      }
    }
  }
  tiles.release();
}

// W_UK: columns of W, a multiple of 64.
void combine_whole_amx(const CombineArgs& a) {
  WholeBytes<kNope> x;
  alignas(64) std::int8_t w[4][kNope / 64][16][64];  // of 64 columns: [part][step][word], see AmxAttend::turn_values
  alignas(64) Code codes[kNope];
  alignas(64) float scales[kNope];
  float by[kRowChunk];
  alignas(64) TileSums sums[2];
  Tiles tiles;
  tiles.shape(whole_tiles());
  for (std::int64_t k = 0; k < kNope; ++k) scales[k] = factor_at(a.w.scales, a.w.scale_dtype, k);
  for (std::int64_t m = 0; m < a.rows; ++m) {
    alignas(64) float v[kNope];
    for (std::int64_t k = 0; k < kNope; k += kLanes)
      store(v + k, mul(load(a.a + m * a.a_stride + k), load(scales + k)));
    by[m] = encode_whole(v, kNope, codes) * a.scale;
    x.set(m, codes);
  }
  for (std::int64_t column = 0; column < kLatent; column += 64) {
    for (std::int64_t k = 0; k < kNope; k += 4) {
      const auto row = [&](std::int64_t i) { return load_ints(codes_of_row(a.w, k + i) + column); };
      I v[4];
      turn_four_rows(row(0), row(1), row(2), row(3), v);
      for (int p = 0; p < 4; ++p) store_ints(w[p][k / 64][k % 64 / 4], v[p]);
    }
    for (std::int64_t m = 0; m < a.rows; m += 16) {
      const std::int64_t some = a.rows - m < 16 ? a.rows - m : 16;
      for (int half = 0; half < 2; ++half) {
        x.multiply(tiles, m, w[2 * half][0][0], w[2 * half + 1][0][0]);
        store_sums(tiles, sums[half]);
      }
      for (std::int64_t r = 0; r < some; ++r) {
        const V scale = set1(by[m + r]);
        V v[4];
#pragma GCC unroll 4
        for (int p = 0; p < 4; ++p) v[p] = mul(whole_sum(sums[p / 2], p % 2, r), scale);
        turn_quads(v);
        float* out = a.out + (m + r) * a.out_stride + column;
#pragma GCC unroll 4
        for (int p = 0; p < 4; ++p) store(out + p * kLanes, v[p]);
      }
    }
  }
  tiles.release();
}

void combine_amx(const CombineArgs& a) {
  const bool whole = a.w.format == WeightFormat::kI8 && a.w.rows == kNope && a.w.cols == kLatent;
  if (!whole || a.rows < kTilesFrom) return g_base->combine(a);
  combine_whole_amx(a);
}
