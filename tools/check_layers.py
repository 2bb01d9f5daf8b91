#!/usr/bin/env python3
"""Fails on an #include, or a CMake dependency, that has no arrow in ARCHITECTURE.md.

Usage: check_layers.py [ROOT]

The fenced block that opens with ```rooms holds one line a room: `room → room, room` (`-` for none). An arrow carries
on: a room may include what it names and whatever that may include. A room is a folder of src/, or the files of one
folder that share a stem (`cache/plan` is src/cache/plan.hpp, plan_test_access.hpp, plan.cpp …); `public` is
include/glint. A header of the own folder is always allowed, except from a stem room to its folder's other files.
"""

import dataclasses
import pathlib
import re
import sys

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"]+)"|<(glint/[^>]+)>)', re.MULTILINE)
SOURCES = {".hpp", ".h", ".cpp", ".cu", ".cuh", ".inc"}


@dataclasses.dataclass
class Rooms:
    """The table: direct arrows as written, and everything that follows from them."""

    arrows: dict[str, list[str]]
    reach: dict[str, set[str]]

    def room_of(self, path: str) -> str | None:
        """The room of a path relative to src/ (or `glint/…` for a public header); None when no line names it."""
        if path.startswith("glint/"):
            return "public"
        parts = path.split("/")
        stem = parts[-1].split(".")[0]
        best = None
        for room in self.arrows:
            depth = room.count("/") + 1
            in_folder = len(parts) > depth and parts[:depth] == room.split("/")
            in_stem = (len(parts) == depth and parts[:-1] == room.split("/")[:-1]
                       and (stem == room.split("/")[-1] or stem.startswith(room.split("/")[-1] + "_")))
            if (in_folder or in_stem) and (best is None or len(room) > len(best)):
                best = room
        return best


def parse_rooms(text: str) -> Rooms:
    """Reads the ```rooms block. Raises ValueError when it is absent, names an unknown room or runs in a circle."""
    block = re.search(r"^```rooms\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    if not block:
        raise ValueError("no ```rooms block")
    arrows = {}
    for line in block.group(1).splitlines():
        if not line.strip():
            continue
        room, arrow, targets = line.partition("→")
        if not arrow:
            raise ValueError(f"a line of the rooms block without →: {line!r}")
        arrows[room.strip()] = [t.strip() for t in targets.split("#")[0].split(",") if t.strip() not in ("", "-")]
    reach: dict[str, set[str]] = {}

    def follow(room: str, trail: tuple[str, ...]) -> set[str]:
        if room in trail:
            raise ValueError("arrows in a circle: " + " → ".join([*trail, room]))
        if room not in arrows:
            raise ValueError(f"{trail[-1]} → {room}: there is no line for {room}")
        if room not in reach:
            found = set(arrows[room])
            for target in arrows[room]:
                found |= follow(target, (*trail, room))
            reach[room] = found
        return reach[room]

    for room in arrows:
        follow(room, ())
    return Rooms(arrows, reach)


def check_includes(root: pathlib.Path, rooms: Rooms) -> list[str]:
    """One sentence for each #include without an arrow, in a file no room owns, or of a file that is not there."""
    problems = []
    files = [(f, f.relative_to(root / "src").as_posix()) for f in sorted((root / "src").rglob("*"))]
    files += [(f, f.relative_to(root / "include").as_posix()) for f in sorted((root / "include").rglob("*"))]
    for file, inner in files:
        if file.suffix not in SOURCES:
            continue
        room = rooms.room_of(inner)
        shown = file.relative_to(root).as_posix()
        if room is None:
            problems.append(f"{shown}: its folder has no line in the rooms table")
            continue
        text = file.read_text(encoding="utf-8")
        for match in INCLUDE.finditer(text):
            target = match.group(1) or match.group(2)
            place = f"{shown}:{text.count(chr(10), 0, match.start()) + 1}"
            if not (root / "src" / target).exists() and not (root / "include" / target).exists():
                problems.append(f"{place}: {target} is neither below src/ nor below include/")
                continue
            to = rooms.room_of(target)
            if to is None:
                problems.append(f"{place}: {target} lies in no room of the table")
            elif to != room and to not in rooms.reach[room]:
                problems.append(f"{place}: {room} may not include {to} ({target}); its arrows: "
                                f"{', '.join(rooms.arrows[room]) or 'none'}")
    return problems


def folder_of(root: pathlib.Path, room: str) -> str:
    """The folder whose CMake target holds a room (`cache` for the stem room `cache/plan`)."""
    return room if (root / "src" / room).is_dir() or "/" not in room else room.rsplit("/", 1)[0]


def check_cmake(root: pathlib.Path, rooms: Rooms) -> list[str]:
    """One sentence for each difference between the glint_room lines of CMakeLists.txt and the table."""
    text = (root / "CMakeLists.txt").read_text(encoding="utf-8")
    lines = {}
    for match in re.finditer(r"^\s*glint_room\(\s*(\S+?)\s*(?:DEPS\b([^)]*))?\)", text, re.MULTILINE):
        lines[match.group(1)] = (match.group(2) or "").split()
    target_room = {"glint_" + room.replace("/", "_"): room for room in lines}
    direct = {room: [target_room[d] for d in deps if d in target_room] for room, deps in lines.items()}
    problems = [f"CMakeLists.txt: {room} depends on {d}, which is not a room" for room, deps in lines.items()
                for d in deps if d.startswith("glint_") and d not in target_room]

    def linked(room: str) -> set[str]:
        found = set(direct[room])
        for d in direct[room]:
            found |= linked(d)
        return found

    for room, deps in direct.items():
        if room not in rooms.arrows:
            problems.append(f"CMakeLists.txt: glint_room({room}) has no line in the rooms table")
            continue
        allowed = {folder_of(root, r) for r in rooms.reach[room]} | {room}
        for r in rooms.arrows:  # a stem room's arrows belong to its folder's target
            if folder_of(root, r) == room:
                allowed |= {folder_of(root, t) for t in rooms.reach[r]}
        problems += [f"CMakeLists.txt: {room} → {d} has no arrow in the table" for d in deps if d not in allowed]
        problems += [f"CMakeLists.txt: the table's {room} → {t} is not linked" for t in rooms.arrows[room]
                     if folder_of(root, t) in lines and folder_of(root, t) not in linked(room) | {room}]
    return problems


def main() -> int:
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent)
    try:
        rooms = parse_rooms((root / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    except ValueError as e:
        print(f"ARCHITECTURE.md: {e}")
        return 1
    problems = check_includes(root, rooms) + check_cmake(root, rooms)
    print("\n".join(problems) if problems else f"layers: {len(rooms.arrows)} rooms, every #include has its arrow")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
