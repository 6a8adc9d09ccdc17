"""A store with dead letters in it, and the command line that looks at it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import frozen

from atomic_actors.tools.cli import main
from tests.cli.application import PARTITIONS, fail, kill_in_turn
from tests.servers import namespace, valkey_server

__all__ = ("namespace", "valkey_server")


@frozen
class Run:
    """What a command did."""

    code: int
    output: str
    errors: str


Command = Callable[..., Run]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ATOMIC_ACTORS_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run the command line in this process."""

    def run(*words: str) -> Run:
        capfd.readouterr()
        code = main(words)
        captured = capfd.readouterr()
        return Run(code, captured.out, captured.err)

    return run


@frozen
class Store:
    """A store and what died in it."""

    url: str
    failed: tuple[str, ...]
    interrupted: str

    @property
    def options(self) -> tuple[str, ...]:
        return ("--url", self.url, "--partitions", str(PARTITIONS))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One that tests only read."""
    url = f"embedded://{tmp_path_factory.mktemp('s') / 'd'}"
    interrupted = kill_in_turn(url)
    failed = fail(url, "account/a-1", "account/a-2", "parcel/p-1")
    return Store(url, tuple(failed), interrupted)


@pytest.fixture
def fresh_store(tmp_path: Path) -> Store:
    """One that a test may change."""
    url = f"embedded://{tmp_path / 'd'}"
    return Store(url, tuple(fail(url, "account/a-1", "account/a-2", "parcel/p-1")), "")
