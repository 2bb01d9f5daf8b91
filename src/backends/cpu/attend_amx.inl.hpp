// Attention by AMX: products of 16-bit codes as products of bytes. Included by kernels_amx.inl.hpp.
//
// Cache rows, queries and softmax weights become codes times a scale, as in attend_words.inl.hpp. A code is 256 h + l
// with h and l signed bytes, and a product of two codes
//   65,536 h h' + 256 (h l' + l h') + l l'
// whose four sums are made apart. INT8 rows are their own h: two sums. 256 Σ h h' + Σ (h l' + l h') fits 32 bits, for
// the 512 columns of a score and the 256 positions of a chunk: |h| ≤ 127, |l| ≤ 128. (Without l l' a cache with large
// channels loses nine times what halves lose.)
//
// Scores: 16 rows of the cache × 16 queries × 64 columns a product; queries are turned once a block. Weights of all
// positions of the chunk have one scale, so that the chunk's weighted rows are one sum. A query's bits depend on the
// query and the chunk's rows alone.

inline constexpr float kByteCodeMost = 127 * 256 + 127;
inline constexpr std::int64_t kSteps = kKvRow / 64;  // of 64 columns: eight latent ones, one rotary
inline constexpr std::int64_t kLatentSteps = kLatent / 64;
inline constexpr std::int64_t kChunkPages = kChunk / kPageTokens;
inline constexpr std::int64_t kQueryTiles = kMostQueries / 16;
static_assert(kMostQueries % 16 == 0 && kRope == 64 && kLatent % 64 == 0);
static_assert(std::int64_t{kLatent} * 127 * 127 * 256 + std::int64_t{kLatent} * 127 * 128 < (std::int64_t{1} << 31));

// Two vectors of codes → 64 bytes in the order of columns: here of codes in the order of codes_of.
struct ByteOrder {
  std::uint8_t low[64], high[64];
};
// place(i): the code, of the 64 of two vectors, that belongs to column i.
template <typename Fn>
constexpr ByteOrder byte_order(const Fn& place) {
  ByteOrder order{};
  for (int i = 0; i < 64; ++i) {
    order.low[i] = static_cast<std::uint8_t>(2 * place(i));
    order.high[i] = static_cast<std::uint8_t>(2 * place(i) + 1);
  }
  return order;
}
alignas(64) inline constexpr ByteOrder kByteOrder = byte_order([](int i) {
  const int column = i % 32;
  return i / 32 * 32 + column % 16 / 4 * 8 + column / 16 * 4 + column % 4;
});

inline I high_bytes(I a, I b) {
  const I half = set1_words(128);
  return pick_bytes(add_words(a, half), load_ints(kByteOrder.high), add_words(b, half));
}
inline I low_bytes(I a, I b) { return pick_bytes(a, load_ints(kByteOrder.low), b); }

// Values [0, N) · by as bytes, high ones first and `apart` bytes on the low ones.
template <std::int64_t N>
inline void store_code_bytes(const float* v, float by, std::int8_t* to, std::int64_t apart) {
  for (std::int64_t c = 0; c < N; c += 64) {
    const I a = codes_at(v + c, by), b = codes_at(v + c + 32, by);
    store_ints(to + c, high_bytes(a, b));
    store_ints(to + c + apart, low_bytes(a, b));
  }
}

// Queries as they are multiplied: in the scratch, where the chunks of a block find them again.
struct AmxQueries {
  std::int8_t turned[2][kSteps][kQueryTiles][16][64];  // [high, low][step][tile][word][query][4]
  float scales[2][kMostQueries];                       // latent, rotary; 0 for queries that are not there
};
static_assert(sizeof(AmxQueries) <= kAttendScratch * sizeof(float));

struct AmxAttend {
  const AttendArgs& a;
  AmxQueries& q;
  std::int64_t queries;  // tiles of 16
  Tiles tiles;
  Fetch soon;
  bool whole_bytes;  // rows have high bytes only

