"""Glint: inference of GLM-4.7-Flash.

>>> import glint
>>> with glint.Engine() as engine:                       # the bundled model; or Engine("/models/GLM-4.7-Flash")
...     print(engine.chat("Tell me a story.", max_tokens=100).content)
...     print(engine.generate("Once upon a time", temperature=0, max_tokens=20).text)

`Engine` loads a model and runs any number of requests at once, from any number of threads. Errors are `glint.Error`.
"""

from pathlib import Path as _Path

try:
    from . import _native
except ImportError as _error:
    _here = _Path(__file__).parent
    _others = sorted(p.name for p in _here.glob("_native.*") if p.suffix in (".so", ".pyd") and p.exists())
    _why = f"it is there for another Python ({', '.join(_others)})" if _others else "it has not been built"
    raise ImportError(
        f"glint's native module does not load: {_why}. In a checkout run `make test` (it builds the module for"
        f" .venv/bin/python), or install with `pip install .`. ({_error})"
    ) from _error

from ._engine import Engine, Stream
from ._model_dir import default_model_dir
from ._native import Error, Event, Usage
from ._types import ChatResult, EngineOptions, EngineStats, Generation, ModelInfo, Sampling

__version__ = _native.version()

# They are documented, pickled and printed under the names that users import.
for _public in (Error, Event, Usage):
    _public.__module__ = "glint"
Error.__doc__ = (
    "What Glint reports about bad models, options, requests and files: one line that says found and expected."
)

__all__ = [
    "ChatResult",
    "Engine",
    "EngineOptions",
    "EngineStats",
    "Error",
    "Event",
    "Generation",
    "ModelInfo",
    "Sampling",
    "Stream",
    "Usage",
    "__version__",
    "default_model_dir",
]
