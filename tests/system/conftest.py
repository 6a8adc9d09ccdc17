"""Every test here runs on each store that needs no other machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers import redis_server, store_server, valkey_server
from tests.system.support import NewSystem, Stage

__all__ = ("redis_server", "store_server", "valkey_server")

#: What `store_url` runs through: one server for all tests of a run, but for `embedded`, which has its own.
STORES = (
    "memory",
    "embedded",
    pytest.param("valkey", marks=pytest.mark.redis),
    pytest.param("redis", marks=pytest.mark.redis),
)


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return "memory:"
    if request.param == "embedded":
        return f"embedded://{tmp_path / 'store'}"
    server = request.getfixturevalue(f"{request.param}_server")
    url: str = server.url
    return url


@pytest.fixture
def new_system(store_url: str) -> NewSystem:
    """Makes systems over one store; what one leaves behind the next one finds."""
    return NewSystem(store_url)


@pytest.fixture
def stage() -> Stage:
    """What the test shares with its actors."""
    return Stage()
