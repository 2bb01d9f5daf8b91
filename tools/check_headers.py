#!/usr/bin/env python3
"""Compiles every header of src/, include/ and apps/ alone, so that none depends on what its includer included before.

Usage: check_headers.py BUILD [JOBS]

The flags are those of a source of the same folder, from BUILD/compile_commands.json. A header that passed is not
compiled again until it, or a header it includes, changes. Fragments (check_tree.is_fragment) are
no headers; CUDA headers (.cuh) are left to nvcc's build.
"""

import pathlib
import shutil
import sys

import check_tree
import compile_db


def main() -> int:
    build = pathlib.Path(sys.argv[1])
    jobs = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    database = compile_db.entries(build)
    headers = sorted(p.relative_to(compile_db.ROOT).as_posix() for folder in ("src", "include", "apps")
                     for p in (compile_db.ROOT / folder).rglob("*") if p.suffix in (".hpp", ".h") and not check_tree.is_fragment(p.name, p.read_text(encoding="utf-8")))
    compiler = shutil.which("g++") or shutil.which("c++")
    commands = {}
    for header in headers:
        folder = header.rsplit("/", 1)[0]
        near = [flags for path, flags in database.items() if path.startswith(folder + "/")]
        flags = [f for f in (near or list(database.values()))[0] if not f.startswith(("-O", "-g", "-f"))]
        language = ["-x", "c", "-I", "include"] if header.endswith(".h") else ["-x", "c++", "-std=c++20"]
        if header.endswith(".h"):
            flags = []
        # As an include and not as the main file, so that #pragma once is in its place.
        commands[header] = [compiler, "-fsyntax-only", *flags, *language, "-I", "src", "-include", header, "/dev/null"]
    failed, skipped = compile_db.run_all(commands, jobs, compile_db.version(compiler))
    for header, output in failed.items():
        print(f"{header} does not compile alone:\n{output}")
    print(f"headers: {len(headers) - len(failed)} of {len(headers)} compile alone ({skipped} unchanged since they last did)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
