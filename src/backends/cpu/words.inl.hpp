// Values as 16-bit codes times a scale, whose products are summed exactly in lanes of 32 bits. Included inside the
// kernel namespace, before what multiplies such codes: attention, and with VNNI BF16 weights.

using Code = std::int16_t;

inline constexpr float kRowMost = 16383;        // of the side whose largest |value| fixes the scale: 2^14 - 1
inline constexpr float kCodeMost = 32760;       // of the other side
inline constexpr float kLaneSum = 131000;       // of the other side's |codes| in one lane
inline constexpr float kTiniest = 0x1p-100F;    // what is smaller counts as zero: inverses stay finite
inline constexpr std::int64_t kLaneCodes = 64;  // that one sum of a lane takes at most
inline constexpr std::int64_t kSlack = 8;       // kLaneSum itself is met up to the rounding of fp32 sums
static_assert((static_cast<std::int64_t>(kLaneSum) + kLaneCodes / 2 + kSlack) * static_cast<std::int64_t>(kRowMost) <
              (std::int64_t{1} << 31));
static_assert(kCodeMost + 1 < 32768);

// The order in which codes of cache rows and queries lie: every 32 columns as the codec INT16 has them (KvRow16), which
// is how two vectors, of columns kApart from each other, are packed into one. Interleaving two rows' vectors by halves
// of 128 bits then gives each vector's columns in order. The first column of the vector of codes from `place` on:
inline constexpr std::int64_t kApart = 16;
constexpr std::int64_t column_of(std::int64_t place) { return place / 32 * 32 + place % 32 / 2; }

inline float not_a_number() { return __builtin_nanf(""); }
