"""What the chaos tests share: the warm parent of the workers, and places for servers."""

from __future__ import annotations

import secrets
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.chaos.processes import Template, start_template
from tests.embedded.processes import kill_left_behind

pytest.register_assert_rewrite("tests.chaos.checks")


@pytest.fixture(scope="session")
def template() -> Generator[Template]:
    with start_template() as template:
        yield template


@pytest.fixture
def store(tmp_path: Path) -> Generator[Path]:
    """The directory of an embedded server; one that a failed test left there is killed."""
    path = tmp_path / "d"
    yield path
    kill_left_behind(path)


@pytest.fixture
def namespace() -> str:
    return f"chaos-{secrets.token_hex(6)}"
