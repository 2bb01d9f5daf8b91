#!/usr/bin/env bash
# Installs what the build needs and the machine lacks, by apt (Debian 12, Ubuntu 24.04 and their relatives).
# Usage: tools/bootstrap.sh [--python] [--dev] [--browser]
#   (nothing)  compiler, CMake, Ninja and the C++ libraries: what `make` needs
#   --python   also the virtual environment .venv with what tools/requirements.txt lists: what `make test` needs
#   --dev      also clang-format, clang-tidy, clang (libFuzzer), ccache and mold: what `make check` and CI need
#   --browser  also Chromium and playwright, for the tests of the chat page, which are skipped without; a failure is said
#              and nothing more
# A machine that has everything pays one preprocessor run (tens of milliseconds); nothing is installed twice.
set -euo pipefail
cd "$(dirname "$0")/.."

want_python=0 want_dev=0 want_browser=0
for arg in "$@"; do
  case $arg in
    --python) want_python=1 ;;
    --dev) want_dev=1 ;;
    --browser) want_python=1 want_browser=1 ;;
    *) echo "bootstrap: unknown option '$arg' (see the head of $0)" >&2; exit 2 ;;
  esac
done

mkdir -p build
log=build/bootstrap.log
say() { printf 'bootstrap: %s\n' "$*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }
compiler() { for c in "${CXX:-}" g++ c++ clang++; do if [[ -n $c ]] && have "$c"; then echo "$c"; return; fi; done; }

# header → package; "boost" is looked up, since its package name carries a version on Debian 12.
headers=(
  boost/json.hpp=boost boost/beast.hpp=boost CLI/CLI.hpp=libcli11-dev fmt/format.h=libfmt-dev xxhash.h=libxxhash-dev
  gtest/gtest.h=libgtest-dev rapidcheck.h=librapidcheck-dev benchmark/benchmark.h=libbenchmark-dev
  simde/x86/avx2.h=libsimde-dev
)

# Packages whose headers the compiler does not find, whatever way they were installed.
missing_headers() {
  local cxx; cxx=$(compiler)
  if [[ -z $cxx ]]; then printf '%s\n' "${headers[@]#*=}" | sort -u; return; fi
  for h in "${headers[@]}"; do
    printf '#if !__has_include(<%s>)\nmissing %s\n#endif\n' "${h%%=*}" "${h#*=}"
  done | "$cxx" -std=c++20 -E -P -x c++ - 2>>"$log" | sed -n 's/^missing //p' | sort -u
}

# A clang that links libFuzzer, not only a clang.
fuzzer_links() {
  have clang++ || return 1
  echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' |
    clang++ -x c++ -fsanitize=fuzzer,address -o build/.fuzzer_probe - >>"$log" 2>&1
}
system_python() { for p in "${PYTHON:-}" python3 /usr/bin/python3; do [[ -n $p ]] && python_ready "$p" && { echo "$p"; return; }; done; return 0; }
python_ready() {
  "$1" -c 'import ensurepip, os, sys, sysconfig, venv
sys.exit(0 if sys.version_info >= (3, 9) and os.path.exists(sysconfig.get_path("include") + "/Python.h") else 1)' >/dev/null 2>&1
}

# The names, one a line, of all that is wanted and not there.
missing() {
  [[ -n $(compiler) ]] || echo g++
  have cmake || echo cmake
  have ninja || have make || echo ninja-build
  have git || echo git
  have python3 || echo python3
  missing_headers
  if ((want_python)) && [[ -z $(system_python) ]]; then printf '%s\n' python3 python3-venv python3-dev; fi
  if ((want_dev)); then
    have clang-format || echo clang-format
    have clang-tidy || echo clang-tidy
    have ccache || echo ccache
    have mold || echo mold
    if ! [[ -e build/.fuzzer_probe ]] && ! fuzzer_links; then printf '%s\n' clang libclang-rt-dev; fi
  fi
}

boost_package() {  # libboost-json-dev where it exists, else the newest libboost-jsonX.YY-dev (JSON came with 1.75)
  { apt-cache pkgnames libboost-json | grep -E '^libboost-json[0-9.]*-dev$' || true; } | sort -V | {
    mapfile -t found
    if printf '%s\n' "${found[@]}" | grep -qx libboost-json-dev; then echo libboost-json-dev
    elif ((${#found[@]})); then echo "${found[-1]}"
    else echo libboost-json-dev; fi
  }
}

as_root=()
find_root() {
  ((EUID == 0)) && return
  if have sudo && { sudo -n true 2>/dev/null || [[ -t 0 ]]; }; then as_root=(sudo); return; fi
  return 1
}
apt_get() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@" \
    </dev/null >>"$log" 2>&1
}
known() { for p in "$@"; do apt-cache show "$p" >/dev/null 2>&1 || return 1; done; }

# Sets `packages` to the apt names of the arguments.
packages=()
name_packages() {
  packages=()
  for n in "$@"; do
    if [[ $n == boost ]]; then n=$(boost_package); fi
    packages+=("$n")
  done
}

give_up() {
  say "$1"
  say "needed: $2"
  say "install them by hand (Debian: apt-get install $2) and run this again; details: $log"
  exit 1
}

install_missing() {
  local names; read -ra names <<<"$(missing | sort -u | tr '\n' ' ')"
  ((${#names[@]})) || return 0
  have apt-get || give_up "this machine has no apt-get, and something is missing" "${names[*]}"
  find_root || give_up "something is missing, and installing it takes root or sudo" "${names[*]}"
  # Ninja is not needed where make is, but while apt is at it the build gets quicker and quieter.
  if ! have ninja; then names+=(ninja-build); fi
  name_packages "${names[@]}"
  if ! known "${packages[@]}"; then
    say "updating apt's lists"
    apt_get update || give_up "apt-get update failed (offline?)" "${packages[*]}"
    name_packages "${names[@]}"
  fi
  say "installing ${packages[*]}"
  # --no-remove: a conflict with something of the user's ends here and not with a removal.
  if ! apt_get install --no-install-recommends --no-remove -y "${packages[@]}"; then
    apt_get update || true
    name_packages "${names[@]}"
    apt_get install --no-install-recommends --no-remove -y "${packages[@]}" || {
      tail -n 5 "$log" >&2
      give_up "apt-get install failed" "${packages[*]}"
    }
  fi
  hash -r
  read -ra names <<<"$(missing | sort -u | tr '\n' ' ')"
  ((${#names[@]} == 0)) || give_up "still missing after the installation" "${names[*]}"
}

make_venv() {
  local python stamp
  python=$(system_python)
  stamp="$("$python" -c 'import sys; print(sys.version)' | tr -d '\n') $(sha256sum <tools/requirements.txt)"
  if [[ -x .venv/bin/python && -f .venv/stamp && $(<.venv/stamp) == "$stamp" ]]; then return; fi
  say "making .venv ($(tr '\n' ' ' <<<"$(grep -v '^#' tools/requirements.txt)"))"
  rm -rf .venv
  "$python" -m venv .venv >>"$log" 2>&1 || give_up "python -m venv failed" "python3-venv"
  .venv/bin/python -m pip install -q --disable-pip-version-check -r tools/requirements.txt </dev/null >>"$log" 2>&1 || {
    tail -n 5 "$log" >&2
    rm -rf .venv
    say "pip could not install tools/requirements.txt (offline?); details: $log"
    exit 1
  }
  printf '%s' "$stamp" >.venv/stamp
}

add_browser() {
  # Ubuntu's package of this name is an empty one that points to a snap.
  if ! have chromium && [[ $(. /etc/os-release && echo "$ID") == debian ]]; then
    say "installing chromium"
    find_root && apt_get install --no-install-recommends --no-remove -y chromium || say "chromium could not be installed"
  fi
  .venv/bin/python -c 'import playwright' 2>/dev/null ||
    .venv/bin/python -m pip install -q --disable-pip-version-check 'playwright>=1.40' </dev/null >>"$log" 2>&1 ||
    say "pip could not install playwright; details: $log"
}

install_missing
if ((want_python)); then make_venv; fi
if ((want_browser)); then add_browser; fi
