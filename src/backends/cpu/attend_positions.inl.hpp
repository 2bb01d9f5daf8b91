// Where the positions of an AttendArgs lie. Included inside the kernel namespace.

inline const char* page_at(const AttendArgs& a, std::int64_t position) {
  return static_cast<const char*>(a.pages.base) + a.page_table[position / kPageTokens] * a.pages.page_stride_bytes;
}

// Positions of the chunk that any query sees: those of one sequence's queries are contiguous.
struct Positions {
  std::int64_t from, to;
};
inline Positions seen_positions(const AttendArgs& a) {
  std::int64_t from = a.first[0], to = a.last[0];
  for (std::int64_t i = 1; i < a.n; ++i) {
    from = a.first[i] < from ? a.first[i] : from;
    to = a.last[i] > to ? a.last[i] : to;
  }
  return {from > a.begin ? from : a.begin, to < a.end ? to : a.end};
}
