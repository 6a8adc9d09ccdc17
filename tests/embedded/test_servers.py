"""The servers that tests start: they are ours, they keep what they should, and they are gone afterwards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import pytest
import redis

from tests.servers import SKIP_VARIABLE, Kind, namespace, server_program, start_server

__all__ = ("namespace",)


@pytest.mark.parametrize("tcp", [True, False], ids=["tcp", "socket"])
@pytest.mark.parametrize("kind", get_args(Kind))
def test_server_is_ours_and_keeps_its_data(kind: Kind, tcp: bool, tmp_path: Path, namespace: str) -> None:
    with start_server(kind, tmp_path=tmp_path, tcp=tcp, appendonly="always", extra=["--hz", "20"]) as server:
        first = server.pid
        assert server.call("INFO", "server")["process_id"] == first
        assert server.call("CONFIG GET", "hz") == {"hz": "20"}
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


def test_missing_redis_fails_unless_it_may_be_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(SKIP_VARIABLE, raising=False)
    with pytest.raises(pytest.fail.Exception, match="redis-server is not on PATH"):
        server_program("redis")
    monkeypatch.setenv(SKIP_VARIABLE, "1")
    with pytest.raises(pytest.skip.Exception):
        server_program("redis")
