"""The embedded server, with real server processes: how it starts, is shared, survives crashes and ends."""

# Nothing else runs in these event loops that a short look at a file could hold up.
# ruff: noqa: ASYNC240

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from pathlib import Path

import anyio
import pytest

import atomic_actors.journal.embedded._server as embedded_process
from atomic_actors.base._errors import EmbeddedServerError, InvalidConfig
from atomic_actors.journal.embedded._embedded import (
    EmbeddedLocation,
    embedded_directory,
    embedded_server,
    ensure_running,
)
from tests.embedded.processes import application, call, kill, runs, setting
from tests.servers import server_program

pytestmark = pytest.mark.anyio


# URLs.


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("embedded:", ".atomic-actors"),
        ("embedded:some/dir", "some/dir"),
        ("embedded:./some/dir/", "some/dir"),
        ("embedded:///abs/dir", "/abs/dir"),
        ("embedded:/abs/dir", "/abs/dir"),
        ("EMBEDDED:data", "data"),
        ("embedded:a%20b%3Fc", "a b?c"),
        ("embedded:caf%C3%A9", "café"),
    ],
)
def test_url_names_a_directory(url: str, expected: str) -> None:
    assert embedded_directory(url) == Path(expected)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "not an embedded URL"),
        ("embedded", "not an embedded URL"),
        ("redis://localhost", "not an embedded URL"),
        ("embedded://", "three slashes"),
        ("embedded://host/dir", "three slashes"),
        ("embedded://dir", "three slashes"),
        ("embedded:///", "root directory"),
        ("embedded:dir?fsync=no", "query"),
        ("embedded:dir#part", "query or fragment"),
        ("embedded:~/dir", "not expanded"),
        ("embedded:a%00b", "control characters"),
    ],
)
def test_url_that_makes_no_sense_is_refused(url: str, said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        embedded_directory(url)


# One process.


async def test_starts_private_and_durable_then_stops(directory: Path) -> None:
    async with embedded_server(directory) as location:
        assert location == EmbeddedLocation(directory, directory / "server.sock", location.pid, joined=False)
        assert call(location, "INFO", "server")["process_id"] == location.pid
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(location.socket_path.stat().st_mode) == 0o700
        assert setting(location, "appendonly") == "yes"
        assert setting(location, "appendfsync") == "always"
        assert setting(location, "maxmemory-policy") == "noeviction"
        assert setting(location, "maxmemory") == "0"
        assert setting(location, "port") == "0"
        assert setting(location, "save") == ""
        assert (directory / ".gitignore").read_text() == "*\n"
        assert os.getsid(location.pid) != os.getsid(0)
    assert not runs(location.pid)
    assert not location.socket_path.exists()
    assert not list((directory / "users").iterdir())


async def test_data_survives_a_stop(directory: Path) -> None:
    async with embedded_server(directory) as location:
        call(location, "SET", "key", "value")
    async with embedded_server(directory) as again:
        assert again.pid != location.pid
        assert not again.joined
        assert call(again, "GET", "key") == "value"


async def test_relative_directory_and_awkward_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = 'a "b\\ é'
    async with embedded_server(name) as location:
        assert location.directory == tmp_path / name
        assert call(location, "PING")


async def test_open_directory_is_closed_to_others(directory: Path) -> None:
    directory.mkdir(mode=0o755)
    directory.chmod(0o755)
    async with embedded_server(directory):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


async def test_second_user_joins_and_the_last_one_stops(directory: Path) -> None:
    async with embedded_server(directory) as first:
        async with embedded_server(directory) as second:
            assert second.joined
            assert (second.pid, second.socket_path) == (first.pid, first.socket_path)
        assert runs(first.pid)
        assert call(first, "PING")
    assert not runs(first.pid)


async def test_users_that_come_and_go_at_once_lose_nothing(directory: Path) -> None:
    pids: set[int] = set()

    async def come_and_go() -> None:
        for _ in range(4):
            async with embedded_server(directory) as location:
                pids.add(location.pid)
                call(location, "INCR", "visits")

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(come_and_go)
    assert not any(runs(pid) for pid in pids)
    async with embedded_server(directory) as location:
        assert call(location, "GET", "visits") == "12"


async def test_body_error_leaves_as_itself_and_the_server_stops(directory: Path) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with embedded_server(directory) as location:
            raise LookupError("mine")
    assert not runs(location.pid)


async def test_cancelled_user_still_stops_the_server(directory: Path) -> None:
    with anyio.CancelScope() as scope:
        async with embedded_server(directory) as location:
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert not runs(location.pid)


async def test_cancelled_start_leaves_nothing_behind(directory: Path) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with embedded_server(directory):
            pytest.fail("the start was not cancelled")
    assert scope.cancelled_caught
    async with embedded_server(directory) as location:
        assert not location.joined
    assert not runs(location.pid)


# Crashes.


async def test_killed_application_leaves_server_and_data(directory: Path, anyio_backend_name: str) -> None:
    with application(directory, anyio_backend_name) as crashed:
        report = await crashed.report()
        await crashed.kill()
    assert runs(report["pid"])
    async with embedded_server(directory) as location:
        assert location.joined
        assert location.pid == report["pid"]
        assert call(location, "GET", "written") == "1"
        # The crashed user's entry is still there; it does not count when we leave.
        assert len(list((directory / "users").iterdir())) == 2
    assert not runs(report["pid"])


async def test_processes_that_start_at_once_share_one_server(
    directory: Path, anyio_backend_name: str
) -> None:
    with (
        application(directory, anyio_backend_name) as first,
        application(directory, anyio_backend_name) as second,
        application(directory, anyio_backend_name) as third,
    ):
        applications = (first, second, third)
        reports = [await each.report() for each in applications]
        (pid,) = {report["pid"] for report in reports}
        assert sorted(report["joined"] for report in reports) == [False, True, True]
        await first.leave()
        await second.kill()
        assert runs(pid)
        await third.leave()
    assert not runs(pid)


async def test_interrupt_from_the_keyboard_spares_the_server(
    directory: Path, anyio_backend_name: str
) -> None:
    with application(directory, anyio_backend_name) as user:
        report = await user.report()
        # Ctrl-C goes to the whole foreground group; the server must not be in it.
        assert os.getpgid(report["pid"]) != os.getpgid(user.process.pid)
        await user.leave()


async def test_killed_server_is_restarted_with_its_data(directory: Path) -> None:
    async with embedded_server(directory) as location:
        call(location, "SET", "key", "value")
        assert await ensure_running(location) == EmbeddedLocation(
            directory, location.socket_path, location.pid, joined=True
        )
        await kill(location)
        found: list[EmbeddedLocation] = []

        async def ensure() -> None:
            found.append(await ensure_running(location))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ensure)
        (pid,) = {each.pid for each in found}
        assert pid != location.pid
        assert sorted(each.joined for each in found) == [False, True, True]
        assert call(found[0], "GET", "key") == "value"
    assert not runs(pid)


