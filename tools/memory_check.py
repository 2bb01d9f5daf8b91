#!/usr/bin/env python3
"""Measures the memory of `glint quantize` and of loading its result, on random weights of the real model's shape.

    tools/memory_check.py --glint build/release/apps/glint [--layers 2] [--seconds 240] [--work DIR]
    tools/memory_check.py --glint build/release/apps/glint --growth 3,6,12 [--method rtn] [--csv FILE]

Makes a BF16 checkpoint of the real width (hidden 2,048, 64 experts of 1,536, 20 heads, 154,880 tokens) with few layers:
quantising works layer by layer, so its peak does not grow with their number. Then it

1. quantises with plain rounding to the end, and with gptq for at most --seconds (statistics, the peak, come first);
2. loads the quantised model, generates one token, and compares anonymous memory with the file's size, once with a
   layer less: what a layer adds gives the figures of all 47.

With --growth it quantises models of so many layers to the end, one after another, and fails if a peak is 4 GB or more
or if the largest model's is more than 5 % above the smallest's. 12 layers are 16 GB, of which a copy in 4 bits is made.

Reads /proc/PID/smaps_rollup every 50 ms: anonymous memory is what a program takes for itself; resident memory has the
pages of mapped files as well. Quantising is held to its bars by both, loading by anonymous memory: a loaded model is
read where its file is mapped. Needs twice the checkpoint's size on the disk (2 layers: 2.7 GB and 1.1 GB).
"""

import argparse
import json
import random
import shutil
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
H, INNER, DENSE, EXPERTS, HEADS, VOCAB, Q_LORA = 2048, 1536, 10240, 64, 20, 154880, 768
GB = 1e9
LAYERS = 47


def config(layers: int) -> dict[str, object]:
    """The official config with that many layers and no MTP layer."""
    c: dict[str, object] = json.loads((ROOT / "models/tiny/config.json").read_text())
    c.update(
        hidden_size=H, intermediate_size=DENSE, moe_intermediate_size=INNER, n_routed_experts=EXPERTS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, num_hidden_layers=layers, num_nextn_predict_layers=0,
        q_lora_rank=Q_LORA, vocab_size=VOCAB, eos_token_id=[151329], pad_token_id=151329,
    )  # fmt: skip
    return c


def tensors(layers: int) -> dict[str, list[int]]:
    """Names and shapes in the official layout."""
    mlp = {"gate_proj": False, "up_proj": False, "down_proj": True}
    t = {"model.embed_tokens.weight": [VOCAB, H], "model.norm.weight": [H], "lm_head.weight": [VOCAB, H]}

    def add_mlp(base: str, inner: int) -> None:
        for name, down in mlp.items():
            t[f"{base}.{name}.weight"] = [H, inner] if down else [inner, H]

    for i in range(layers):
        base = f"model.layers.{i}"
        t |= {
            f"{base}.input_layernorm.weight": [H],
            f"{base}.post_attention_layernorm.weight": [H],
            f"{base}.self_attn.q_a_proj.weight": [Q_LORA, H],
            f"{base}.self_attn.q_a_layernorm.weight": [Q_LORA],
            f"{base}.self_attn.q_b_proj.weight": [HEADS * 256, Q_LORA],
            f"{base}.self_attn.kv_a_proj_with_mqa.weight": [576, H],
            f"{base}.self_attn.kv_a_layernorm.weight": [512],
            f"{base}.self_attn.kv_b_proj.weight": [HEADS * 448, 512],
            f"{base}.self_attn.o_proj.weight": [H, HEADS * 256],
        }
        if i == 0:
            add_mlp(f"{base}.mlp", DENSE)
            continue
        t[f"{base}.mlp.gate.weight"] = [EXPERTS, H]
        t[f"{base}.mlp.gate.e_score_correction_bias"] = [EXPERTS]
        add_mlp(f"{base}.mlp.shared_experts", INNER)
        for e in range(EXPERTS):
            add_mlp(f"{base}.mlp.experts.{e}", INNER)
    return t


def bf16(values: list[float]) -> bytes:
    """The upper halves of the floats."""
    return b"".join(struct.pack("<f", v)[2:] for v in values)


def write_checkpoint(folder: Path, layers: int) -> None:
    """Normal values of deviation 0.02 from one block of them; norms are ones."""
    folder.mkdir(parents=True)
    rng = random.Random(1)
    block = bf16([rng.gauss(0, 0.02) for _ in range(1 << 17)])
    header: dict[str, object] = {}
    at = 0
    for name, shape in tensors(layers).items():
        bias = name.endswith("bias")
        size = (4 if bias else 2) * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32" if bias else "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors(layers).items():
            n = shape[0] * (shape[1] if len(shape) > 1 else 1)
            if name.endswith("bias"):
                out.write(bytes(4 * n))
            elif len(shape) == 1:
                out.write(bf16([1.0]) * n)
            else:
                start = 2 * rng.randrange(1 << 12)  # matrices differ
                left = 2 * n
                while left > 0:
                    piece = block[start : start + left]
                    out.write(piece)
                    left -= len(piece)
                    start = 0
    (folder / "config.json").write_text(json.dumps(config(layers)))
    shutil.copy(ROOT / "tests/data/glm-4-151k.tokenizer.json", folder / "tokenizer.json")


def rollup(pid: int) -> tuple[int, int]:
    """(anonymous, resident) bytes of a process; zeros when it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0, 0
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text.splitlines()[1:] if line.endswith("kB")}
    return sizes.get("Anonymous", 0), sizes.get("Rss", 0)


def bytes_of(model: Path) -> int:
    """Of its weights."""
    return sum(f.stat().st_size for f in model.glob("*.safetensors"))


@dataclass
class Watched:
    """Peaks of a command's memory, its anonymous memory when last seen, and whether it ended within its time."""

    anonymous: int = 0
    resident: int = 0
    last: int = 0
    ended: bool = False


