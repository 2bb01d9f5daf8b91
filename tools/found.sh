#!/usr/bin/env bash
# One line of what the build has to work with: ✓ g++ 12.2 · ✓ Boost 1.81 · ✗ nvcc · ✗ MPI …
# Usage: tools/found.sh. ✗ means only that the part which uses it is left out.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
parts=()
found() {  # name, version or empty
  if [[ -n $2 ]]; then parts+=("✓ $1${2:+ $2}"); else parts+=("✗ $1"); fi
}
version() {  # the first X.Y of what the command prints
  command -v "$1" >/dev/null 2>&1 || return 0
  "$@" 2>/dev/null | grep -oE '[0-9]+\.[0-9]+' | head -n 1
}
cxx=""
for c in "${CXX:-}" g++ c++ clang++; do [[ -n $c ]] && command -v "$c" >/dev/null && { cxx=$c; break; }; done
full=""; if [[ -n $cxx ]]; then full=$("$cxx" -dumpfullversion -dumpversion); fi
found "${cxx:-g++}" "$(grep -oE '^[0-9]+\.[0-9]+' <<<"$full")"
boost=""
if [[ -n $cxx ]]; then
  boost=$(printf '#if __has_include(<boost/json.hpp>)\n#include <boost/version.hpp>\nv BOOST_LIB_VERSION\n#endif\n' |
    "$cxx" -E -P -x c++ - 2>/dev/null | sed -n 's/^v "\(.*\)"$/\1/p' | tr _ .)
fi
found Boost "$boost"
for tool in cmake ninja ccache mold; do found "$tool" "$(version "$tool" --version)"; done
nvcc=nvcc; command -v nvcc >/dev/null 2>&1 || nvcc=/usr/local/cuda/bin/nvcc
found nvcc "$(version "$nvcc" --version)"
found MPI "$(version mpirun --version)"
python=python3; [[ -x .venv/bin/python ]] && python=.venv/bin/python
found Python "$(version "$python" --version)"
isa=""
for flag in avx2 avx512f avx512_bf16 avx512_vnni amx_bf16; do
  grep -qw -m 1 "$flag" /proc/cpuinfo 2>/dev/null && isa+="${isa:+ }$flag"
done
parts+=("CPU: $(nproc) cores${isa:+, $isa}")
line=""
for p in "${parts[@]}"; do line+="${line:+ · }$p"; done
printf '%s\n' "$line"
