"""tools/check_tidy.py: sources checked together are found out as those checked alone."""

import pathlib
import shutil
import sys

import pytest

TOOLS = pathlib.Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import check_tidy  # noqa: E402
import compile_db  # noqa: E402

HELPER = "namespace glint {\nnamespace {\n\nint helper() { return 1; }\n\n}  // namespace\n"
CLEAN = HELPER + "\nint first() { return helper(); }\n\n}  // namespace glint\n"
CLASH = HELPER + "\nint second() { return helper(); }\n\n}  // namespace glint\n"
NAMING = "namespace glint {\n\nint BadName() { return 1; }\n\n}  // namespace glint\n"
USING = "namespace other {\nstruct Thing {};\n}  // namespace other\n\nusing other::Thing;\n"


@pytest.fixture
def tidy(tmp_path, monkeypatch):
    tool = shutil.which("clang-tidy") or shutil.which("clang-tidy-14")
    if tool is None:
        pytest.skip("no clang-tidy here")
    shutil.copy(compile_db.ROOT / ".clang-tidy", tmp_path / ".clang-tidy")
    monkeypatch.setattr(compile_db, "ROOT", tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "scratch").mkdir()

    def check(**sources: str) -> dict[str, str | None]:
        for name, text in sources.items():
            (tmp_path / "src" / f"{name}.cpp").write_text(text)
        paths = [f"src/{name}.cpp" for name in sources]
        return check_tidy.Tidy(tool, str(tmp_path / "scratch")).together(paths, ["-std=c++20"])

    return check


def test_clean_sources_that_clash_are_clean(tidy):
    assert set(tidy(a=CLEAN, b=CLASH, c="int third() { return 3; }\n").values()) == {None}


def test_a_breach_is_found_beside_clean_sources_and_named(tidy):
    found = tidy(a=CLEAN, b=NAMING, c=CLASH)
    assert found["src/a.cpp"] is None and found["src/c.cpp"] is None
    assert "readability-identifier-naming" in found["src/b.cpp"]


def test_what_only_the_main_file_shows_is_found(tidy):
    found = tidy(a=CLEAN, b=USING)
    assert found["src/a.cpp"] is None
    assert "misc-unused-using-decls" in found["src/b.cpp"]


def test_a_source_that_does_not_compile_is_found(tidy):
    found = tidy(a=CLEAN, b="int broken( {\n")
    assert found["src/a.cpp"] is None
    assert "error" in found["src/b.cpp"]
