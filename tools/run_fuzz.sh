#!/usr/bin/env bash
# Runs every libFuzzer target of a build folder for FUZZ_SECONDS each (default 600) from its seeds.
# Usage: [FUZZ_SECONDS=N] [JOBS=1] tools/run_fuzz.sh BUILD [TARGET…]   (JOBS targets at a time)
# Seeds: tests/fuzz/seeds/NAME for the target fuzz_NAME. What is found new goes to BUILD/corpus/NAME, a crash to
# BUILD/crashes/NAME. An input over five seconds is a hang, over 2 GB too large; both fail, as does a leak.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1
shift
seconds=${FUZZ_SECONDS:-600} jobs=${JOBS:-1}
if (($#)); then targets=("$@"); else
  mapfile -t targets < <(find "$build" -type f -executable -name 'fuzz_*' -not -path '*/CMakeFiles/*' | sort)
fi
((${#targets[@]})) || { echo "run_fuzz: no fuzz_* programs in $build" >&2; exit 1; }
run_target() {  # path of the program; prints a line
  local target=$1 name corpus crashes log seeds=() dict=()
  name=$(basename "$target"); name=${name#fuzz_}
  corpus=$build/corpus/$name crashes=$build/crashes/$name log=$build/fuzz_$name.log
  mkdir -p "$corpus" "$crashes"
  if [[ -d tests/fuzz/seeds/$name ]]; then seeds=("tests/fuzz/seeds/$name"); fi
  case $name in chat | output_parser) dict=(-dict=tests/fuzz/chat_format.dict) ;; esac
  if "$target" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 "${dict[@]}" \
      -artifact_prefix="$crashes/" "$corpus" "${seeds[@]}" >"$log" 2>&1; then
    printf '✓ %-12s %s runs, %s inputs kept\n' "$name" \
      "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" "$(find "$corpus" -type f | wc -l)"
  else
    printf '✗ %s: see %s and %s\n%s\n' "$name" "$log" "$crashes" "$(tail -n 25 "$log")"
    return 1
  fi
}

failed=0 running=0
for target in "${targets[@]}"; do
  [[ -x $target ]] || target=$(find "$build" -type f -executable -name "$target" | head -n 1)
  if ((running == jobs)); then
    wait -n || failed=$((failed + 1))
    running=$((running - 1))
  fi
  run_target "$target" &
  running=$((running + 1))
done
for ((; running > 0; running--)); do wait -n || failed=$((failed + 1)); done
((failed == 0))