  // Bytes: high, low.
  alignas(64) std::int8_t rows[2][kPageTokens][kKvRow];
  alignas(64) std::int8_t values[2][kLatentSteps][4][kChunkPages][kPageTokens / 4][64];  // see turn_values
  alignas(64) std::int8_t weights[2][kChunkPages][kMostQueries][kPageTokens];
  alignas(64) float scores[kMostQueries][kChunk];
  alignas(64) float row_scales[2][kPageTokens];
  alignas(64) float value_scales[kChunk];  // latent, 0 for a row that is not finite: it shows in the scores
  alignas(64) float by[kMostQueries];      // of weights
  alignas(64) TileSums sums[4];

  explicit AmxAttend(const AttendArgs& args)
      : a(args),
        q(*reinterpret_cast<AmxQueries*>(args.scratch)),
        queries((args.n + 15) / 16),
        soon{static_cast<const char*>(args.soon.data), args.soon.stride, args.soon.bytes, 0, args.soon.pieces},
        whole_bytes(args.pages.codec == KvCodec::kInt8) {
    tiles.shape(whole_tiles());
  }

  // The scale of a query's part, whose codes go to `to`.
  template <std::int64_t N>
  static float encode_part(const float* v, std::int8_t* to, std::int64_t apart) {
    const float most = largest<N>(v);
    const bool finite = most < __builtin_inff();
    if (!finite || most < kTiniest) {
      __builtin_memset(to, 0, N);
      __builtin_memset(to + apart, 0, N);
      return finite ? 0 : not_a_number();
    }
    store_code_bytes<N>(v, kByteCodeMost / most, to, apart);
    return most / kByteCodeMost;
  }

  void encode_queries() {
    constexpr std::int64_t kApart = 16 * kKvRow;
    alignas(64) std::int8_t bytes[2 * kApart];
    for (std::int64_t t = 0; t < queries; ++t) {
      for (std::int64_t i = 0; i < 16; ++i) {
        const std::int64_t n = t * 16 + i;
        std::int8_t* to = bytes + i * kKvRow;
        if (n >= a.n) {
          __builtin_memset(to, 0, kKvRow);
          __builtin_memset(to + kApart, 0, kKvRow);
          q.scales[0][n] = q.scales[1][n] = 0;
          continue;
        }
        q.scales[0][n] = encode_part<kLatent>(a.q + n * kKvRow, to, kApart);
        q.scales[1][n] = encode_part<kRope>(a.q + n * kKvRow + kLatent, to + kLatent, kApart);
      }
      for (int half = 0; half < 2; ++half) {
        const std::uint8_t* row[16];
        for (int i = 0; i < 16; ++i) row[i] = reinterpret_cast<const std::uint8_t*>(bytes + half * kApart + i * kKvRow);
        for (std::int64_t step = 0; step < kSteps; ++step) {
          I v[16];
          load_transposed(row, step * 64, v);
          for (int w = 0; w < 16; ++w) store_ints(q.turned[half][step][t][w], v[w]);
        }
      }
    }
  }

  // `ahead`: 16 rows that are read next, or null.
  template <typename Rows>
  void encode_group(const char* page, const char* ahead, std::int64_t first, std::int64_t lo, std::int64_t hi,
                    float* value) {
    const std::int64_t row_bytes = kv_row_bytes(a.pages.codec);
    const Rows from(a.pages.codec, page + first * row_bytes, lo - first, hi - first);
    for (std::int64_t j = 0; j < kGroupRows; ++j) {
      const float latent = from.latent.scale[j];
      row_scales[0][first + j] = whole_bytes ? latent / 256 : latent;
      row_scales[1][first + j] = from.rotary.scale[j];
      value[first + j] = latent < __builtin_inff() ? row_scales[0][first + j] : 0;
    }
    for (std::int64_t j = 0; j < kGroupRows; ++j) {
      if (ahead != nullptr) {
        for (std::int64_t i = 0; i < row_bytes; i += 64) __builtin_prefetch(ahead + j * row_bytes + i, 0, 2);
      }
      std::int8_t* high = rows[0][first + j];
      std::int8_t* low = rows[1][first + j];
      for (std::int64_t c = 0; c < kLatent; c += 64) {
        const I x = from.latent_codes(j, c), y = from.latent_codes(j, c + 32);
        if (whole_bytes) {
          store_ints(high + c, low_bytes(x, y));
        } else {
          store_ints(high + c, high_bytes(x, y));
          store_ints(low + c, low_bytes(x, y));
        }
      }
      const I x = from.rotary_codes(j, 0), y = from.rotary_codes(j, 32);
      store_ints(high + kLatent, high_bytes(x, y));
      store_ints(low + kLatent, low_bytes(x, y));
    }
  }

