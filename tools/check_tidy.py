#!/usr/bin/env python3
"""clang-tidy with the checks of .clang-tidy on the sources of src/ and apps/.

Usage: check_tidy.py BUILD [JOBS] [PATH...]

Without paths every source is checked, except those that passed before and have not changed since (nor their headers,
their flags or .clang-tidy). Vendor intrinsics and generated tables come along as any code does.

Most of the time goes into headers, once a source. So the sources of a folder are first checked together, as one that
includes them. Those that do not compile beside the others (names in anonymous namespaces) are tried among themselves;
where something is found, each source is checked alone, and that counts. Two checks look at the main file only and are made for each
source that could breach them.
"""

import concurrent.futures
import itertools
import pathlib
import re
import shutil
import sys
import tempfile

import compile_db

MOST_TOGETHER = 24
MAIN_FILE_CHECKS = "misc-unused-using-decls,misc-unused-alias-decls"
MAIN_FILE_SUBJECTS = re.compile(r"^(using\s+[\w:]+::\w+\s*;|\s*namespace\s+\w+\s*=)", re.MULTILINE)
# As HeaderFilterRegex of .clang-tidy, and sources: included by another they count as headers.
FILTER = r"(src|include|apps)/.*\.[hc]pp$"


class Tidy:
    """clang-tidy on files alone and together."""

    def __init__(self, tool: str, scratch: str) -> None:
        self.tool = tool
        self.scratch = pathlib.Path(scratch)
        self.names = itertools.count()

    def command(self, path: str, flags: list[str], *options: str) -> list[str]:
        return [self.tool, "--quiet", "--warnings-as-errors=*", *options, path, "--", "-Wno-everything", *flags]

    def alone(self, paths: list[str], flags: list[str]) -> dict[str, str | None]:
        return {path: compile_db.run(self.command(path, flags)) for path in paths}

    def together(self, paths: list[str], flags: list[str]) -> dict[str, str | None]:
        """What is found, or None, for each of the sources, which have the same flags."""
        if len(paths) <= 1:
            return self.alone(paths, flags)
        all_of_them = self.scratch / f"{next(self.names)}.cpp"

        def errors(*options: str) -> str | None:
            all_of_them.write_text("".join(f'#include "{compile_db.ROOT / path}"  // NOLINT\n' for path in paths))
            return compile_db.run(self.command(str(all_of_them), flags, *options) + ["-ferror-limit=0"])

        apart: list[str] = []
        while len(paths) > 1 and (more := paths_with_errors(errors("--checks=-*," + MAIN_FILE_CHECKS), paths)):
            more = more if len(more) < len(paths) else paths[1::2]
            paths = [path for path in paths if path not in more]
            apart += more
        found = self.together(apart, flags)
        config = f"--config-file={compile_db.ROOT / '.clang-tidy'}"
        if len(paths) == 1 or errors(config, f"--header-filter={FILTER}") is not None:
            return found | self.alone(paths, flags)
        found |= dict.fromkeys(paths)
        for path in paths:
            if MAIN_FILE_SUBJECTS.search((compile_db.ROOT / path).read_text(encoding="utf-8")):
                found[path] = compile_db.run(self.command(path, flags, "--checks=-*," + MAIN_FILE_CHECKS))
        return found


def paths_with_errors(output: str | None, paths: list[str]) -> list[str]:
    """Those of the paths that the compiler's errors name; all where it names none."""
    if output is None:
        return []
    return [path for path in paths if re.search(re.escape(path) + r":\d+:\d+: error", output)] or paths


def groups(paths: list[str], flags: dict[str, list[str]]) -> list[list[str]]:
    """Sources of one folder and the same flags, at most MOST_TOGETHER at a time and about as many in each."""

    def kind(path: str) -> tuple[str, list[str]]:
        return path.rsplit("/", 1)[0], flags[path]

    made = []
    for _, same in itertools.groupby(sorted(paths, key=kind), kind):
        folder = list(same)
        n = -(-len(folder) // MOST_TOGETHER)
        made += [folder[i::n] for i in range(n)]
    return sorted(made, key=len, reverse=True)


def main() -> int:
    build = pathlib.Path(sys.argv[1])
    jobs = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    only = sys.argv[3:]
    tool = shutil.which("clang-tidy") or shutil.which("clang-tidy-14")
    if tool is None:
        print("tidy: no clang-tidy here (tools/bootstrap.sh --dev installs it)")
        return 1
    flags = {}
    for path, all_flags in compile_db.entries(build).items():
        if path.startswith(("src/", "apps/")) and not path.endswith(".cu") and (not only or path in only):
            # GCC's own flags are unknown to clang; warnings are the compiler's business.
            flags[path] = [f for f in all_flags
                           if not f.startswith(("-W", "-fdiagnostics", "-fno-sanitize", "-fsanitize"))]
    with tempfile.TemporaryDirectory() as scratch, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        tidy = Tidy(tool, scratch)
        passed = compile_db.stamps({path: tidy.command(path, flags[path]) for path in flags}, compile_db.version(tool),
                                   (compile_db.ROOT / ".clang-tidy").read_text())
        todo = [path for path in flags if not passed[path].exists()]
        failed = {}
        for found in pool.map(lambda group: tidy.together(group, flags[group[0]]), groups(todo, flags)):
            for path, output in found.items():
                if output is None:
                    passed[path].touch()
                else:
                    failed[path] = output
    for path in sorted(failed):
        print(failed[path].strip() or f"{path}: clang-tidy failed")
    print(f"tidy: {len(flags) - len(failed)} of {len(flags)} clean ({len(flags) - len(todo)} unchanged since they last were)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