async def test_server_that_died_in_use_does_not_spoil_leaving(directory: Path) -> None:
    async with embedded_server(directory) as location:
        await kill(location)
    assert location.socket_path.exists()  # stale: a killed server cannot remove it
    async with embedded_server(directory) as again:
        assert not again.joined


async def test_stale_socket_of_anybody_is_replaced(directory: Path) -> None:
    async with embedded_server(directory):
        pass
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(directory / "server.sock"))
    async with embedded_server(directory) as location:
        assert call(location, "PING")


@pytest.mark.parametrize("content", [None, "", '{"pid": "x', '{"other": 1}'])
async def test_lost_or_torn_record_does_not_matter(directory: Path, content: str | None) -> None:
    async with embedded_server(directory) as location:
        record = directory / "server.json"
        record.unlink()
        if content is not None:
            record.write_text(content)
        async with embedded_server(directory) as second:
            assert second.joined
            assert second.pid == location.pid
        assert json.loads(record.read_text())["pid"] == location.pid
    assert not runs(location.pid)


async def test_leftover_child_of_a_killed_server_does_not_block_a_start(directory: Path) -> None:
    async with embedded_server(directory) as location:
        inherited = os.open(directory / "server.alive", os.O_RDONLY)
        await kill(location)
        # What a child that rewrites the log would hold, had the server left one behind.
        assert embedded_process.try_lock(inherited)
        again = await ensure_running(location)
        assert not again.joined
        os.close(inherited)
        assert (await ensure_running(again)).pid == again.pid


async def test_no_second_server_while_nobody_knows_whether_the_first_lives(directory: Path) -> None:
    async with embedded_server(directory) as location:
        await kill(location)
        (directory / "server.json").unlink()
        unknown = os.open(directory / "server.alive", os.O_RDONLY)
        assert embedded_process.try_lock(unknown)
        with pytest.raises(EmbeddedServerError, match="did not answer within"):
            await ensure_running(location, start_timeout_s=0.2)
        os.close(unknown)
        assert not (await ensure_running(location)).joined


@pytest.mark.usefixtures("impatient")
async def test_server_that_hangs_is_neither_doubled_nor_killed(directory: Path) -> None:
    async with embedded_server(directory) as location:
        os.kill(location.pid, signal.SIGSTOP)
        try:
            with pytest.raises(EmbeddedServerError, match=rf"end process {location.pid} by hand"):
                await ensure_running(location, start_timeout_s=0.1)
        finally:
            os.kill(location.pid, signal.SIGCONT)
        assert (await ensure_running(location)).pid == location.pid


@pytest.mark.usefixtures("impatient")
async def test_server_that_does_not_stop_is_reported_in_bounded_time(directory: Path) -> None:
    started_at = anyio.current_time()
    with pytest.raises(EmbeddedServerError, match=r"did not stop within 0.1 s"):
        async with embedded_server(directory, stop_timeout_s=0.1) as location:
            os.kill(location.pid, signal.SIGSTOP)
    assert anyio.current_time() - started_at < 5
    os.kill(location.pid, signal.SIGCONT)
    async with embedded_server(directory) as again:
        assert again.pid == location.pid
    assert not runs(location.pid)


async def test_lock_that_is_never_released_is_reported(directory: Path) -> None:
    async with embedded_server(directory) as location:
        held = embedded_process.open_lock(embedded_process.files_of(directory))
        assert embedded_process.try_lock(held)
        with pytest.raises(EmbeddedServerError, match="another process has been starting or stopping"):
            await ensure_running(location, start_timeout_s=0.1)
        embedded_process.unlock(held)


async def test_loading_may_take_longer_than_the_timeout(directory: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow-server"
    slow.write_text(
        f'#!/bin/sh\nexec {server_program("valkey")} "$@" --key-load-delay 2000'
        " --loading-process-events-interval-bytes 1024\n"
    )
    slow.chmod(0o700)
    async with embedded_server(directory, binary=str(slow)) as location:
        call(
            location, "MSET", *(f"key-{index // 2}" if index % 2 == 0 else "x" * 512 for index in range(800))
        )
        call(location, "BGREWRITEAOF")
        while call(location, "INFO", "persistence")["aof_base_size"] < 400 * 16:  # noqa: ASYNC110
            await anyio.sleep(0.01)
        await kill(location)
        started_at = anyio.current_time()
        again = await ensure_running(location, start_timeout_s=0.4)
        assert anyio.current_time() - started_at > 0.8
        assert call(again, "DBSIZE") == 400
