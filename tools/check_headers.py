#!/usr/bin/env python3
"""Every header of src/, include/ and apps/ compiles alone, so that none depends on what its includer included before.

Usage: check_headers.py BUILD [JOBS]

A header that is the first include of a source of the build compiles alone whenever that source does; the others are
compiled here. The flags are those of a source of the same folder, from BUILD/compile_commands.json. A header that passed is not
compiled again until it, or a header it includes, changes. Fragments (check_tree.is_fragment) are
no headers; CUDA headers (.cuh) are left to nvcc's build.
"""

import os
import pathlib
import re
import shutil
import sys

import check_tree
import compile_db


def first_includes(sources: list[str]) -> set[str]:
    """The project's headers that a source includes before anything else, angle brackets counted."""
    found = set()
    for source in sources:
        text = (compile_db.ROOT / source).read_text(encoding="utf-8")
        include = re.search(r'^\s*#\s*include\s*["<]([^">]+)[">]', text, re.MULTILINE)
        if include is None:
            continue
        for folder in (pathlib.Path("src"), pathlib.Path("include"), pathlib.Path(source).parent):
            if (compile_db.ROOT / folder / include[1]).is_file():
                found.add(os.path.normpath(folder / include[1]))
                break
    return found


def main() -> int:
    build = pathlib.Path(sys.argv[1])
    jobs = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    database = compile_db.entries(build)
    headers = sorted(p.relative_to(compile_db.ROOT).as_posix() for folder in ("src", "include", "apps")
                     for p in (compile_db.ROOT / folder).rglob("*") if p.suffix in (".hpp", ".h") and not check_tree.is_fragment(p.name, p.read_text(encoding="utf-8")))
    by_build = first_includes(list(database)) & set(headers)
    compiler = shutil.which("g++") or shutil.which("c++")
    commands = {}
    for header in sorted(set(headers) - by_build):
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
    print(f"headers: {len(headers) - len(failed)} of {len(headers)} compile alone "
          f"({len(by_build)} shown by the build, {skipped} unchanged since they last did)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
