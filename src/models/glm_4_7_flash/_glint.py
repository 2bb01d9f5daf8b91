"""Finds the package glint: the one this file is part of, the checkout's own, or an installed one."""

import importlib
import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

_CHECKOUT = Path(__file__).resolve().parents[3]


def _built_in_checkout() -> bool:
    package = _CHECKOUT / "python" / "glint"
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    return (package / "__init__.py").is_file() and any((package / f"_native{s}").is_file() for s in suffixes)


def find_glint() -> ModuleType:
    """The module glint. Raises ImportError that says what to do when there is none."""
    if "glint" in sys.modules:
        return sys.modules["glint"]
    if not _built_in_checkout():
        try:
            return importlib.import_module("glint")
        except ModuleNotFoundError as error:
            if error.name != "glint":
                raise
            raise ImportError(
                f"the plug-in needs the package glint, which is neither installed nor built in {_CHECKOUT}:"
                " run `make test` there once (it builds the module for .venv/bin/python), or `pip install .`"
            ) from None
    sys.path.insert(0, str(_CHECKOUT / "python"))  # only until it is found: nothing else is to come from there
    try:
        return importlib.import_module("glint")
    finally:
        sys.path.remove(str(_CHECKOUT / "python"))


if TYPE_CHECKING:
    import glint as glint
else:
    glint = find_glint()
