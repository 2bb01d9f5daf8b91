#include "weights/gguf_types.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "base/check.hpp"

namespace glint {
namespace {

struct Row {
  std::uint32_t type;
  GgufBlock block;
};
// ggml's list, blocks of 256 being the K types' "super-blocks".
constexpr Row kTypes[] = {
    {0, {"F32", 1, 4}},         {1, {"F16", 1, 2}},         {2, {"Q4_0", 32, 18}},      {3, {"Q4_1", 32, 20}},
    {6, {"Q5_0", 32, 22}},      {7, {"Q5_1", 32, 24}},      {8, {"Q8_0", 32, 34}},      {9, {"Q8_1", 32, 40}},
    {10, {"Q2_K", 256, 84}},    {11, {"Q3_K", 256, 110}},   {12, {"Q4_K", 256, 144}},   {13, {"Q5_K", 256, 176}},
    {14, {"Q6_K", 256, 210}},   {15, {"Q8_K", 256, 292}},   {16, {"IQ2_XXS", 256, 66}}, {17, {"IQ2_XS", 256, 74}},
    {18, {"IQ3_XXS", 256, 98}}, {19, {"IQ1_S", 256, 50}},   {20, {"IQ4_NL", 32, 18}},   {21, {"IQ3_S", 256, 110}},
    {22, {"IQ2_S", 256, 82}},   {23, {"IQ4_XS", 256, 136}}, {24, {"I8", 1, 1}},         {25, {"I16", 1, 2}},
    {26, {"I32", 1, 4}},        {27, {"I64", 1, 8}},        {28, {"F64", 1, 8}},        {29, {"IQ1_M", 256, 56}},
    {30, {"BF16", 1, 2}},       {34, {"TQ1_0", 256, 54}},   {35, {"TQ2_0", 256, 66}},   {39, {"MXFP4", 32, 17}},
    {40, {"NVFP4", 64, 36}},
};

// The files are little-endian, and so is every machine that Glint runs on.
std::uint16_t load_u16(const std::byte* p) {
  std::uint16_t v = 0;
  std::memcpy(&v, p, sizeof v);
  return v;
}
float load_f16(const std::byte* p) { return to_float(F16{load_u16(p)}); }
std::uint8_t u8(std::byte b) { return static_cast<std::uint8_t>(b); }

// ---- eight bytes of codes at a time: a file of 17 GB has 31 billion of them ----

std::uint64_t load_u64(const void* p) {
  std::uint64_t v = 0;
  std::memcpy(&v, p, sizeof v);
  return v;
}
void store_u64(void* p, std::uint64_t v) { std::memcpy(p, &v, sizeof v); }
constexpr std::uint64_t bytes_of(unsigned v) { return (v & 255U) * 0x0101010101010101U; }
std::uint64_t low_nibbles(std::uint64_t v) { return v & bytes_of(15); }
// Adds n to every byte, without carries between them.
std::uint64_t plus(std::uint64_t v, unsigned n) {
  const std::uint64_t top = bytes_of(128), add = bytes_of(n);
  return ((v & ~top) + (add & ~top)) ^ ((v ^ add) & top);
}
// Eight bytes of 0 to 15 as four: the first in the low nibble.
std::uint32_t pack_nibbles(std::uint64_t v) {
  v = (v | v >> 4) & 0x00ff00ff00ff00ffU;
  v = (v | v >> 8) & 0x0000ffff0000ffffU;
  return static_cast<std::uint32_t>(v | v >> 16);
}

// One group of a block: its values are scale · code + min. `codes` are unsigned where the format has mins and signed
// otherwise. scale and min as the file's arithmetic gives them, exact in float.
constexpr std::int64_t kMaxGroup = 32;
struct Group {
  float scale = 0;
  float min = 0;
  std::array<std::int8_t, kMaxGroup> codes{};
};

// ---- blocks of 32 values: [d][m, for the _1 types][high bits, for Q5][codes] ----

// Value i < 16 is the low nibble of byte i, value i + 16 its high nibble.
void nibbles(const std::byte* q, unsigned offset, Group& g) {
  for (std::size_t i = 0; i < 16; i += 8) {
    const std::uint64_t bytes = load_u64(q + i);
    store_u64(g.codes.data() + i, plus(low_nibbles(bytes), 0U - offset));
    store_u64(g.codes.data() + i + 16, plus(low_nibbles(bytes >> 4), 0U - offset));
  }
}
// Bit i of the four bytes is the fifth bit of value i.
void nibbles_with_high_bits(const std::byte* high, const std::byte* q, int offset, Group& g) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, high, sizeof bits);
  nibbles(q, 0, g);
  for (std::size_t i = 0; i < 32; ++i)
    g.codes[i] = static_cast<std::int8_t>((g.codes[i] | static_cast<int>((bits >> i) & 1U) << 4) - offset);
}

