#!/usr/bin/env python3
"""Glint beside llama.cpp on the same machine, in turns: prefill and decode of the real shape with random 4-bit weights.

    python -m venv DIR && CMAKE_ARGS=-DGGML_NATIVE=ON DIR/bin/pip install llama-cpp-python     (compiles 20 minutes)
    tools/peer_llama.py --peer-python DIR/bin/python [--layers 47] [--turns 3] [--file-turns] [--out RESULT]

`glint export --synthetic` writes the GGUF file that llama.cpp reads. Glint runs `glint bench --synthetic` with its own
4-bit weights, and with --file-turns the same GGUF file as well. One process at a time, by turns: two copies of 17 GB do
not fit 24 GB. Before each process `cpu_peaks` reads memory, and a row says what it got (machines that share their
memory with others swing by a third) and how many cores other processes used. --append adds turns to an earlier result.
Medians are over the turns beside which others used at most --quiet cores, or over all where there is none such.

llama.cpp is measured through its C functions (llama_decode, then llama_synchronize), so that nothing of Python lies in
a step but one call. A prompt of one batch (n_ubatch = n_batch = the prompt), one warm-up, the median of --repeat. By
default its settings: it repacks the weights for the CPU while it loads; --no-repack leaves them mapped.
"""

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FIELDS = ("turn", "engine", "kind", "tokens", "depth", "tokens_per_s", "read_gb_s", "other_cores")
Row = dict[str, Any]


def peer(args: argparse.Namespace) -> None:
    """Runs inside the peer's own Python: loads the file, measures, prints one JSON object."""
    import llama_cpp as lc  # only where --peer-python has it

    started = time.perf_counter()
    lc.llama_backend_init()
    model_params = lc.llama_model_default_params()
    if args.no_repack:
        model_params.use_extra_bufts = False
    model = lc.llama_model_load_from_file(str(args.gguf).encode(), model_params)
    if not model:
        raise SystemExit(f"{args.gguf}: llama.cpp does not load it")
    params = lc.llama_context_default_params()
    params.n_ctx = max(args.depth) + args.prompt + args.steps + 64
    params.n_batch = params.n_ubatch = args.prompt
    params.n_threads = params.n_threads_batch = args.threads
    if args.flash >= 0:
        params.flash_attn_type = args.flash
    context = lc.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("llama.cpp makes no context")
    load_seconds = time.perf_counter() - started
    rng = random.Random(1)

    def step(n: int) -> float:
        """Seconds of n random tokens more."""
        ids = (lc.llama_token * n)(*(rng.randrange(256, 150000) for _ in range(n)))
        begin = time.perf_counter()
        if lc.llama_decode(context, lc.llama_batch_get_one(ids, n)) != 0:
            raise SystemExit("llama_decode failed")
        lc.llama_synchronize(context)
        return time.perf_counter() - begin

    def forget() -> None:
        lc.llama_memory_clear(lc.llama_get_memory(context), True)

    step(args.prompt)  # page faults
    rows: list[Row] = []
    for depth in args.depth:
        seconds = []
        for _ in range(args.repeat):
            forget()
            for at in range(0, depth, args.prompt):
                step(min(args.prompt, depth - at))
            seconds.append(step(args.prompt))
        rows.append({"kind": "prefill", "tokens": args.prompt, "depth": depth, "seconds": statistics.median(seconds)})
        forget()
        for at in range(0, depth, args.prompt):
            step(min(args.prompt, depth - at))
        step(1)
        seconds = [step(1) for _ in range(args.steps)]
        rows.append({"kind": "decode", "tokens": args.steps, "depth": depth, "seconds": statistics.median(seconds)})
    for row in rows:
        row["tokens_per_s"] = (row["tokens"] if row["kind"] == "prefill" else 1) / row.pop("seconds")
    system = lc.llama_print_system_info().decode()
    print(json.dumps({"version": lc.__version__, "system": system, "load_seconds": load_seconds, "rows": rows}))


def busy_seconds() -> float:
    """CPU time of the whole machine since it started."""
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def run(command: list[str | Path]) -> tuple[Any, float]:
    """The command's JSON, the last line of what it prints, and how many cores others used meanwhile."""
    begin, busy, own = time.perf_counter(), busy_seconds(), os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr[-3000:]}")
    after = os.times()
    mine = after.children_user + after.children_system - own.children_user - own.children_system
    return json.loads(done.stdout.splitlines()[-1]), (busy_seconds() - busy - mine) / (time.perf_counter() - begin)


def read_gb_s(peaks: Path) -> float:
    """The read bandwidth now, best kernels, all threads: the last line of cpu_peaks."""
    done = subprocess.run([peaks], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1].split()[2])


def glint_command(args: argparse.Namespace, model: list[str | Path]) -> list[str | Path]:
    """`glint bench` of a model."""
    depths = ",".join(map(str, args.depth))
    flags = ["--prompt-tokens", str(args.prompt), "--gen-tokens", str(args.steps), "--depth", depths, "--json"]
    return [args.glint, "bench", *model, *flags, "--repeat", str(args.repeat), "--threads", str(args.threads), "-q"]


def peer_command(args: argparse.Namespace, gguf: Path) -> list[str | Path]:
    """This file again, by the other Python."""
    flags = ["--prompt", args.prompt, "--steps", args.steps, "--repeat", args.repeat, "--threads", args.threads]
    flags += ["--flash", args.flash, "--depth", ",".join(map(str, args.depth))]
    return [args.peer_python, __file__, "--peer", "--gguf", gguf, *map(str, flags)] + ["--no-repack"] * args.no_repack