  // The rows of a page as codes; those outside [lo, hi) are zeros. `next`: the page after it, or null.
  void encode_page(const char* page, const char* next, std::int64_t lo, std::int64_t hi, float* value) {
    const std::int64_t row_bytes = kv_row_bytes(a.pages.codec);
    for (std::int64_t first = 0; first < kPageTokens; first += kGroupRows) {
      const char* ahead = first + kGroupRows < kPageTokens ? page + (first + kGroupRows) * row_bytes : next;
      if (a.n > kFetchQueries || (first + kGroupRows >= hi && ahead != next)) ahead = nullptr;
      soon.lines(kSoonRowLines);
      switch (a.pages.codec) {
        case KvCodec::kF16:
          encode_group<HalfRows<F16>>(page, ahead, first, lo, hi, value);
          break;
        case KvCodec::kBF16:
          encode_group<HalfRows<BF16>>(page, ahead, first, lo, hi, value);
          break;
        case KvCodec::kInt16:
          encode_group<CodedRows>(page, ahead, first, lo, hi, value);
          break;
        case KvCodec::kInt8:
          encode_group<ByteRows>(page, ahead, first, lo, hi, value);
          break;
        default:
          encode_group<FloatRows>(page, ahead, first, lo, hi, value);
      }
    }
  }

  // Rows of a page as right operands.
  void turn_values(std::int64_t page) {
    for (int half = 0; half < (whole_bytes ? 1 : 2); ++half) {
      for (std::int64_t j = 0; j < kPageTokens; j += 4) {
        for (std::int64_t step = 0; step < kLatentSteps; ++step) {
          const auto row = [&](std::int64_t i) { return load_ints(rows[half][j + i] + step * 64); };
          I v[4];
          turn_four_rows(row(0), row(1), row(2), row(3), v);
          for (int p = 0; p < 4; ++p) store_ints(values[half][step][p][page][j / 4], v[p]);
        }
      }
    }
  }

  // The four sums of a product of codes, in tiles 0 to 3: h h', h l', l l', l h' of A in tiles 4 and 5 and B in 6 and
  // 7; if B is bytes, h h' and l h' of this step are in tiles 0 and 1 or, every other step, in 2 and 3.
  void multiply_codes() {
    tiles.multiply<0, 4, 6>();
    tiles.multiply<1, 4, 7>();
    tiles.multiply<2, 5, 7>();
    tiles.multiply<3, 5, 6>();
  }
  static V whole_codes(const TileSums& s, std::int64_t r) {
    const I high = add_ints(shift_left(load_ints(s[0][r]), 8), add_ints(load_ints(s[1][r]), load_ints(s[3][r])));
    return fma(to_floats(high), set1(256), to_floats(load_ints(s[2][r])));
  }
  static V bytes_and_codes(const TileSums& s, std::int64_t r) {
    const I high = shift_left(add_ints(load_ints(s[0][r]), load_ints(s[2][r])), 8);
    return mul(to_floats(add_ints(high, add_ints(load_ints(s[1][r]), load_ints(s[3][r])))), set1(256));
  }
  V whole(const TileSums& s, std::int64_t r) const { return whole_bytes ? bytes_and_codes(s, r) : whole_codes(s, r); }