void read_q8_0(const std::byte* b, Group* g) {
  g->scale = load_f16(b);
  std::memcpy(g->codes.data(), b + 2, 32);
}
void read_q4_0(const std::byte* b, Group* g) {
  g->scale = load_f16(b);
  nibbles(b + 2, 8, *g);
}
void read_q4_1(const std::byte* b, Group* g) {
  g->scale = load_f16(b);
  g->min = load_f16(b + 2);
  nibbles(b + 4, 0, *g);
}
void read_q5_0(const std::byte* b, Group* g) {
  g->scale = load_f16(b);
  nibbles_with_high_bits(b + 2, b + 6, 16, *g);
}
void read_q5_1(const std::byte* b, Group* g) {
  g->scale = load_f16(b);
  g->min = load_f16(b + 2);
  nibbles_with_high_bits(b + 4, b + 8, 0, *g);
}

// ---- blocks of 256 values ----

// Q4_K and Q5_K: eight groups of 32, each with a 6-bit scale sc and a 6-bit min m; value = d·sc·q - dmin·m. The twelve
// bytes hold: low 6 bits of bytes 0-3 and 4-7 the sc and m of groups 0-3; nibbles of bytes 8-11 the low four bits of sc
// and m of groups 4-7, whose high two bits are on top of bytes 0-3 and 4-7.
void k_scales(const std::byte* b, Group* groups) {
  const float d = load_f16(b), dmin = load_f16(b + 2);
  const std::byte* s = b + 4;
  for (int j = 0; j < 8; ++j) {
    int sc = 0, m = 0;
    if (j < 4) {
      sc = u8(s[j]) & 63;
      m = u8(s[j + 4]) & 63;
    } else {
      sc = (u8(s[j + 4]) & 15) | (u8(s[j - 4]) >> 6 << 4);
      m = (u8(s[j + 4]) >> 4) | (u8(s[j]) >> 6 << 4);
    }
    groups[j].scale = d * static_cast<float>(sc);
    groups[j].min = -dmin * static_cast<float>(m);
  }
}
// 32 bytes serve two groups: low nibbles the even one, high nibbles the odd one.
void k_nibbles(const std::byte* q, Group* groups) {
  for (std::size_t j = 0; j < 8; ++j) {
    for (std::size_t i = 0; i < 32; i += 8)
      store_u64(groups[j].codes.data() + i, low_nibbles(load_u64(q + j / 2 * 32 + i) >> (j % 2 * 4)));
  }
}
void read_q4_k(const std::byte* b, Group* groups) {
  k_scales(b, groups);
  k_nibbles(b + 16, groups);
}
// Bit j of byte i of the 32 high bytes is the fifth bit of value i of group j.
void read_q5_k(const std::byte* b, Group* groups) {
  k_scales(b, groups);
  k_nibbles(b + 48, groups);
  for (std::size_t j = 0; j < 8; ++j) {
    for (std::size_t i = 0; i < 32; ++i) {
      groups[j].codes[i] = static_cast<std::int8_t>(groups[j].codes[i] | ((u8(b[16 + i]) >> j & 1) << 4));
    }
  }
}
// Q6_K: [128 low nibbles' bytes][64 bytes of high bit pairs][16 signed scales][d]; sixteen groups of 16, value =
// d·sc·(q - 32). Each half of 128 values: 64 low bytes whose low nibbles are values 0-63 and high nibbles 64-127; 32
// high bytes whose bit pairs 0, 1, 2, 3 belong to values 0-31, 32-63, 64-95, 96-127.
void read_q6_k(const std::byte* b, Group* groups) {
  const float d = load_f16(b + 208);
  for (std::size_t v = 0; v < 256; ++v) {
    const std::size_t half = v / 128, in_half = v % 128;
    const int low = (u8(b[half * 64 + in_half % 64]) >> (in_half / 64 * 4)) & 15;
    const int high = (u8(b[128 + half * 32 + in_half % 32]) >> (in_half / 32 * 2)) & 3;
    groups[v / 16].codes[v % 16] = static_cast<std::int8_t>((low | high << 4) - 32);
  }
  for (int j = 0; j < 16; ++j) groups[j].scale = d * static_cast<float>(static_cast<std::int8_t>(u8(b[192 + j])));
}

