// A matrix of codes as the kernels with 512-bit integers read it: its format's codes, its scales, the shape of a step.
// Included by quant_vnni.inl.hpp and kernels_amx.inl.hpp.

struct Int4Codes {
  static constexpr bool kNibbles = true;
  static constexpr bool kSmall = true;  // a lane's 8 products, and twice that, fit 16 bits: 2 · 8 · 15 · 127 = 30,480
  static constexpr bool kScaled = false;  // a code's unit is not 1 (code_unit)
  static I even(I v) { return low_nibbles(v); }
  static I odd(I v) { return high_nibbles(v); }
};
struct F4Codes : Int4Codes {
  static constexpr bool kSmall = false;
  static constexpr bool kScaled = true;
  static I even(I v) { return look_up(low_nibbles(v), kF4Codes); }
  static I odd(I v) { return look_up(high_nibbles(v), kF4Codes); }
};
struct Nf4Codes : F4Codes {
  static I even(I v) { return look_up(high_nibbles(v), kNf4Codes); }
  static I odd(I v) { return look_up(low_nibbles(v), kNf4Codes); }
};
struct Int8Codes {
  static constexpr bool kNibbles = false;
  static constexpr bool kScaled = false;
  static constexpr bool kSmall = false;
  static I even(I v) { return flip_signs(v); }
};

inline constexpr std::int64_t kStepBlocks = 16;
inline constexpr std::int64_t kFewCodes = 2;  // rows of x up to which W is read row by row
// Steps of a row whose sums are kept before they are added up: all of the model's widest rows, in groups of 64.
inline constexpr std::int64_t kWholeSteps = 10;

template <typename F, int Width>
struct Codes {
  static constexpr std::int64_t kStep = kStepBlocks * Width;  // columns
  // Columns that a vector of sums covers, and how many vectors hold the sums of a step.
  static constexpr std::int64_t kCols = F::kNibbles || Width == 128 ? 128 : 64;
  static constexpr int kVectors = static_cast<int>(kStep / kCols);
  static constexpr std::int64_t bytes(std::int64_t cols) { return F::kNibbles ? cols / 2 : cols; }
  // How far W is fetched ahead, in bytes, and of how many of its vectors one is asked for. The hardware's prefetch
  // follows rows well and is only led across pages; a line that an instruction asks for takes one of the few places
  // where a core waits for lines. Of what memory gives two threads (Zen 4, its slow state, 2026-11-30), nibbles: one
  // line of four 99 %, every line 94 %, 12 KB ahead 88 %. Bytes, 2 KB ahead: every line 99 %, one of four 83 %.
  // Where fetches_every_line, one row of x has every line fetched, into L1: Zen 5 gave 97 % so (nibbles, memory's slow
  // state) and 84 % by one line of four, in its fast state 77 and 64 % (docs/experiments/2026-11-30-cpu-streams.md); on
  // Ice Lake a step takes 0.89 of the time.
  static constexpr std::int64_t kAheadBytes = F::kNibbles ? 6144 : 2048;
  static constexpr std::int64_t kNearBytes = F::kNibbles ? 3072 : 2048;
  static constexpr int kFetchedVectors = F::kNibbles ? 4 : 1;
  static constexpr int kParts = F::kNibbles ? 4 : 1;  // even and odd columns lie apart
  static constexpr int kWords = Width / 4;            // of four codes, in a block
};

inline const std::int32_t* x_counts(const DotArgs& a, std::int64_t m) {
  return a.x->counts + (a.index != nullptr ? a.index[m] : m) * a.x->scale_stride;
}

// Scales or mins of a matrix, 16 blocks at a time. Divisions only where groups are not blocks: one a row would cost as
// much as half its products.
template <int Width>
struct Factors {
  const void* table;
  DType type;
  std::int64_t group, groups, group_rows, all;

  Factors(const Weight& w, const void* of)
      : table(of), type(w.scale_dtype), group(w.group), groups(w.groups_a_row()), group_rows(w.group_rows) {
    all = (group_rows == 1 ? w.rows : (w.rows + group_rows - 1) / group_rows) * groups;
  }
  // Of the n blocks of a row from block b on, zeros beyond them or what follows in the table.
  [[gnu::always_inline]] V at(std::int64_t row, std::int64_t b, std::int64_t n) const {
    const std::int64_t first = (group_rows == 1 ? row : row / group_rows) * groups;
    if (group == Width) {
      switch (type) {
        case DType::kF16:
          return some<F16>(first + b, n);
        case DType::kBF16:
          return some<BF16>(first + b, n);
        default:
          return some<float>(first + b, n);
      }
    }
    if (groups == 1) return set1(factor_at(table, type, first));
    float v[kLanes] = {};
    for (std::int64_t i = 0; i < n; ++i) v[i] = factor_at(table, type, first + (b + i) * Width / group);
    return load(v);
  }
  // Row n's, which lie so thinly that the hardware's prefetch does not see them as a stream; or those of a table with
  // the same shape.
  [[gnu::always_inline]] void fetch(std::int64_t row) const { fetch(table, row); }
  [[gnu::always_inline]] void fetch(const void* of, std::int64_t row) const {
    const std::int64_t bytes = groups * (type == DType::kF32 ? 4 : 2);
    const char* from = static_cast<const char*>(of) + (group_rows == 1 ? row * bytes : 0);
    for (std::int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at);
  }
  template <typename T>
  V some(std::int64_t i, std::int64_t n) const {
    const T* from = static_cast<const T*>(table) + i;
    return i + kLanes <= all ? load(from) : load_some(from, n);
  }
};

// A matrix of codes, and what does not change from row to row.
template <int Width>
struct CodesMatrix {
  const DotArgs* a;
  Factors<Width> scales, mins;
  V unit;
  bool has_mins;
  std::int32_t zero_point;

  explicit CodesMatrix(const DotArgs& args)
      : a(&args),
        scales(args.w, args.w.scales),
        mins(args.w, args.w.mins),
        unit(set1(code_unit(args.w))),
        has_mins(args.w.mins != nullptr),
        zero_point(code_zero(args.w)) {}
};
