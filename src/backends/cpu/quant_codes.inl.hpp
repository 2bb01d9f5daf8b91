// What codes of block formats mean, and where a row's codes and scales of x lie. Included by quant.inl.hpp.

inline constexpr float kNf4Scale = 112.03F;  // see cpu_quant.cpp

inline const float* x_factors(const DotArgs& a, const float* table, std::int64_t m, std::int64_t block) {
  return table + (a.index != nullptr ? a.index[m] : m) * a.x->scale_stride + block;
}
inline const std::int8_t* x_codes(const DotArgs& a, std::int64_t m, std::int64_t k) {
  return static_cast<const std::int8_t*>(a.x->data) + (a.index != nullptr ? a.index[m] : m) * a.x->code_stride + k;
}

alignas(16) inline constexpr std::uint8_t kF4Codes[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
constexpr std::uint8_t biased(int v) { return static_cast<std::uint8_t>(v + kSignedBias); }
alignas(16) inline constexpr std::uint8_t kNf4Codes[16] = {
    biased(-112), biased(-78), biased(-59), biased(-44), biased(-32), biased(-21), biased(-10), biased(0),
    biased(9),    biased(18),  biased(28),  biased(38),  biased(49),  biased(63),  biased(81),  biased(112)};
inline float factor_at(const void* table, DType type, std::int64_t i) {
  if (type == DType::kF32) return static_cast<const float*>(table)[i];
  if (type == DType::kBF16) {
    const std::uint32_t bits = static_cast<std::uint32_t>(static_cast<const BF16*>(table)[i].bits) << 16;
    float v;
    __builtin_memcpy(&v, &bits, sizeof v);
    return v;
  }
  float v[kLanes];
  store(v, load_some(static_cast<const F16*>(table) + i, 1));
  return v[0];
}

// What a format's integers are multiplied by, and the integer that stands for 0.
inline float code_unit(const Weight& w) {
  return w.format == WeightFormat::kNF4 ? 1.0F / kNf4Scale : w.format == WeightFormat::kF4E2M1 ? 0.5F : 1.0F;
}
inline int code_zero(const Weight& w) {
  if (w.format == WeightFormat::kI4) return w.mins != nullptr ? 0 : 8;
  return w.format == WeightFormat::kF4E2M1 ? 12 : kSignedBias;
}