using ReadBlock = void (*)(const std::byte* block, Group* groups);
constexpr std::int64_t kMaxGroups = 16;  // of a block

struct BlockReader {
  ReadBlock read = nullptr;
  std::int64_t group = 32;
  bool mins = false;
};
BlockReader block_reader(GgufType type) {
  switch (type) {
    case GgufType::kQ8_0:
      return {read_q8_0, 32, false};
    case GgufType::kQ4_0:
      return {read_q4_0, 32, false};
    case GgufType::kQ4_1:
      return {read_q4_1, 32, true};
    case GgufType::kQ5_0:
      return {read_q5_0, 32, false};
    case GgufType::kQ5_1:
      return {read_q5_1, 32, true};
    case GgufType::kQ4_K:
      return {read_q4_k, 32, true};
    case GgufType::kQ5_K:
      return {read_q5_k, 32, true};
    case GgufType::kQ6_K:
      return {read_q6_k, 16, false};
    default:
      return {};
  }
}

DType float_dtype(GgufType type) {
  CHECK(type == GgufType::kF32 || type == GgufType::kF16 || type == GgufType::kBF16, gguf_type_name(type).data());
  return type == GgufType::kF32 ? DType::kF32 : type == GgufType::kF16 ? DType::kF16 : DType::kBF16;
}

bool finite_f16(std::uint16_t bits) { return (bits & 0x7c00U) != 0x7c00U; }

// What repack_gguf() does, for the type whose scales and codes stay as they are: only nibbles change their places.
bool repack_q4_0(const std::byte* blocks, std::int64_t n, const GgufParts& parts) {
  std::byte* codes = parts.codes;
  bool finite = true;
  for (std::int64_t b = 0; b < n; ++b, blocks += 18) {
    parts.scales[b] = load_u16(blocks);
    finite &= finite_f16(parts.scales[b]);
    const std::uint64_t q[2] = {load_u64(blocks + 2), load_u64(blocks + 10)};
    const std::uint32_t packed[4] = {pack_nibbles(low_nibbles(q[0])), pack_nibbles(low_nibbles(q[1])),
                                     pack_nibbles(low_nibbles(q[0] >> 4)), pack_nibbles(low_nibbles(q[1] >> 4))};
    std::memcpy(codes, packed, sizeof packed);
    codes += sizeof packed;
  }
  return finite;
}

}  // namespace

std::optional<GgufBlock> gguf_block(GgufType type) {
  for (const Row& row : kTypes) {
    if (row.type == static_cast<std::uint32_t>(type)) return row.block;
  }
  return std::nullopt;
}

std::string_view gguf_type_name(GgufType type) {
  const std::optional<GgufBlock> block = gguf_block(type);
  return block ? block->name : "?";
}

bool gguf_readable(GgufType type) {
  return type == GgufType::kF32 || type == GgufType::kF16 || type == GgufType::kBF16 ||
         block_reader(type).read != nullptr;
}

