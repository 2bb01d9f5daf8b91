"""One engine and one plug-in over the bundled model for all Python tests."""

import json
from pathlib import Path

import pytest

import glint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def bundled_model(monkeypatch):
    monkeypatch.delenv("GLINT_MODEL", raising=False)


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def golden():
    return json.loads((ROOT / "tests/data/golden/golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def engine():
    with glint.Engine(ROOT / "models/tiny") as opened:
        yield opened


@pytest.fixture()
def idle(engine):
    """Fails a test that leaves a request behind."""
    yield engine
    stats = engine.stats()
    assert (stats["running_requests"], stats["waiting_requests"], stats["cache_tokens_used"]) == (0, 0, 0)
