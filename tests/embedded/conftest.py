"""Places for an embedded server: a fresh directory, a short path, a small disk."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

import atomic_actors.journal.embedded._server as embedded_process
from tests.embedded.processes import kill_left_behind


@pytest.fixture
def directory(tmp_path: Path) -> Generator[Path]:
    """A directory that does not exist yet; a server that a failed test left there is killed."""
    path = tmp_path / "d"
    yield path
    kill_left_behind(path)


@pytest.fixture
def short_path() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="aa-") as path:
        yield Path(path)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_process, "ANSWER_TIMEOUT_S", 0.2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Generator[Path]:
    """A disk of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