void decode_gguf(GgufType type, const std::byte* blocks, std::int64_t n, float* out) {
  const BlockReader reader = block_reader(type);
  if (reader.read == nullptr) {
    const DType dtype = float_dtype(type);
    for (std::int64_t i = 0; i < n; ++i) out[i] = load_as_float(blocks, dtype, static_cast<std::size_t>(i));
    return;
  }
  const GgufBlock block = *gguf_block(type);
  CHECK(n % block.values == 0, std::to_string(n));
  std::array<Group, kMaxGroups> groups;
  for (std::int64_t b = 0; b < n / block.values; ++b) {
    reader.read(blocks + b * block.bytes, groups.data());
    for (std::int64_t v = 0; v < block.values; ++v) {
      const Group& g = groups[static_cast<std::size_t>(v / reader.group)];
      const float product = g.scale * static_cast<float>(g.codes[static_cast<std::size_t>(v % reader.group)]);
      out[b * block.values + v] = reader.mins ? product + g.min : product;
    }
  }
}

GgufTarget gguf_target(GgufType type) {
  switch (type) {
    case GgufType::kF32:
      return {WeightFormat::kF32};
    case GgufType::kF16:
      return {WeightFormat::kF16};
    case GgufType::kBF16:
      return {WeightFormat::kBF16};
    default:
      break;
  }
  const BlockReader reader = block_reader(type);
  CHECK(reader.read != nullptr, gguf_type_name(type).data());
  const bool four = type == GgufType::kQ4_0 || type == GgufType::kQ4_1 || type == GgufType::kQ4_K;
  return {four ? WeightFormat::kI4 : WeightFormat::kI8, reader.group, reader.mins};
}

bool repack_gguf(GgufType type, const std::byte* blocks, std::int64_t rows, std::int64_t cols, const GgufParts& parts) {
  const BlockReader reader = block_reader(type);
  const GgufTarget target = gguf_target(type);
  const GgufBlock block = *gguf_block(type);
  CHECK(reader.read != nullptr && cols % block.values == 0, gguf_type_name(type).data());
  if (type == GgufType::kQ4_0) return repack_q4_0(blocks, rows * (cols / block.values), parts);
  const std::int64_t n_groups = block.values / reader.group;
  const bool four = target.format == WeightFormat::kI4;
  const unsigned offset = reader.mins ? 0 : 8;  // kI4 without mins stores code + 8
  std::byte* codes = parts.codes;
  std::int64_t out = 0;  // index of the scale
  bool finite = true;
  std::array<Group, kMaxGroups> groups;
  for (std::int64_t b = 0; b < rows * (cols / block.values); ++b) {  // rows follow each other without a gap
    reader.read(blocks + b * block.bytes, groups.data());
    for (std::int64_t j = 0; j < n_groups; ++j, ++out) {
      const Group& g = groups[static_cast<std::size_t>(j)];
      parts.scales[out] = to_f16(g.scale).bits;
      finite &= finite_f16(parts.scales[out]);
      if (reader.mins) {
        parts.mins[out] = to_f16(g.min).bits;
        finite &= finite_f16(parts.mins[out]);
      }
      if (!four) {
        std::memcpy(codes, g.codes.data(), static_cast<std::size_t>(reader.group));
        codes += reader.group;
        continue;
      }
      for (std::size_t i = 0; i < static_cast<std::size_t>(reader.group); i += 8, codes += 4) {
        const std::uint32_t packed = pack_nibbles(plus(load_u64(g.codes.data() + i), offset));
        std::memcpy(codes, &packed, sizeof packed);
      }
    }
  }
  return finite;
}

// ---- encoders ----

