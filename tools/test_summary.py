#!/usr/bin/env python3
"""Adds up test reports and ends with the line `N passed, N failed` (and `, N skipped`).

Usage: test_summary.py DIR...

Reads every JUnit file under the folders: GoogleTest's and pytest's count their cases; ctest's (named ctest*.xml) adds
only the entries that failed without a report of their own, such as a crash or a time-out. Exit code: 0 when nothing
failed and something passed, 1 otherwise.
"""

import pathlib
import sys
import xml.etree.ElementTree as ET


def count_cases(path: pathlib.Path) -> dict[str, int]:
    """Cases of one GoogleTest or pytest report, by outcome, and how many of the passed and failed there are."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for case in ET.parse(path).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            counts["failed"] += 1
        elif case.find("skipped") is not None or case.get("status") == "notrun" or case.get("result") == "skipped":
            counts["skipped"] += 1
        else:
            counts["passed"] += 1
    return counts


def failed_entries(path: pathlib.Path) -> list[str]:
    """Names of ctest's entries that failed."""
    return [case.get("name", "?") for case in ET.parse(path).getroot().iter("testcase")
            if case.get("status") in ("fail", "disabled") or case.find("failure") is not None]


def summarize(folders: list[str]) -> tuple[dict[str, int], list[str]]:
    """The total over all reports, and a sentence for each thing that failed outside a case."""
    total = {"passed": 0, "failed": 0, "skipped": 0}
    notes = []
    for folder in folders:
        reports = sorted(pathlib.Path(folder).rglob("*.xml"))
        broken = set()  # test programs whose report shows a failure or cannot be read
        for report in (r for r in reports if not r.name.startswith("ctest")):
            try:
                counts = count_cases(report)
            except ET.ParseError as e:
                notes.append(f"{report}: unreadable report ({e})")
                total["failed"] += 1
                broken.add(report.stem)
                continue
            if counts["failed"]:
                broken.add(report.stem)
            for outcome, n in counts.items():
                total[outcome] += n
        for report in (r for r in reports if r.name.startswith("ctest")):
            for name in failed_entries(report):
                if f"test_{name}" not in broken and name not in broken:
                    notes.append(f"{name}: failed outside its test cases (crash, time-out or leak)")
                    total["failed"] += 1
    return total, notes


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    total, notes = summarize(sys.argv[1:])
    for note in notes:
        print(note)
    skipped = f", {total['skipped']} skipped" if total["skipped"] else ""
    print(f"{total['passed']} passed, {total['failed']} failed{skipped}", flush=True)
    return 0 if total["failed"] == 0 and total["passed"] > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
