"""Starts the built `glint serve` on a free port and talks to it."""

import json
import random
import re
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORDS = "the a little girl boy dog cat house tree garden and but then went saw found big red blue happy".split()


def binary() -> Path:
    """The command that was built last, by make or by hand."""
    linked = ROOT / "glint"
    if linked.exists():
        return linked
    built = [p for p in ROOT.glob("build/*/apps/glint") if p.parts[-3] not in ("asan", "tsan")]
    assert built, "no build/*/apps/glint: build the target glint first"
    return max(built, key=lambda p: p.stat().st_mtime)


def glint_json(*words: str) -> dict:
    """What a command prints with --json."""
    command = [str(binary()), *words, "--json", "-q", "-t", "1"]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, encoding="utf-8")
    return json.loads(out.stdout)


def greedy_run(*words: str) -> dict:
    """What `glint run` answers at temperature 0."""
    return glint_json("run", "--temp", "0", *words)


class Server:
    """A running server; as a context manager it is stopped at the end, which must succeed."""

    timeout_s = 60

    def __init__(self, *flags: str, wait: bool = True, cache_tokens: int = 65536):
        self.lines: list = []
        self.url = ""
        # pylint: disable=consider-using-with
        self.process = subprocess.Popen(
            [str(binary()), "serve", "--port", "0", "-t", "1", "--cache-tokens", str(cache_tokens), *flags],
            cwd=ROOT, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, encoding="utf-8")
        self.listening = threading.Event()
        self.ready = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        assert self.listening.wait(60), self.lines
        if wait:
            assert self.ready.wait(60), self.lines

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            found = re.search(r"listening on (http://\S+)", line)
            if found:
                self.url = found.group(1)
                self.listening.set()
            if " is ready: " in line:
                self.ready.set()
        self.listening.set()
        self.ready.set()

    @property
    def address(self):
        """(host, port)"""
        host, port = self.url[len("http://"):].rsplit(":", 1)
        return host, int(port)

    def log(self) -> list:
        """The access log so far, parsed."""
        return [json.loads(line) for line in self.lines if line.startswith("{")]

    def request(self, path: str, body=None, headers=None, method=None):
        """(status, parsed or raw body); body: bytes, or what becomes JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
                status, raw = answer.status, answer.read()
        except urllib.error.HTTPError as e:
            with e:
                status, raw = e.code, e.read()
        try:
            return status, json.loads(raw)
        except ValueError:
            return status, raw.decode()

    def metrics(self) -> dict:
        """Name (with labels) → value."""
        text = self.request("/metrics")[1]
        pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def cache_share(self) -> float:
        """Of the cache's pages, those that were used and not given up."""
        metrics = self.metrics()
        return (metrics["glint_cache_tokens_used"] + metrics["glint_cache_tokens_kept"]) / metrics["glint_cache_tokens"]

    def fill_cache(self) -> float:
        """Reads prompts that have nothing in common until every page was used; the share that is."""
        choice = random.Random(0)
        share = self.cache_share()
        while share < 0.99:
            text = " ".join(choice.choice(WORDS) for _ in range(1000))
            status, answer = self.request("/v1/completions", {"prompt": text, "max_tokens": 1})
            assert status == 200, answer
            before, share = share, self.cache_share()
            if share <= before:  # evicted as much as it brought: no page is left that was never used
                break
        return share

    def wait_idle(self) -> None:
        """Fails unless soon nothing runs, nothing waits and no cache page is held."""
        names = ("glint_generations_in_flight", "glint_running_requests", "glint_waiting_requests",
                 "glint_cache_tokens_used")
        deadline = time.monotonic() + 10
        while True:
            held = {name: self.metrics()[name] for name in names}
            if not any(held.values()):
                return
            assert time.monotonic() < deadline, held
            time.sleep(0.02)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(60)
        self.reader.join(10)
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        assert self.stop() == 0, self.lines[-5:]
