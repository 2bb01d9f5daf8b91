"""tools/check_layers.py must pass a tree that keeps its arrows and name each one that is broken."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "check_layers.py"

ROOMS = """# Rooms
```rooms
public     → -
base       → -
tensor     → base
ops        → tensor
cache/plan → base
cache      → ops, cache/plan
scheduler  → cache/plan
engine     → public, scheduler
```
"""
CMAKE = """
glint_room(base DEPS Threads::Threads)
glint_room(tensor DEPS glint_base)
glint_room(ops DEPS glint_tensor)
glint_room(cache DEPS glint_ops)
glint_room(scheduler DEPS glint_cache)
glint_room(engine
  DEPS glint_scheduler)
"""
FILES = {
    "src/base/error.hpp": "#include <string>\n",
    "src/tensor/view.hpp": '#include "base/error.hpp"\n',
    "src/ops/ops.hpp": '#include "base/error.hpp"\n#include "tensor/view.hpp"\n',
    "src/cache/plan.hpp": '#include "base/error.hpp"\n',
    "src/cache/plan.cpp": '#include "cache/plan.hpp"\n',
    "src/cache/store.hpp": '#include "cache/plan.hpp"\n#include "ops/ops.hpp"\n',
    "src/scheduler/policy.cpp": '#include "cache/plan.hpp"\n',
    "src/engine/engine.cpp": '#include <glint/engine.hpp>\n#include "cache/plan.hpp"\n',
    "include/glint/engine.hpp": "#include <string>\n",
    "ARCHITECTURE.md": ROOMS,
    "CMakeLists.txt": CMAKE,
}


@pytest.fixture
def run(tmp_path):
    """Writes FILES with the given changes and runs the tool: (exit code, output)."""

    def check(files=None):
        for name, text in (FILES | (files or {})).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        done = subprocess.run([sys.executable, TOOL, tmp_path], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    return check


def test_clean_tree_passes(run):
    code, out = run()
    assert code == 0, out
    assert "8 rooms" in out


@pytest.mark.parametrize(("name", "text", "says"), [
    ("src/base/error.hpp", '#include "tensor/view.hpp"\n', "src/base/error.hpp:1: base may not include tensor"),
    ("src/ops/ops.hpp", '\n  #  include "cache/plan.hpp"\n', "src/ops/ops.hpp:2: ops may not include cache/plan"),
    ("src/scheduler/policy.cpp", '#include "cache/store.hpp"\n', "scheduler may not include cache "),
    ("src/scheduler/policy.cpp", '#include "ops/ops.hpp"\n', "scheduler may not include ops"),
    ("src/cache/plan.cpp", '#include "cache/store.hpp"\n', "cache/plan may not include cache "),
    ("src/cache/plan_tree.cpp", '#include "ops/ops.hpp"\n', "cache/plan may not include ops"),
    ("include/glint/engine.hpp", '#include "base/error.hpp"\n', "public may not include base"),
    ("src/tensor/view.hpp", "#include <glint/engine.hpp>\n", "tensor may not include public"),
    ("src/tensor/view.hpp", '#include "base/gone.hpp"\n', "base/gone.hpp is neither below src/"),
    ("src/extra/thing.cpp", "int x;\n", "src/extra/thing.cpp: its folder has no line"),
])
def test_planted_violation_fails(run, name, text, says):
    code, out = run(files={name: text})
    assert code == 1
    assert says in out


@pytest.mark.parametrize(("old", "new", "says"), [
    ("glint_room(scheduler DEPS glint_cache)", "glint_room(scheduler DEPS glint_cache glint_tensor)",
     "scheduler → tensor has no arrow"),
    ("glint_room(ops DEPS glint_tensor)", "glint_room(ops DEPS Threads::Threads)", "ops → tensor is not linked"),
    ("glint_room(ops DEPS glint_tensor)", "glint_room(ops DEPS glint_tenser)", "glint_tenser, which is not a room"),
    ("glint_room(base DEPS", "glint_room(server DEPS)\nglint_room(base DEPS", "glint_room(server) has no line"),
])
def test_cmake_that_differs_fails(run, old, new, says):
    code, out = run(files={"CMakeLists.txt": CMAKE.replace(old, new)})
    assert code == 1
    assert says in out


@pytest.mark.parametrize(("table", "says"), [
    ("no table", "no ```rooms block"),
    ("```rooms\nbase → tensor\ntensor → base\n```\n", "circle"),
    ("```rooms\nbase → nowhere\n```\n", "no line for nowhere"),
    ("```rooms\nbase\n```\n", "without →"),
])
def test_broken_table_fails(run, table, says):
    code, out = run(files={"ARCHITECTURE.md": table})
    assert code == 1
    assert says in out


def test_this_tree_keeps_its_arrows():
    done = subprocess.run([sys.executable, TOOL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
