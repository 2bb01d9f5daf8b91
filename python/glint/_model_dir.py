"""Where the default model is."""

import os
from pathlib import Path

from ._native import Error

_BUNDLED = Path("models") / "tiny"


def default_model_dir() -> str:
    """The model that `Engine()` opens: $GLINT_MODEL if set, else the bundled one.

    The bundled model is package data of an installed glint (glint/models/tiny), or models/tiny of the checkout.
    Raises Error when there is neither.
    """
    from_env = os.environ.get("GLINT_MODEL")
    if from_env:
        return checked_model_dir(from_env, "GLINT_MODEL")
    package = Path(__file__).resolve().parent
    for root in (package, package.parent.parent):
        if (root / _BUNDLED / "config.json").is_file():
            return str(root / _BUNDLED)
    raise Error(f"no model: found no {_BUNDLED} in {package} or above it; expected Engine(model_dir) or GLINT_MODEL")


def checked_model_dir(model_dir: "str | os.PathLike[str]", origin: str) -> str:
    """`model_dir` as text. Raises Error if it is not a directory; what is in it, the engine checks."""
    path = os.fspath(model_dir)
    if not os.path.isdir(path):
        raise Error(
            f"model directory {path} (from {origin}): found no such directory;"
            " expected a directory with config.json and safetensors"
        )
    return path
