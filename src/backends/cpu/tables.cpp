// Which kernel tables this machine can run.

#include <array>

#include "backends/cpu/cpu.hpp"
#include "backends/cpu/kernels.hpp"
#include "base/error.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace glint {
namespace cpu {
namespace {

#if defined(__x86_64__)
struct Features {
  bool avx2 = false;
  bool avx512 = false;
  bool avx512vnni = false;
  bool avx512bf16 = false;
  bool amx = false;
};

// The register state that the operating system saves (XCR0): without it an instruction that the CPU has still faults.
std::uint64_t saved_state() {
  std::uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

// Tiles are 8 KB of state that Linux saves only for a process that asks (and refuses where a signal's stack would not
// hold them). For the whole process, whose threads may run before or after.
bool ask_for_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequest = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;     // XFEATURE_XTILE_DATA
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

Features detect() {
  Features f;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return f;
  const bool fma = (c & bit_FMA) != 0;
  const bool f16c = (c & bit_F16C) != 0;
  if ((c & bit_OSXSAVE) == 0 || (c & bit_AVX) == 0) return f;
  const std::uint64_t state = saved_state();
  constexpr std::uint64_t kYmm = 0x6;          // XMM and upper halves of YMM
  constexpr std::uint64_t kZmm = kYmm | 0xe0;  // and masks, upper halves of ZMM 0-15, ZMM 16-31
  constexpr std::uint64_t kTiles = 0x60000;    // AMX: shapes and data
  if ((state & kYmm) != kYmm || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return f;
  const unsigned subleaves = a;
  f.avx2 = (b & bit_AVX2) != 0 && fma && f16c;
  constexpr unsigned kAvx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
  f.avx512 = f.avx2 && (state & kZmm) == kZmm && (b & kAvx512) == kAvx512;
  constexpr unsigned kAmx = (1U << 22) | (1U << 24) | (1U << 25);  // EDX: bfloat16 products, tiles, int8 products
  const bool amx = (d & kAmx) == kAmx && (state & kTiles) == kTiles;
  f.avx512vnni = f.avx512 && (c & (1U << 11)) != 0;
  constexpr unsigned kBf16 = 1U << 5;  // leaf 7.1, EAX
  if (f.avx512vnni && subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) f.avx512bf16 = (a & kBf16) != 0;
  f.amx = f.avx512bf16 && amx && ask_for_tiles();
  return f;
}

// AMD's family 25, whose prefetch follows rows of W. That of Zen 5 and of Ice Lake does not (no other CPU with VNNI was
// measured: docs/experiments/2026-11-30-cpu-streams.md, 2026-11-30-cpu-vnni-without-bf16.md).
bool is_zen4() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(0, &a, &b, &c, &d) == 0 || b != signature_AMD_ebx) return false;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return false;
  return ((a >> 8) & 0xf) + ((a >> 20) & 0xff) == 25;
}
#else
bool is_zen4() { return false; }
#endif

// A fixed array: filled by initialisers of other translation units, before any constructor here could run.
constinit std::array<const Table*, 8> g_registered{};
constinit std::size_t g_n_registered = 0;

// Worst first.
std::vector<const Table*> tables() {
  std::vector<const Table*> list{&generic_table()};
#if defined(__x86_64__)
  const Features f = detect();
  if (f.avx2) list.push_back(&avx2_table());
  if (f.avx512) list.push_back(&avx512_table());
  if (f.avx512vnni) list.push_back(&avx512vnni_table());
  if (f.avx512bf16) list.push_back(&avx512bf16_table());
  if (f.amx) list.push_back(&amx_table());
#endif
  return list;
}

}  // namespace

const bool fetches_every_line = !is_zen4();

bool register_table(const Table& table) {
  CHECK(g_n_registered < g_registered.size());
  g_registered[g_n_registered++] = &table;
  return true;
}

const Table& find_table(const std::string& name) {
  const std::vector<const Table*> list = tables();
  if (name.empty()) return *list.back();
  for (std::size_t i = 0; i < g_n_registered; ++i) {
    if (g_registered[i]->name == name) return *g_registered[i];
  }
  std::string names;
  for (const Table* t : list) {
    if (t->name == name) return *t;
    names += (names.empty() ? "" : ", ") + std::string(t->name);
  }
  throw Error({.what = "CPU kernels",
               .found = "\"" + name + "\"",
               .expected = "one of " + names + " on this machine",
               .hint = "leave it out to use the best"});
}

std::vector<std::string> registered_tables() {
  std::vector<std::string> names;
  for (std::size_t i = 0; i < g_n_registered; ++i) names.emplace_back(g_registered[i]->name);
  return names;
}

}  // namespace cpu

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (const cpu::Table* t : cpu::tables()) names.emplace_back(t->name);
  return names;
}

}  // namespace glint
