// Vectors of which only the first values are there. Included inside the kernel namespace, after the vector wrapper.

// The first n values of p, zeros after them.
template <typename T, int Size>
struct Tail {
  T values[Size] = {};
  Tail(const T* p, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) values[i] = p[i];
  }
};
template <typename T>
inline V load_some(const T* p, std::int64_t n) {
  if (n >= kLanes) return load(p);
  const Tail<T, kLanes> tail(p, n);
  return load(tail.values);
}
template <typename T>
inline void store_some(T* p, V v, std::int64_t n) {
  if (n >= kLanes) return store(p, v);
  T values[kLanes];
  store(values, v);
  for (std::int64_t i = 0; i < n; ++i) p[i] = values[i];
}

// n values of type T as floats.
template <typename T>
inline void widen(const void* from, float* to, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += kLanes)
    store_some(to + i, load_some(static_cast<const T*>(from) + i, n - i), n - i);
}

// Whether a whole tile is the best for `left` rows: four are two and two rather than three and one, which alone has too
// few chains.
inline bool whole_tile(std::int64_t left) { return left >= kTileM && left != 4; }
