// Included inside the kernel namespace.

// The lines of the tile of W that comes next, asked for a few at a time while this one is in use.
struct Fetch {
  const char* row = nullptr;
  std::int64_t stride = 0;  // bytes to the next row
  std::int64_t bytes = 0;   // of a row
  std::int64_t at = 0;
  std::int64_t rows = 0;  // left

  void lines(std::int64_t n) {
    for (; n > 0 && rows > 0; --n) {
      __builtin_prefetch(row + at, 0, 2);
      at += 64;
      if (at >= bytes) {
        at = 0;
        row += stride;
        --rows;
      }
    }
  }
};