  // 16 rows from j on and query tile t.
  void multiply_latents(std::int64_t j, std::int64_t t) {
    clear_sums(tiles);
    if (whole_bytes) {
      for (std::int64_t step = 0; step < kLatentSteps; step += 2) {
        for (const std::int64_t k : {step, step + 1}) {
          tiles.load<4>(rows[0][j] + k * 64, kKvRow);
          tiles.load<6>(q.turned[0][k][t], 64);
          tiles.load<7>(q.turned[1][k][t], 64);
          if (k == step) {
            tiles.multiply<0, 4, 6>();
            tiles.multiply<1, 4, 7>();
          } else {
            tiles.multiply<2, 4, 6>();
            tiles.multiply<3, 4, 7>();
          }
        }
      }
      return;
    }
    for (std::int64_t step = 0; step < kLatentSteps; ++step) load_and_multiply(j, t, step);
  }
  void load_and_multiply(std::int64_t j, std::int64_t t, std::int64_t step) {
    tiles.load<4>(rows[0][j] + step * 64, kKvRow);
    tiles.load<5>(rows[1][j] + step * 64, kKvRow);
    tiles.load<6>(q.turned[0][step][t], 64);
    tiles.load<7>(q.turned[1][step][t], 64);
    multiply_codes();
  }

