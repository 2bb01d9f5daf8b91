#!/usr/bin/env python3
"""clang-tidy with the checks of .clang-tidy on the sources of src/ and apps/.

Usage: check_tidy.py BUILD [JOBS] [PATH...]

Without paths every source is checked, except those that passed before and have not changed since (nor their headers,
their flags or .clang-tidy). Vendor intrinsics and generated tables come along as any code does.
"""

import pathlib
import shutil
import sys

import compile_db


def main() -> int:
    build = pathlib.Path(sys.argv[1])
    jobs = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    only = sys.argv[3:]
    tidy = shutil.which("clang-tidy") or shutil.which("clang-tidy-14")
    if tidy is None:
        print("tidy: no clang-tidy here (tools/bootstrap.sh --dev installs it)")
        return 1
    commands = {}
    for path, flags in compile_db.entries(build).items():
        if not path.startswith(("src/", "apps/")) or path.endswith(".cu") or (only and path not in only):
            continue
        # GCC's own flags are unknown to clang; warnings are the compiler's business.
        flags = [f for f in flags if not f.startswith(("-W", "-fdiagnostics", "-fno-sanitize", "-fsanitize"))]
        commands[path] = [tidy, "--quiet", "--warnings-as-errors=*", path, "--", "-Wno-everything", *flags]
    failed, skipped = compile_db.run_all(commands, jobs, compile_db.version(tidy),
                                         (compile_db.ROOT / ".clang-tidy").read_text())
    for path, output in failed.items():
        print(output.strip() or f"{path}: clang-tidy failed")
    print(f"tidy: {len(commands) - len(failed)} of {len(commands)} clean ({skipped} unchanged since they last were)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