def watch(command: list[str | Path], seconds: float) -> Watched:
    """Runs the command, for that long at most."""
    seen = Watched()
    stop = time.monotonic() + seconds
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and time.monotonic() < stop:
            a, r = rollup(process.pid)
            seen.anonymous, seen.resident = max(seen.anonymous, a), max(seen.resident, r)
            seen.last = a or seen.last
            time.sleep(0.05)
        seen.ended = process.poll() is not None
        if not seen.ended:
            process.terminate()
    if seen.ended and process.returncode != 0:
        raise SystemExit(f"{command[1]} failed")
    return seen


def load(glint: Path, model: Path) -> tuple[int, int]:
    """Anonymous bytes of a process that has loaded the model and made a token, and the file's size."""
    flags = ["-n", "1", "--temp", "0", "--context", "64", "--cache-tokens", "64", "--chunk", "8", "-q"]
    seen = watch([glint, "run", "-m", model, *flags, "hello"], 600)
    return seen.anonymous, bytes_of(model)


def growth(glint: Path, folder: Path, args: argparse.Namespace) -> bool:
    """Whether the peaks of quantising stay below 4 GB and do not grow with the layers."""
    lines = ["layers,method,input_bytes,output_bytes,seconds,peak_anonymous_bytes,peak_resident_bytes"]
    peaks: list[Watched] = []
    for layers in args.growth:
        source, made = folder / "bf16", folder / "q4"
        write_checkpoint(source, layers)
        size = bytes_of(source)
        begin = time.monotonic()
        flags = ["--preset", "q4", "-q", "--method", args.method, "--calibration-tokens", str(args.calibration_tokens)]
        seen = watch([glint, "quantize", "-m", source, "-o", made, *flags], 1e6)
        seconds = time.monotonic() - begin
        peaks.append(seen)
        lines.append(
            f"{layers},{args.method},{size},{bytes_of(made)},{seconds:.0f},{seen.anonymous},{seen.resident}"
        )
        print(
            f"{layers} layers, {size / GB:.2f} GB, {args.method}: anonymous {seen.anonymous / GB:.3f} GB, "
            f"resident {seen.resident / GB:.2f} GB, {seconds:.0f} s",
            flush=True,
        )
        if args.csv:
            args.csv.write_text("\n".join(lines) + "\n")
        shutil.rmtree(source)
        shutil.rmtree(made)
    kinds = [[p.anonymous for p in peaks], [p.resident for p in peaks]]
    return all(max(kind) < 4 * GB and max(kind) <= 1.05 * kind[0] for kind in kinds)


def main() -> int:
    """1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glint", default="./glint", type=Path)
    parser.add_argument("--layers", default=2, type=int)
    parser.add_argument("--seconds", default=240, type=float, help="longest run of gptq")
    parser.add_argument("--calibration-tokens", default=4096, type=int)
    parser.add_argument("--real-tokens", default=81920, type=int, help="calibration tokens to reckon with")
    parser.add_argument("--work", type=Path, help="where to make the checkpoints (default: a temporary folder)")
    parser.add_argument("--growth", type=lambda s: [int(n) for n in s.split(",")], help="e.g. 3,6,12")
    parser.add_argument("--method", default="rtn", help="with --growth")
    parser.add_argument("--csv", type=Path, help="with --growth: where to keep its rows")
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(dir=args.work) as temp:
        folder = Path(temp)
        if args.growth:
            flat = growth(args.glint, folder, args)
            print("under 4 GB whatever the number of layers" if flat else "misses a bar")
            return 0 if flat else 1
        loads = []
        for layers in (args.layers - 1, args.layers):
            source, made = folder / f"bf16-{layers}", folder / f"q4-{layers}"
            write_checkpoint(source, layers)
            quantize = [args.glint, "quantize", "-m", source, "--preset", "q4", "-q"]
            runs = {"rtn": (made, 3600.0)}
            if layers == args.layers:
                runs["gptq"] = (folder / "gptq", args.seconds)
            for method, (out, seconds) in runs.items():
                flags = ["-o", out, "--method", method]
                if method == "gptq":
                    flags += ["--calibration-tokens", str(args.calibration_tokens)]
                seen = watch([*quantize, *flags], seconds)
                a, r = seen.anonymous / GB, seen.resident / GB
                note = "" if seen.ended else f" (stopped after {seconds:.0f} s, then at {seen.last / GB:.2f} GB)"
                print(f"{layers} layers, {method}: anonymous {a:.2f} GB, resident {r:.2f} GB{note}", flush=True)
                # Quantising holds the hidden states of all calibration tokens twice.
                hidden = 2 * 4 * H * (args.real_tokens - args.calibration_tokens) if method == "gptq" else 0
                failed |= seen.resident + hidden > 4 * GB
            loads.append(load(args.glint, made))
            print(f"{layers} layers, loaded: file {loads[-1][1] / GB:.3f} GB, anonymous {loads[-1][0] / GB:.3f} GB")
            shutil.rmtree(source)
        # What a further layer adds is the same for all that follow.
        a, size = (last + (LAYERS - args.layers) * (last - before) for before, last in zip(*loads, strict=True))
        print(f"{LAYERS} layers, loaded: file {size / GB:.2f} GB, anonymous {a / GB:.2f} GB = {100 * a / size:.1f} %")
        failed |= a > 0.05 * size
    print("misses a bar" if failed else "both bars are met: under 4 GB, under 5 %")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
