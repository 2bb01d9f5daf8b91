// What the kernels of kv_b in INT8 share. Included by absorbed_vnni.inl.hpp and absorbed_amx.inl.hpp.

// Rows of codes of x lie this far apart, so that a tile finds all of its own from one address.
template <std::int64_t Depth>
inline constexpr std::int64_t kCodeStride = Depth + 32;

inline const std::int8_t* codes_of_row(const Weight& w, std::int64_t row) {
  return static_cast<const std::int8_t*>(w.data) + row * w.cols;
}
