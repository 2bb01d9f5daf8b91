#!/usr/bin/env bash
# Proves that `pip install .` works: a fresh virtual environment, the package built and installed there, and then, from a
# folder that is no checkout, the bundled model by both names that an installed glint has.
# Usage: tools/check_wheel.sh [PYTHON]   (default python3; needs what tools/bootstrap.sh installs, and pip's index)
set -euo pipefail
cd "$(dirname "$0")/.."

python=${1:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
step() { printf '%4d s  %s\n' "$SECONDS" "$*"; }

"$python" -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip --disable-pip-version-check -q)

step "building the wheel"
"${pip[@]}" wheel --no-deps -w "$work/dist" . </dev/null
wheel=$(echo "$work"/dist/glint-*.whl)
step "$(basename "$wheel"): $(du -h "$wheel" | cut -f 1)"

"$python" - "$wheel" <<'CHECK'
import sys, zipfile
names = zipfile.ZipFile(sys.argv[1]).namelist()
wanted = ["glint/__init__.py", "glint/_native.pyi", "glint/py.typed", "glint/plugin/__init__.py",
          "glint/plugin/plugin_manifest.json", "glint/models/tiny/config.json", "glint/models/tiny/tokenizer.json"]
missing = [name for name in wanted if name not in names]
native = [name for name in names if name.startswith("glint/_native.") and name.endswith((".so", ".pyd"))]
stray = [name for name in names if not name.startswith(("glint/", "glint-"))]
if missing or len(native) != 1 or stray:
    sys.exit(f"wheel: missing {missing}, native modules {native}, strays {stray[:5]}")
CHECK

step "installing it"
"${pip[@]}" install "$wheel" </dev/null
rm -rf "$work/dist"

step "running from elsewhere"
cd "$work"
env -u GLINT_MODEL -u PYTHONPATH "$work/venv/bin/python" - <<'RUN'
import pathlib, sys
import glint
from glint.plugin import create_glm_4_7_flash_plugin

package = pathlib.Path(glint.__file__).parent
assert pathlib.Path(glint.default_model_dir()) == package / "models" / "tiny", glint.default_model_dir()
assert pathlib.Path(sys.prefix) in package.parents, package
with create_glm_4_7_flash_plugin() as plugin:
    said = plugin.generate_text("Once upon a time", seed=1)
    assert len(said.split()) > 3, said
    assert plugin.generate_text("Once upon a time", seed=1) == said
    print("said:", said)
RUN
step "the wheel holds"