namespace {

void store_f16(std::byte* p, float v) {
  const std::uint16_t bits = to_f16(v).bits;
  std::memcpy(p, &bits, sizeof bits);
}

void encode_q8_0(const float* v, std::byte* b) {
  float top = 0;
  for (int i = 0; i < 32; ++i) top = std::max(top, std::abs(v[i]));
  const float d = top / 127.0F;
  const float inverse = d > 0 ? 1.0F / d : 0.0F;
  store_f16(b, d);
  for (int i = 0; i < 32; ++i) b[2 + i] = static_cast<std::byte>(static_cast<std::int8_t>(std::lround(v[i] * inverse)));
}

// The value furthest from zero gets code 0, that is -8.
void encode_q4_0(const float* v, std::byte* b) {
  float extreme = 0;
  for (int i = 0; i < 32; ++i) {
    if (std::abs(v[i]) > std::abs(extreme)) extreme = v[i];
  }
  const float d = extreme / -8.0F;
  const float inverse = d != 0 ? 1.0F / d : 0.0F;
  store_f16(b, d);
  const auto code = [&](float x) { return std::clamp(static_cast<int>(x * inverse + 8.5F), 0, 15); };
  for (int i = 0; i < 16; ++i) b[2 + i] = static_cast<std::byte>(code(v[i]) | code(v[i + 16]) << 4);
}

// Each 32 values by their range, the eight ranges by the largest of them.
void encode_q4_k(const float* v, std::byte* b) {
  std::array<float, 8> scale{}, depth{};  // depth: how far below zero the group's code 0 lies
  for (std::size_t j = 0; j < 8; ++j) {
    const auto [low, high] = std::minmax_element(v + 32 * j, v + 32 * j + 32);
    depth[j] = -std::min(*low, 0.0F);
    scale[j] = (std::max(*high, 0.0F) + depth[j]) / 15.0F;
  }
  const auto unit = [](const std::array<float, 8>& a) {
    return to_float(to_f16(*std::max_element(a.begin(), a.end()) / 63.0F));
  };
  const float d = unit(scale), dmin = unit(depth);
  store_f16(b, d);
  store_f16(b + 2, dmin);
  std::memset(b + 4, 0, 140);
  for (std::size_t j = 0; j < 8; ++j) {
    const auto six = [](float x, float u) {
      return u > 0 ? std::clamp(static_cast<int>(std::lround(x / u)), 0, 63) : 0;
    };
    const int sc = six(scale[j], d), m = six(depth[j], dmin);
    const auto put = [&](std::size_t at, int bits) { b[4 + at] |= static_cast<std::byte>(bits); };
    if (j < 4) {
      put(j, sc);
      put(j + 4, m);
    } else {
      put(j + 4, (sc & 15) | (m & 15) << 4);
      put(j - 4, sc >> 4 << 6);
      put(j, m >> 4 << 6);
    }
    const float step = d * static_cast<float>(sc), low = dmin * static_cast<float>(m);
    for (std::size_t i = 0; i < 32; ++i) {
      const float x = (v[32 * j + i] + low) / step;
      const int code = step > 0 ? std::clamp(static_cast<int>(std::lround(x)), 0, 15) : 0;
      b[16 + j / 2 * 32 + i] |= static_cast<std::byte>(code << (j % 2 * 4));
    }
  }
}

}  // namespace

bool gguf_encodable(GgufType type) {
  return type == GgufType::kF32 || type == GgufType::kF16 || type == GgufType::kBF16 || type == GgufType::kQ8_0 ||
         type == GgufType::kQ4_0 || type == GgufType::kQ4_K;
}

void encode_gguf(GgufType type, const float* values, std::int64_t n, std::byte* out) {
  CHECK(gguf_encodable(type), gguf_type_name(type).data());
  const GgufBlock block = *gguf_block(type);
  CHECK(n % block.values == 0, std::to_string(n));
  if (block.values == 1) {
    const DType dtype = float_dtype(type);
    for (std::int64_t i = 0; i < n; ++i) store_from_float(out, dtype, static_cast<std::size_t>(i), values[i]);
    return;
  }
  const auto encode = type == GgufType::kQ8_0 ? encode_q8_0 : type == GgufType::kQ4_0 ? encode_q4_0 : encode_q4_k;
  for (std::int64_t i = 0; i < n / block.values; ++i) encode(values + i * block.values, out + i * block.bytes);
}

}  // namespace glint
