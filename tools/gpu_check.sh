#!/bin/bash
# One run on a machine with a GPU, under ten minutes: exactness, compute-sanitizer, measured ceilings, and the whole
# bench table. Usage: tools/gpu_check.sh BIN_DIR [PART …]; parts: exact ceilings decode prefill quantised serve start golden
# sanitize (default: all). BIN_DIR holds test_cuda, test_models and glint; libraries beside them in ../lib are found.
# Logs, CSV and a summary go to $OUT (default: build/gpu_check). A failing part does not stop the others.
set -uo pipefail
bin=$(realpath "$1"); shift
parts=${*:-exact ceilings decode prefill quantised serve start golden sanitize}
out=${OUT:-build/gpu_check}
mkdir -p "$out"
export LD_LIBRARY_PATH="$bin/../lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
layers=${LAYERS:-47}
deadline=${DEADLINE:-560}  # seconds from the start; what comes late is cut short or left out
summary=$out/summary.txt
: >"$summary"

say() { echo "$*" | tee -a "$summary"; }
wanted() { [[ " $parts " == *" $1 "* ]]; }
# step NAME SECONDS LOG COMMAND …: runs, logs, and notes how it ended.
step() {
  local name=$1 limit=$2 log=$out/$3 start=$SECONDS rc left=$((deadline - SECONDS)); shift 3
  if ((left < 10)); then say "$(printf '%-34s no time left' "$name")"; return 1; fi
  ((limit > left)) && limit=$left
  timeout -k 5 "$limit" "$@" >>"$log" 2>&1; rc=$?
  say "$(printf '%-34s rc %-3s %4s s' "$name" "$rc" "$((SECONDS - start))")"
  return $rc
}

nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv,noheader | tee -a "$summary"

if wanted exact; then
  step "test_cuda" 300 exact.log "$bin/test_cuda" --gtest_color=no
  grep -E "^\[  (FAILED|PASSED)|^  [a-z_]+ +[0-9]+ cases|worst nmse" "$out/exact.log" | head -40
  grep -E "Failure|: (out|q|kv|logits|pages|ids|weights) " "$out/exact.log" | cut -c1-220 | head -25
fi
if wanted ceilings; then
  step "ceilings by PyTorch" 90 ceilings.log python3 tools/gpu_ceilings.py
  tee -a "$summary" <"$out/ceilings.log"
fi
bench() {  # NAME SECONDS FLAGS …
  local name=$1 limit=$2; shift 2
  step "bench $name" "$limit" bench.log "$bin/glint" bench --device cuda --quiet --synthetic "layers=$layers" --ops \
    --csv "$out/$name.part.csv" "$@"
}
if wanted decode; then
  bench decode 90 --prompt-tokens 0 --gen-tokens 32 --batch 1,8,64 --depth 0,4096
  bench deep 60 --prompt-tokens 0 --gen-tokens 16 --batch 1,8 --depth 32768
fi
if wanted decode; then  # without --ops, which goes op by op: steps of one row as users get them
  for weights in bf16 int8 int4; do
    step "bench one row, $weights" 30 bench.log "$bin/glint" bench --device cuda --quiet --synthetic "layers=$layers" \
      --weights "$weights" --prompt-tokens 0 --gen-tokens 32 --batch 1 --depth 0,1024 --csv "$out/one-row-$weights.part.csv"
  done
fi
if wanted prefill; then
  bench prefill 60 --prompt-tokens 512,8192 --gen-tokens 0 --chunk 2048 --repeat 2
fi
if wanted quantised; then
  bench int4 60 --weights int4 --prompt-tokens 512 --gen-tokens 32 --batch 1,8,64 --depth 0 --repeat 2
  bench int8 60 --weights int8 --prompt-tokens 0 --gen-tokens 32 --batch 1,64 --depth 0
fi
if wanted serve && [[ -f models/tiny/config.json ]]; then  # its tokenizer
  for clients in 1 64; do
    step "serve, $clients clients" 60 serve.log "$bin/glint" bench serve --device cuda --synthetic "layers=$layers" -q \
      -m models/tiny --clients "$clients" --conversations $((2 * clients)) --gen-tokens 128 --temp 1
  done
  tee -a "$summary" <"$out/serve.log"
fi
if wanted start; then
  step "start to the first token" 90 start.log python3 tools/start_time.py --glint "$bin/glint" --layers "$layers"
  tee -a "$summary" <"$out/start.log"
fi
if wanted golden && [[ -f models/tiny/config.json ]]; then
  step "golden tests, device cuda" 180 golden.log "$bin/test_models" --gtest_color=no --gtest_filter='*/cuda*'
  grep -E "mean KL|perplexity|near-tie|FAILED|PASSED" "$out/golden.log" | head -20
fi
if wanted sanitize; then
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
  few=--gtest_filter='Cuda.SomeCasesForASanitizer:CudaSample.DrawsTheHostsTokens'
  step "compute-sanitizer memcheck" 100 sanitize.log "$sanitizer" --tool memcheck --error-exitcode 9 "$bin/test_cuda" "$few"
  step "compute-sanitizer racecheck" 100 sanitize.log "$sanitizer" --tool racecheck --error-exitcode 9 "$bin/test_cuda" "$few"
  grep -E "ERROR SUMMARY|RACECHECK SUMMARY|Invalid|hazard|Uninit" "$out/sanitize.log" | head -12
fi
cat "$out"/*.part.csv 2>/dev/null | awk 'NR == 1 || !/^backend,/' >"$out/bench.csv"
rm -f "$out"/*.part.csv
grep -vE "^ +(embed|mtp)" "$out/bench.log" 2>/dev/null
echo "---- summary"
cat "$summary"
awk -F, 'NR > 1 { n = NF; printf "%-8s %6s tokens  batch %-3s depth %-6s %9.3f ms %10.1f tok/s %8.1f GB/s %9.1f GFLOP/s %5.1f %% of peak\n", $(n-11), $(n-10), $(n-9), $(n-8), $(n-7), $(n-6), $(n-5), $(n-4), 100 * $(n-3) }' "$out/bench.csv"
