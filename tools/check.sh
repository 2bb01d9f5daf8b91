#!/usr/bin/env bash
# All checks of the tree that run no test. Usage: tools/check.sh BUILD (a configured build folder, for its flags)
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
build=$1
jobs=${JOBS:-$(nproc)}
failures=0

check() {  # name, command…
  local name=$1 start=$SECONDS output
  shift
  if output=$("$@" 2>&1); then
    printf '✓ %-8s %s (%d s)\n' "$name" "$(tail -n 1 <<<"$output")" $((SECONDS - start))
  else
    printf '✗ %s (%d s)\n%s\n' "$name" $((SECONDS - start)) "$output"
    failures=$((failures + 1))
  fi
}

format() {
  local tool=clang-format files
  mapfile -t files < <(git ls-files --cached --others --exclude-standard '*.cpp' '*.hpp' '*.h' '*.cu' '*.cuh' | sort -u)
  local present=()
  for f in "${files[@]}"; do [[ -f $f ]] && present+=("$f"); done
  "$tool" --dry-run -Werror "${present[@]}" || { echo "mend with: clang-format -i FILE"; return 1; }
  echo "format: ${#present[@]} files"
}

# The table of environment switches stays short (check_tree.py sees to it that nothing else reads the environment).
switches() {
  local count
  count=$(grep -cE '^ *\{"[A-Z_0-9]+"' src/base/env.cpp)
  echo "env: $count switches, at most 20"
  ((count > 0 && count <= 20))
}

check layers python3 tools/check_layers.py
check tree python3 tools/check_tree.py
check env switches
check format format
check headers python3 tools/check_headers.py "$build" "$jobs"
check tidy nice python3 tools/check_tidy.py "$build" "$jobs"
((failures == 0)) || { echo "$failures checks failed"; exit 1; }
