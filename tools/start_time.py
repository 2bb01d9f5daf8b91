#!/usr/bin/env python3
"""From exec to the first token, with a model of the real size whose file the kernel has in memory.

    tools/start_time.py --glint BUILD/apps/glint [--device cuda] [--model FILE] [--runs 3] [--out RESULT.csv]

Without --model, `glint export --synthetic` makes one with random 4-bit weights (16 GB) in --dir, by default /dev/shm where
it fits, and removes it. The file is read once, so that its pages are in memory; then each run is a process of its own:
`glint run --json -n 1`, timed until its answer is there. Prints and writes where the time went, a row a run.
"""

import argparse
import csv
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

FIELDS = ("run", "total_s", "process_s", "device_s", "load_s", "cache_s", "first_token_s", "backend", "file_bytes")
SYNTHETIC_BYTES = 18 << 30  # room for the file that is made


def start(args: argparse.Namespace, model: Path) -> dict[str, Any]:
    """One process, to its first token."""
    command = [args.glint, "run", "--device", args.device, "-m", model, "--raw", "--json", "-n", "1", "-q", "Hello"]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline() if process.stdout else ""
        total = time.perf_counter() - begin
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {process.returncode}")
    answer = json.loads(line)
    opened, usage = answer["start"], answer["usage"]
    return {
        "total_s": total,
        "process_s": total - opened["open_s"] - usage["prefill_s"],
        "device_s": opened["device_s"],
        "load_s": opened["load_s"],
        "cache_s": opened["open_s"] - opened["device_s"] - opened["load_s"],
        "first_token_s": usage["prefill_s"],
        "backend": answer["backend"],
    }


def warm(model: Path) -> None:
    """Reads the file, so that the kernel has its pages."""
    with model.open("rb", buffering=0) as file:
        buffer = bytearray(64 << 20)
        while file.readinto(buffer):
            pass


def measure(args: argparse.Namespace, model: Path) -> list[dict[str, Any]]:
    """A row a run, printed as it comes."""
    warm(model)
    rows = []
    for run in range(1, args.runs + 1):
        row = {"run": run, **start(args, model), "file_bytes": model.stat().st_size}
        parts = ", ".join(f"{name[:-2]} {row[name]:.2f}" for name in FIELDS[2:7])
        print(f"{row['total_s']:.2f} s to the first token: {parts} ({row['backend']})", flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Parses the command line, makes the model if need be, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glint", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", type=Path, help="a GGUF file or a directory with one file of weights")
    parser.add_argument("--dir", type=Path, help="where the random model is made")
    parser.add_argument("--layers", type=int, default=47)
    parser.add_argument("--type", default="q4_0", help="of the random weights, as in glint export")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="CSV to write")
    args = parser.parse_args()
    if args.model:
        rows = measure(args, args.model)
    else:
        shm = Path("/dev/shm")
        fits = shm.is_dir() and shutil.disk_usage(shm).free > SYNTHETIC_BYTES
        with tempfile.TemporaryDirectory(dir=args.dir or (shm if fits else None)) as temp:
            model = Path(temp) / "random.gguf"
            flags = ["--synthetic", str(args.layers), "--type", args.type, "--no-mtp"]
            begin = time.perf_counter()
            subprocess.run([args.glint, "export", "-o", model, *flags], check=True, stdout=subprocess.DEVNULL)
            print(f"made {model.stat().st_size / 1e9:.1f} GB in {time.perf_counter() - begin:.1f} s", flush=True)
            rows = measure(args, model)
    if args.out:
        with args.out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows({k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


if __name__ == "__main__":
    main()
