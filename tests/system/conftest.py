"""Every test here runs on each store that needs no other machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.servers import KINDS, installed_server, redis_server, store_server, valkey_server
from tests.system.support import NewSystem, Stage

__all__ = ("installed_server", "redis_server", "store_server", "valkey_server")

#: What `store_url` runs through: one server for all tests of a run, but for `embedded`, which has its own.
STORES = (
    "memory",
    "embedded",
    *(pytest.param(kind, marks=pytest.mark.redis) for kind in KINDS),
)


#: What would show little that the other combinations do not: both programs speak one protocol, and the embedded
#: server is one of them. `AA_TESTS_ALL_MODES=1` runs these, too, as `nox -s tests_all` does.
LEFT_OUT = ({"asyncio", "valkey"}, {"trio", "redis"}, {"trio", "embedded"}, {"asyncio", "installed"})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("AA_TESTS_ALL_MODES") == "1":
        return
    left_out = [item for item in items if _is_left_out(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not _is_left_out(item)]


def _is_left_out(item: pytest.Item) -> bool:
    # A module that chooses its stores by itself has chosen.
    if "tests/system/" not in item.nodeid or hasattr(getattr(item, "module", None), "store_url"):
        return False
    words = set(item.nodeid.rpartition("[")[2].rstrip("]").split("-"))
    return any(combination <= words for combination in LEFT_OUT)


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
