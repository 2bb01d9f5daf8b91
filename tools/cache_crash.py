#!/usr/bin/env python3
"""Kills `glint serve --cache-dir` again and again, at random points: no start may fail and no token may be wrong.

    tools/cache_crash.py [--rounds 100] [--seed 1]

Each round starts the server over the same directory, asks for greedy answers to prompts that share beginnings, compares
those that came with the answers of a server without any cache, and sends SIGKILL at a random moment: while the model is
loaded, while prompts are read or blocks written. Now and then a file is cut off or gets a wrong bit before the start.
"""

import argparse
import http.client
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Dict, List

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "server"))
from serving import Server  # noqa: E402

FLAGS = ("--no-log", "--chunk", "256")


def prompts(rng: random.Random, beginnings: int, tokens: int) -> List[List[int]]:
    """Beginnings of about so many tokens, each of them alone and with three ends."""
    out = []
    for _ in range(beginnings):
        head = [rng.randrange(300, 6000) for _ in range(rng.randrange(tokens, tokens * 3 // 2))]
        out.append(head)
        out += [head + [rng.randrange(300, 6000) for _ in range(rng.randrange(20, tokens // 3))] for _ in range(3)]
    return out


def ask(server: Server, ids: List[int]) -> Any:
    status, answer = server.request("/v1/completions", {"prompt": ids, "max_tokens": 6, "temperature": 0,
                                                        "ignore_eos": True})
    assert status == 200, answer
    return answer


def damage(folder: Path, rng: random.Random) -> None:
    files = sorted(folder.glob("*.kv"))
    if not files:
        return
    file = rng.choice(files)
    size = file.stat().st_size
    if rng.random() < 0.5:
        with file.open("r+b") as f:
            f.truncate(rng.randrange(size))
    else:
        with file.open("r+b") as f:
            at = rng.randrange(size)
            f.seek(at)
            byte = f.read(1)[0]
            f.seek(at)
            f.write(bytes([byte ^ (1 << rng.randrange(8))]))


def run(rounds: int, seed: int, beginnings: int = 3, tokens: int = 250) -> Dict[str, int]:
    """Figures of what happened; raises when something is wrong."""
    rng = random.Random(seed)
    every = prompts(rng, beginnings, tokens)
    with Server(*FLAGS, "--no-prefix-cache") as server:
        want = [ask(server, p)["choices"][0]["text"] for p in every]
    folder = Path(tempfile.mkdtemp())
    seen = {"rounds": 0, "killed": 0, "answers": 0, "hits": 0, "loaded_tokens": 0, "notices": 0, "damaged": 0}
    lock = threading.Lock()
    wrong: List[str] = []

    def count_loaded(server: Server) -> None:
        try:
            loaded = int(server.metrics()["glint_cache_disk_loaded_tokens_total"])
        except (OSError, http.client.HTTPException):
            return  # it died before
        with lock:
            seen["loaded_tokens"] += loaded

    def client(server: Server, picks: List[int]) -> None:
        for i in picks:
            try:
                answer = ask(server, every[i])
            except (OSError, http.client.HTTPException):
                return  # killed
            except AssertionError as e:
                wrong.append(f"prompt {i}: {e}")
                return
            with lock:
                seen["answers"] += 1
                seen["hits"] += answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
                if answer["choices"][0]["text"] != want[i]:
                    wrong.append(f"prompt {i}: {answer['choices'][0]['text']!r} for {want[i]!r}")

    try:
        for number in range(rounds):
            if rng.random() < 0.2:
                damage(folder, rng)
                seen["damaged"] += 1
            early = rng.random() < 0.1 and number < rounds - 1
            server = Server(*FLAGS, "--cache-dir", str(folder), "--cache-dir-size", "24M", wait=not early)
            assert early or server.process.poll() is None, server.lines
            picks = [[rng.randrange(len(every)) for _ in range(6)] for _ in range(2)]
            clients = [] if early else [threading.Thread(target=client, args=(server, p)) for p in picks]
            for thread in clients:
                thread.start()
            last = number == rounds - 1
            if last:
                for thread in clients:
                    thread.join()
                count_loaded(server)
            else:
                # Mostly soon after an answer, when its blocks are being written.
                enough = seen["answers"] + rng.randrange(6)
                patience = time.monotonic() + 20
                while not early and seen["answers"] < enough and time.monotonic() < patience:
                    time.sleep(0.005)
                if not early and rng.random() < 0.5:
                    count_loaded(server)
                time.sleep(rng.random() * rng.choice((0.02, 0.2)))
                server.process.send_signal(signal.SIGKILL)
                seen["killed"] += 1
            server.stop()
            for thread in clients:
                thread.join()
            seen["notices"] += sum("cache directory" in line for line in server.lines)
            seen["rounds"] += 1
            assert not wrong, wrong
            others = [line for line in server.lines if "cache directory" not in line]
            assert not any("error" in line.lower() for line in others), others
    finally:
        shutil.rmtree(folder)
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in run(args.rounds, args.seed).items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
