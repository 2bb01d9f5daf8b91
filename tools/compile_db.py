"""What check_headers.py and check_tidy.py share: the compile database, include scanning, parallel runs with a memory."""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


def version(tool: str) -> str:
    """What the tool says of itself."""
    return subprocess.run([tool, "--version"], capture_output=True, text=True, check=False).stdout


def entries(build: pathlib.Path) -> dict[str, list[str]]:
    """Path below ROOT → compiler arguments (without launcher, -c, -o and the source), from compile_commands.json."""
    found = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        arguments = entry.get("arguments") or re.findall(r'(?:\\.|"(?:\\.|[^"])*"|[^\s"\\])+', entry["command"])
        arguments = [a.replace('\\"', '"') for a in arguments]
        path = pathlib.Path(entry["directory"], entry["file"])
        if not path.is_relative_to(ROOT):
            continue
        kept, skip = [], False
        for argument in arguments[1:]:
            if skip:
                skip = False
            elif argument in ("-o", "-MF", "-MT", "-MQ"):
                skip = True
            elif argument.startswith("-") and argument not in ("-c", "-MD"):
                kept.append(argument)
            elif kept and kept[-1] == "-include" and argument.endswith("cmake_pch.hxx"):
                kept.pop()  # GCC's format, and a file must name what it uses without it
            elif kept and kept[-1] in ("-isystem", "-I", "-include"):
                kept.append(argument)
        found.setdefault(path.relative_to(ROOT).as_posix(), kept)
    return found


def own_includes(path: str, seen: set[str] | None = None) -> set[str]:
    """The project's files that a file reaches by its quoted includes, itself included."""
    seen = set() if seen is None else seen
    if path in seen:
        return seen
    seen.add(path)
    for name in INCLUDE.findall((ROOT / path).read_text(encoding="utf-8")):
        for candidate in (pathlib.Path("src") / name, pathlib.Path("include") / name, pathlib.Path(path).parent / name,
                          pathlib.Path("tests") / name):
            if (ROOT / candidate).is_file():
                own_includes(os.path.normpath(candidate), seen)
                break
    return seen


def fingerprint(path: str, command: list[str], *more: str) -> str:
    """Names a check of a file: its text and its includes', the command, and whatever else decides the outcome."""
    digest = hashlib.sha256(repr((command, more)).replace(str(ROOT), ".").encode())
    for name in sorted(own_includes(path)):
        digest.update(name.encode() + (ROOT / name).read_bytes())
    return digest.hexdigest()[:32]


def memory_folder() -> pathlib.Path:
    """Where passed checks are remembered, by content: outside the tree, so that a fresh clone profits as well."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "glint" / "checked"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        for stamp in cache.iterdir():
            if time.time() - stamp.stat().st_mtime > 30 * 86400:
                stamp.unlink(missing_ok=True)
        return cache
    except OSError:
        return ROOT / "build" / "checked"


def stamps(commands: dict[str, list[str]], *more: str) -> dict[str, pathlib.Path]:
    """A file for each command that is there if the command passed before on the same text (see memory_folder).

    `more` is what else decides the outcome, such as the tool's version.
    """
    memory = memory_folder()
    memory.mkdir(parents=True, exist_ok=True)
    return {path: memory / fingerprint(path, command, *more) for path, command in commands.items()}


def run(command: list[str]) -> str | None:
    """The output of a command that fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stdout + done.stderr


def run_all(commands: dict[str, list[str]], jobs: int, *more: str) -> tuple[dict[str, str], int]:
    """Runs a command a file, except where it passed before; `more` as for stamps().

    Returns the output of each that failed, and how many were skipped.
    """
    passed = stamps(commands, *more)
    todo = [path for path in commands if not passed[path].exists()]

    def check(path: str) -> tuple[str, str | None]:
        output = run(commands[path])
        if output is None:
            passed[path].touch()
        return path, output

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        failed = {path: output for path, output in pool.map(check, todo) if output is not None}
    return failed, len(commands) - len(todo)
