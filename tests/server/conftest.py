"""One server over the bundled model for all tests that need no flags of their own."""

import pytest
from serving import Server


@pytest.fixture(scope="session")
def server():
    with Server("--max-requests", "32") as running:
        yield running


@pytest.fixture()
def idle(server):
    """Fails a test that leaves a request or a page behind."""
    yield server
    server.wait_idle()
