#!/usr/bin/env python3
"""Lets `glint serve` live: clients that stream, leave, and send nonsense, for minutes; then asks what was left behind.

Usage: .venv/bin/python tools/serve_soak.py [--minutes 10] [--clients 32] [--json FILE] [-- FLAGS OF glint serve]

First it fills the cache: its memory is taken page by page, so that before every page was used nothing can be said of
growth. What the server remembers of recent conversations (64 MB at most, more than some minutes fill) is taken off.
Passes when every whole answer was whole, everything is idle at the end, handles and threads are as many as before, and
the memory of the last quarter is at most 3 % above that of the second (the first warms arenas up). The result keeps
where the memory was, as /metrics tells it: `anonymous`, `file`, and `heap` with `heap_free` as parts of anonymous.
"""

import argparse
import json
import random
import socket
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "server"))

from serving import WORDS, Server  # noqa: E402  pylint: disable=wrong-import-position

NONSENSE = (
    b"GET / HTTP/9.9\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n",
    b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{\"messag",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"A" * 70000,
    b"",
)
BAD_BODIES = (b"{", b"[]", b"null", b'{"messages":7}', b'{"messages":[]}', b'{"messages":[{"role":"user","content":"\xff"}]}',
              b'{"messages":[{"role":"user","content":"a"}],"temperature":"hot"}', b"[" * 5000)


class Tally:
    """Counts of what clients saw."""

    def __init__(self):
        self.lock = threading.Lock()
        self.counts = {"whole": 0, "left": 0, "nonsense": 0, "refused": 0, "failed": 0}
        self.tokens = 0
        self.failures: list = []

    def add(self, what: str, tokens: int = 0, failure: str = "") -> None:
        with self.lock:
            self.counts[what] += 1
            self.tokens += tokens
            if failure and len(self.failures) < 10:
                self.failures.append(failure)


def post(body: bytes, path: bytes = b"/v1/chat/completions") -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % (
        path, len(body)) + body


def question(choice: random.Random) -> bytes:
    text = " ".join(choice.choice(WORDS) for _ in range(choice.randint(1, 120)))
    return post(json.dumps({"messages": [{"role": "user", "content": text}], "stream": True, "ignore_eos": True,
                            "max_tokens": choice.randint(1, 100), "seed": choice.getrandbits(30),
                            "n": choice.choice((1, 1, 1, 2))}).encode())


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


def client(number: int, address, until: float, tally: Tally) -> None:
    choice = random.Random(number)
    while time.monotonic() < until:
        kind = choice.random()
        try:
            with socket.create_connection(address, timeout=120) as connection:
                if kind < 0.6:
                    connection.sendall(question(choice))
                    data = read_all(connection)
                    if b"data: [DONE]" in data:
                        tally.add("whole", data.count(b'"delta":'))
                    else:
                        tally.add("failed", failure=data[-300:].decode(errors="replace"))
                elif kind < 0.8:
                    connection.sendall(question(choice))
                    wanted = choice.randint(0, 4000)
                    while wanted > 0 and (piece := connection.recv(min(wanted, 4096))):
                        wanted -= len(piece)
                    tally.add("left")
                elif kind < 0.9:
                    connection.sendall(choice.choice(NONSENSE))
                    connection.shutdown(socket.SHUT_WR)
                    read_all(connection)
                    tally.add("nonsense")
                else:
                    connection.sendall(post(choice.choice(BAD_BODIES)))
                    data = read_all(connection)
                    good = data.startswith(b"HTTP/1.1 400 ")
                    tally.add("refused" if good else "failed", failure="" if good else data[:300].decode(errors="replace"))
        except (ConnectionResetError, BrokenPipeError) as error:
            # A server may hang up on nonsense before all of it was sent; on a question it may not.
            if kind < 0.6:
                tally.add("failed", failure=repr(error))
            else:
                tally.add("nonsense" if kind >= 0.8 else "left")
        except OSError as error:
            tally.add("failed", failure=repr(error))


PARTS = {"anonymous": 'glint_resident_bytes{kind="anonymous"}', "file": 'glint_resident_bytes{kind="file"}',
         "heap": "glint_heap_bytes", "heap_free": "glint_heap_free_bytes", "replay": "glint_replay_bytes"}


def resident_mb(pid: int) -> float:
    fields = Path(f"/proc/{pid}/status").read_text().split("\n")
    return next(int(line.split()[1]) / 1024 for line in fields if line.startswith("VmRSS:"))


def held(pid: int) -> tuple:
    return len(list(Path(f"/proc/{pid}/fd").iterdir())), len(list(Path(f"/proc/{pid}/task").iterdir()))


def soak(minutes: float, clients: int, flags: list) -> dict:
    with Server("--no-log", *flags) as server:
        host, port = server.url.removeprefix("http://").rsplit(":", 1)
        server.request("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4})
        server.wait_idle()
        filled = server.fill_cache()
        before, tally, begin = held(server.process.pid), Tally(), time.monotonic()
        until = begin + 60 * minutes
        threads = [threading.Thread(target=client, args=(n, (host, int(port)), until, tally)) for n in range(clients)]
        for thread in threads:
            thread.start()
        memory: list = []
        parts: dict = {part: [] for part in PARTS}
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 60 * minutes / 60))
            metrics = server.metrics()
            for part, name in PARTS.items():
                parts[part].append(round(metrics[name] / 2**20, 1))
            memory.append(resident_mb(server.process.pid) - metrics["glint_replay_bytes"] / 2**20)
            if sys.stderr.isatty():
                print(f"\r{len(memory)}/60 · {memory[-1]:.0f} MB · {tally.counts}\x1b[K", end="", file=sys.stderr)
        for thread in threads:
            thread.join()
        server.wait_idle()
        time.sleep(0.5)  # connections that are being closed
        after = held(server.process.pid)
        quarter = len(memory) // 4
        second, last = memory[quarter:2 * quarter], memory[-quarter:]
        result = {
            "minutes": minutes, "clients": clients, "cache_filled": round(filled, 3), **tally.counts, "tokens": tally.tokens, "failures": tally.failures,
            "handles": [before[0], after[0]], "threads": [before[1], after[1]],
            "memory_mb": [round(m, 1) for m in memory], **{f"{part}_mb": values for part, values in parts.items()},
            "second_quarter_mb": sum(second) / len(second), "last_quarter_mb": sum(last) / len(last),
        }
    result["passed"] = bool(filled > 0.9 and tally.counts["failed"] == 0 and tally.counts["whole"] > 0 and after[0] <= before[0] + 1
                            and after[1] == before[1]
                            and result["last_quarter_mb"] <= 1.03 * result["second_quarter_mb"])
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--json", help="file for the whole result")
    parser.add_argument("flags", nargs="*", help="flags of glint serve, after --")
    args = parser.parse_args()
    result = soak(args.minutes, args.clients, args.flags)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    for name, value in result.items():
        print(f"{name:20} {value}")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
