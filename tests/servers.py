"""Real servers for tests: each one started here, checked to be the one we started, and ended here.

Fixtures: `valkey_server`, `redis_server` and `installed_server` (one per test run, over TCP, without persistence),
`store_server` (Valkey and Redis, one after the other), `each_server` (the installed one as well) and `namespace` (a
string no other test has). Take them into a `conftest.py` by importing them.
"""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import redis
from attrs import define, field
from redis.backoff import NoBackoff
from redis.retry import Retry

from atomic_actors.journal.redis._link import ACL_RULES
from tests.server_programs import KINDS, Kind, note_use, server_program

__all__ = (
    "KINDS",
    "AppendOnly",
    "Kind",
    "Server",
    "each_server",
    "free_port",
    "installed_server",
    "namespace",
    "redis_server",
    "server_program",
    "start_server",
    "store_server",
    "valkey_server",
)

AppendOnly = Literal["always", "everysec", "no"]

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
#: Another process may take a free port before the server does.
PORT_ATTEMPTS = 5
#: So many of the latest free ports are kept: more than a test needs, and few enough for the limit of open files.
PORTS_KEPT = 64

_keepers: deque[socket.socket] = deque()


def free_port() -> int:
    """A port on which nothing listens, kept for the caller.

    A port that is only looked up may be taken by any connection before the server listens on it. Linux gives a port
    that a socket is bound to to no other caller, and still lets a server listen on it if both allow the reuse of
    addresses, as servers do.
    """
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind(("127.0.0.1", 0))
    port: int = keeper.getsockname()[1]
    _keepers.append(keeper)
    if sys.platform != "linux" or len(_keepers) > PORTS_KEPT:
        _keepers.popleft().close()
    return port


@define(eq=False)
class Server:
    """A server process of ours. `start`, `kill9` and `restart` return only when they are done."""

    kind: Kind
    directory: Path
    tcp: bool
    appendonly: AppendOnly
    extra: tuple[str, ...] = ()
    port: int = 0
    #: `user:password@` for those who are tested; the tests themselves need none.
    credentials: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    @property
    def socket_path(self) -> Path:
        return self.directory / "s"

    @property
    def url(self) -> str:
        return (
            f"redis://{self.credentials}127.0.0.1:{self.port}/0" if self.tcp else f"unix://{self.socket_path}"
        )

    @property
    def pid(self) -> int:
        assert self.process is not None, "the server is not running"
        return self.process.pid

    @property
    def log(self) -> str:
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def client(self, **options: Any) -> redis.Redis:
        """Make a blocking client that never retries; close it."""
        options = {"socket_timeout": 5.0, "retry": Retry(NoBackoff(), 0), "protocol": 2, **options}
        make = cast("Callable[..., redis.Redis]", redis.Redis.from_url)
        return make(self.url.replace(self.credentials, ""), **options)

    def call(self, *command: str | int | bytes) -> Any:
        """Send one command on a connection of its own."""
        with self.client(decode_responses=True) as client:
            return cast("Callable[..., Any]", client.execute_command)(*command)

    def start(self) -> None:
        assert self.process is None, "the server is running"
        for _ in range(PORT_ATTEMPTS):
            if self._launch():
                return
            if not self.tcp or "ddress already in use" not in self.log:
                break
            self.port = free_port()
        raise AssertionError(f"{self.kind} did not start; its log ends with\n{self.log[-2000:]}")

    def _command(self) -> list[str]:
        listen = (
            ["--port", str(self.port), "--bind", "127.0.0.1"]
            if self.tcp
            else ["--port", "0", "--unixsocket", str(self.socket_path), "--unixsocketperm", "700"]
        )
        durable = (
            ["--appendonly", "no"]
            if self.appendonly == "no"
            else ["--appendonly", "yes", "--appendfsync", self.appendonly]
        )
        files = ["--dir", str(self.directory), "--logfile", str(self.directory / "log")]
        return [server_program(self.kind), *listen, *durable, *files, "--save", "", *self.extra]

    def _launch(self) -> bool:
        """Start the process; False if it ends instead of answering."""
        (self.directory / "log").unlink(missing_ok=True)
        self.process = subprocess.Popen(
            self._command(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                self.process = None
                return False
            try:
                information = self.call("INFO", "server")
                self.call("PING")  # an error for as long as the data is being loaded
            except (redis.ConnectionError, redis.TimeoutError):
                time.sleep(0.005)
                continue
            if int(information["process_id"]) == self.process.pid:
                note_use(self.kind, information)
                return True
            # Somebody else has the port; ours is about to find that out and end.
            time.sleep(0.005)
        self.kill9()
        return False

    def kill9(self) -> None:
        """Kill the process as a crash would; what it had not written is lost."""
        assert self.process is not None, "the server is not running"
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self) -> None:
        """End the process gracefully, or with force if it does not."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def restart(self) -> None:
        """Start again with the same address and data; a running one is stopped gracefully first."""
        self.stop()
        self.start()


@contextmanager
def start_server(
    binary: Kind,
    *,
    tmp_path: Path,
    tcp: bool,
    appendonly: AppendOnly,
    extra: Sequence[str] = (),
) -> Generator[Server]:
    """Run a server with its files in a new directory below `tmp_path`, on a free port or a socket."""
    directory = tmp_path / f"{binary}-{secrets.token_hex(3)}"
    directory.mkdir(parents=True)
    server = Server(binary, directory, tcp, appendonly, tuple(extra), port=free_port() if tcp else 0)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    with start_server("valkey", tmp_path=tmp_path_factory.mktemp("v"), tcp=True, appendonly="no") as server:
        yield server


@contextmanager
def _server_for_a_user(kind: Kind, factory: pytest.TempPathFactory) -> Generator[Server]:
    """What is tested with it has the rights that the docs name, and no others."""
    user = ("--user", "app", "on", ">secret", *ACL_RULES.replace("<namespace>", "*").split())
    with start_server(kind, tmp_path=factory.mktemp("r"), tcp=True, appendonly="no", extra=user) as server:
        server.credentials = "app:secret@"
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    with _server_for_a_user("redis", tmp_path_factory) as server:
        yield server


@pytest.fixture(scope="session")
def installed_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    with _server_for_a_user("installed", tmp_path_factory) as server:
        yield server


@pytest.fixture(params=["valkey", "redis"])
def store_server(request: pytest.FixtureRequest) -> Server:
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return server


@pytest.fixture(params=KINDS)
def each_server(request: pytest.FixtureRequest) -> Server:
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return server


@pytest.fixture
def namespace() -> str:
    return f"test-{secrets.token_hex(6)}"