  void score_tile(std::int64_t page, std::int64_t j, std::int64_t t) {
    multiply_latents(j, t);
    store_sums(tiles, sums[0]);
    clear_sums(tiles);
    load_and_multiply(j, t, kLatentSteps);
    store_sums(tiles, sums[1]);
    const V latent = load(q.scales[0] + t * 16), rotary = load(q.scales[1] + t * 16);
    I v[16];
#pragma GCC unroll 4
    for (int r = 0; r < 16; ++r) {
      const V x = mul(whole(sums[0], r), mul(latent, set1(row_scales[0][j + r])));
      const V y = mul(whole_codes(sums[1], r), mul(rotary, set1(row_scales[1][j + r])));
      v[r] = as_ints(add(x, y));
    }
    transpose_lanes(v);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) store_ints(scores[t * 16 + i] + page * kPageTokens + j, v[i]);
  }

  void score_page(std::int64_t page, std::int64_t lo, std::int64_t hi) {
    for (std::int64_t j = lo / 16 * 16; j < hi; j += 16) {
      for (std::int64_t t = 0; t < queries; ++t) score_tile(page, j, t);
    }
  }

  // exp(s - top) of query i, which sees the columns [first, last) of the chunk, times the rows' scales, as codes.
  // Columns from `begin` to `end`, whole pages, have scores.
  void encode_weights(std::int64_t i, std::int64_t first, std::int64_t last, std::int64_t begin, std::int64_t end) {
    float* s = scores[i];
    V tops = set1(kLowest);
    for (std::int64_t j = begin; j < end; j += kLanes) {
      if (j < first || j + kLanes > last) {
        for (std::int64_t c = j; c < j + kLanes; ++c) {
          if (c < first || c >= last) s[c] = kLowest;
        }
      }
      tops = larger(load(s + j), tops);
    }
    const float top = highest(tops);
    V total = zero(), most = zero();
    for (std::int64_t j = begin; j < end; j += kLanes) {
      V e = exp(sub(load(s + j), set1(top)));
      if (j < first || j + kLanes > last) {
        float some[kLanes];
        store(some, e);
        for (std::int64_t c = 0; c < kLanes; ++c) {
          if (j + c < first || j + c >= last) some[c] = 0;
        }
        e = load(some);
      }
      total = add(total, e);
      const V v = mul(e, load(value_scales + j));
      store(s + j, v);
      most = larger(v, most);
    }
    a.out.top[i] = top;
    a.out.sum[i] = sum(total);
    const float high = highest(most);
    const bool any = high > kTiniest;
    by[i] = any ? high / kByteCodeMost : 0;
    const float inverse = any ? kByteCodeMost / high : 0;
    for (std::int64_t j = begin; j < end; j += kPageTokens) {
      const std::int64_t page = j / kPageTokens;
      store_code_bytes<kPageTokens>(s + j, inverse, weights[0][page][i], static_cast<std::int64_t>(sizeof weights[0]));
    }
  }

  // Part `part` of the columns [64 step, 64 step + 64) of 16 queries.
  void multiply_values(std::int64_t t, std::int64_t step, std::int64_t part, std::int64_t from, std::int64_t to) {
    clear_sums(tiles);
    for (std::int64_t page = from; page < to; ++page) {
      tiles.load<4>(weights[0][page][t * 16], kPageTokens);
      tiles.load<5>(weights[1][page][t * 16], kPageTokens);
      tiles.load_passing<6>(values[0][step][part][page], 64);
      if (!whole_bytes) {
        tiles.load_passing<7>(values[1][step][part][page], 64);
        multiply_codes();
      } else if (page % 2 == 0) {
        tiles.multiply<0, 4, 6>();
        tiles.multiply<1, 5, 6>();
      } else {
        tiles.multiply<2, 4, 6>();
        tiles.multiply<3, 5, 6>();
      }
    }
  }

  void weigh(std::int64_t t, std::int64_t from, std::int64_t to) {
    const std::int64_t count = a.n - t * 16 < 16 ? a.n - t * 16 : 16;
    for (std::int64_t step = 0; step < kLatentSteps; ++step) {
      for (int part = 0; part < 4; ++part) {
        multiply_values(t, step, part, from, to);
        store_sums(tiles, sums[part]);
      }
      for (std::int64_t r = 0; r < count; ++r) {
        const V scale = set1(by[t * 16 + r]);
        V v[4];
#pragma GCC unroll 4
        for (int p = 0; p < 4; ++p) v[p] = mul(whole(sums[p], r), scale);
        turn_quads(v);
        float* out = a.out.latent + (t * 16 + r) * kLatent + step * 64;
#pragma GCC unroll 4
        for (int p = 0; p < 4; ++p) store(out + p * kLanes, v[p]);
      }
    }
  }

  static constexpr std::int64_t kSoonRowLines = 64;
  static constexpr std::int64_t kFetchQueries = 32;  // more: a prompt, whose blocks read the same rows again and again

  void run() {
    if (!a.again) encode_queries();
    const auto [from, to] = seen_positions(a);
    if (from >= to) {
      for (std::int64_t i = 0; i < a.n; ++i) {
        a.out.top[i] = kLowest;
        a.out.sum[i] = 0;
      }
      __builtin_memset(a.out.latent, 0, static_cast<std::size_t>(a.n * kLatent) * sizeof(float));
      tiles.release();
      return;
    }
    const std::int64_t first_page = (from - a.begin) / kPageTokens;
    const std::int64_t end_page = (to - a.begin + kPageTokens - 1) / kPageTokens;
    for (std::int64_t page = first_page; page < end_page; ++page) {
      const std::int64_t at = a.begin + page * kPageTokens;
      const std::int64_t lo = from > at ? from - at : 0;
      const std::int64_t hi = to - at < kPageTokens ? to - at : kPageTokens;
      const char* next = page + 1 < end_page ? page_at(a, at + kPageTokens) : nullptr;
      encode_page(page_at(a, at), next, lo, hi, value_scales + page * kPageTokens);
      turn_values(page);
      score_page(page, lo, hi);
    }
    for (std::int64_t i = 0; i < queries * 16; ++i) {
      const std::int64_t n = i < a.n ? i : 0;  // what stands for queries that are not there is never read again
      const std::int64_t first = a.first[n] > from ? a.first[n] : from, last = a.last[n] < to ? a.last[n] : to;
      if (i < a.n && first < last) {
        encode_weights(i, first - a.begin, last - a.begin, first_page * kPageTokens, end_page * kPageTokens);
        continue;
      }
      for (std::int64_t page = first_page; page < end_page; ++page) {
        __builtin_memset(weights[0][page][i], 0, kPageTokens);
        __builtin_memset(weights[1][page][i], 0, kPageTokens);
      }
      by[i] = 0;
      if (i < a.n) {
        a.out.top[i] = kLowest;
        a.out.sum[i] = 0;
      }
    }
    for (std::int64_t t = 0; t < queries; ++t) weigh(t, first_page, end_page);
    tiles.release();
  }
};

void attend_amx(const AttendArgs& a) {
  // The exact cache, which others are measured against; and rows of 16 bits for few heads, which do not pay for their
  // turning (5 heads: 9.6 µs a page, 7.2 by vectors; 20: 11.8 and 16.6).
  const bool few = a.heads < kManyHeads && a.pages.codec != KvCodec::kInt8;
  if (a.pages.codec == KvCodec::kF32 || few) return attend_codes(a);
  AmxAttend attend(a);
  attend.run();
}