def measure(args: argparse.Namespace, gguf: Path, first_turn: int) -> tuple[list[Row], dict[str, Any]]:
    """The turns' rows, and what the peer says of itself."""
    own: list[str | Path] = ["--synthetic", f"layers={args.layers}", "--weights", args.weights]
    rows: list[Row] = []
    about: dict[str, Any] = {}
    for turn in range(first_turn, first_turn + args.turns):
        engines = ["glint", "llama.cpp"] + ["glint, GGUF file"] * args.file_turns
        for engine in engines:
            read = read_gb_s(args.peaks)
            if engine == "llama.cpp":
                out, others = run(peer_command(args, gguf))
                about = {k: out[k] for k in ("version", "system", "load_seconds")}
            else:
                out, others = run(glint_command(args, own if engine == "glint" else ["-m", gguf]))
            for row in out["rows"]:
                rows.append({"turn": turn, "engine": engine, **row, "read_gb_s": read, "other_cores": round(others, 2)})
                print(
                    f"turn {turn} {engine:<17} {row['kind']:<8} depth {row['depth']:>5} {row['tokens_per_s']:8.2f} "
                    f"tok/s; memory reads {read:.1f} GB/s; others used {others:.2f} cores",
                    flush=True,
                )
    return rows, about


def earlier_rows(path: Path) -> list[Row]:
    """What a result's CSV holds; nothing where there is none."""
    if not path.exists():
        return []
    with path.open(newline="") as f:
        texts = ("engine", "kind")
        numbers = {k: int for k in ("turn", "tokens", "depth")}
        return [{k: v if k in texts else numbers.get(k, float)(v) for k, v in r.items()} for r in csv.DictReader(f)]


def summary(rows: list[Row], quiet: float) -> list[Row]:
    """Medians over the turns, and how much faster than llama.cpp."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for r in rows:
        groups.setdefault((r["engine"], r["kind"], r["depth"]), []).append(r)
    used = {key: [r for r in group if r["other_cores"] <= quiet] or group for key, group in groups.items()}
    medians = {key: statistics.median(r["tokens_per_s"] for r in group) for key, group in used.items()}
    return [
        {
            "engine": e, "kind": k, "depth": d, "tokens_per_s": m, "times_llama_cpp": m / medians["llama.cpp", k, d],
            "read_gb_s": statistics.median(r["read_gb_s"] for r in used[e, k, d]), "turns": len(used[e, k, d]),
            "other_cores": max(r["other_cores"] for r in used[e, k, d]),
        }
        for (e, k, d), m in medians.items()
    ]  # fmt: skip


def main() -> int:
    """Measures and writes RESULT.csv and RESULT.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glint", default=ROOT / "glint", type=Path)
    parser.add_argument("--peaks", default=ROOT / "build/release/bench/cpu_peaks", type=Path)
    parser.add_argument("--peer-python", type=Path, help="the Python that has llama-cpp-python")
    parser.add_argument("--layers", default=47, type=int)
    parser.add_argument("--weights", default="int4", help="Glint's own format")
    parser.add_argument("--type", default="q4_0", help="of the GGUF file: q4_0 or q4_k")
    parser.add_argument("--gguf", type=Path, help="the GGUF file, kept; made if it is not there (default: temporary)")
    parser.add_argument("--prompt", default=512, type=int)
    parser.add_argument("--steps", default=16, type=int)
    parser.add_argument("--depth", default=[0], type=lambda s: [int(d) for d in s.split(",")], help="e.g. 0,2048")
    parser.add_argument("--repeat", default=3, type=int)
    parser.add_argument("--turns", default=3, type=int)
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--flash", default=-1, type=int, help="llama.cpp's flash attention: -1 its own choice, 0, 1")
    parser.add_argument("--no-repack", action="store_true")
    parser.add_argument("--file-turns", action="store_true", help="Glint on the same GGUF file too")
    parser.add_argument("--out", type=Path, help="writes OUT.csv and OUT.json")
    parser.add_argument("--append", action="store_true", help="keep the rows of OUT.csv")
    parser.add_argument("--quiet", default=0.15, type=float, help="cores that others may use beside a turn that counts")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        peer(args)
        return 0
    if args.append and args.out is None:
        parser.error("--append needs --out")
    if args.peer_python is None:
        parser.error("--peer-python is needed")
    with tempfile.TemporaryDirectory() as temp:
        gguf = args.gguf or Path(temp) / "random.gguf"
        if not gguf.exists():
            flags = ["--synthetic", str(args.layers), "--type", args.type, "--no-mtp"]
            subprocess.run([args.glint, "export", "-o", gguf, *flags], check=True, stdout=subprocess.DEVNULL)
        size = gguf.stat().st_size
        rows = earlier_rows(args.out.with_suffix(".csv")) if args.append else []
        made, about = measure(args, gguf, 1 + max((r["turn"] for r in rows), default=0))
    rows += made
    medians = summary(rows, args.quiet)
    for m in medians:
        print(
            f"{m['engine']:<17} {m['kind']:<8} depth {m['depth']:>5} {m['tokens_per_s']:8.2f} tok/s "
            f"= {m['times_llama_cpp']:.2f} x llama.cpp; {m['turns']} turns, memory reads {m['read_gb_s']:.1f} GB/s, "
            f"others used up to {m['other_cores']:.2f} cores"
        )
    if args.out:
        with args.out.with_suffix(".csv").open("w", newline="") as f:
            writer = csv.DictWriter(f, FIELDS, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        result = {
            "layers": args.layers, "glint_weights": args.weights, "gguf_type": args.type, "gguf_bytes": size,
            "repack": not args.no_repack, "flash": args.flash, "threads": args.threads,
            "llama_cpp": about, "medians": medians,
        }  # fmt: skip
        args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
