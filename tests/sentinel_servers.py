"""A primary, its replicas and three sentinels for tests: all started here, and ended here."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import redis
from attrs import define, field
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers import (
    START_TIMEOUT_S,
    AppendOnly,
    Kind,
    Server,
    free_port,
    server_program,
    start_server,
)

SERVICE = "main"
SENTINELS = 3
QUORUM = 2
DOWN_AFTER_MS = 500
#: Longer than any failover should take on a busy machine.
FAILOVER_LIMIT_S = 20.0


def wait_for(condition: Callable[[], object], what: str, limit_s: float = START_TIMEOUT_S) -> None:
    """Look again and again: these programs tell nobody when they are ready."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            if condition():
                return
        except (redis.RedisError, OSError):
            pass  # not up yet
        assert time.monotonic() < deadline, f"waited {limit_s:g} s for {what}"
        time.sleep(0.01)


@define(eq=False)
class Sentinel:
    """A sentinel process of ours."""

    kind: Kind
    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    def start(self, primary: Server, password: str = "") -> None:
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.directory}",
            f"logfile {self.directory / 'log'}",
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary.port} {QUORUM}",
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
            # Also how long a sentinel that has given its vote waits before it stands for election itself.
            f"sentinel failover-timeout {SERVICE} 2000",
            f"sentinel parallel-syncs {SERVICE} 3",
        ]
        if password:
            lines += [f"requirepass {password}", f"sentinel auth-pass {SERVICE} {password}"]
        configuration = self.directory / "sentinel.conf"
        configuration.write_text("\n".join(lines) + "\n")
        self.process = subprocess.Popen(
            [server_program(self.kind), str(configuration), "--sentinel"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def hurry(self, password: str) -> None:
        """Look at the servers more often than every ten seconds."""
        for parameter in ("INFO-PERIOD", "ASK-PERIOD", "PING-PERIOD"):
            self.call("SENTINEL", "DEBUG", parameter, 200, password=password)
        # One that has not heard of a failover after four of these undoes it.
        self.call("SENTINEL", "DEBUG", "PUBLISH-PERIOD", 500, password=password)

    def call(self, *command: str | int, password: str = "") -> Any:
        client = redis.Redis(
            port=self.port,
            socket_timeout=5.0,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            decode_responses=True,
            password=password or None,
        )
        with client:
            return cast("Callable[..., Any]", client.execute_command)(*command)

    def kill9(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@define(eq=False)
class Watched:
    """Servers, one of which is the primary, and the sentinels that watch them."""

    servers: list[Server]
    sentinels: list[Sentinel]
    password: str = ""

    @property
    def url(self) -> str:
        return self.url_of(SERVICE)

    def url_of(self, service: str) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        user = f":{self.password}@" if self.password else ""
        return f"redis+sentinel://{user}{hosts}/{service}/0"

    def ports_of_primary(self) -> list[int]:
        """What each sentinel says that runs."""
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        running = [sentinel for sentinel in self.sentinels if sentinel.process is not None]
        return [int(sentinel.call(*question, password=self.password)[1]) for sentinel in running]

    def port_of_primary(self) -> int:
        """What the sentinels say; more than half of them have to agree."""
        ports = self.ports_of_primary()
        port = max(ports, key=ports.count)
        return port if ports.count(port) >= QUORUM else 0

    @property
    def primary(self) -> Server:
        port = self.port_of_primary()
        (found,) = [server for server in self.servers if server.port == port]
        return found

    @property
    def replicas(self) -> list[Server]:
        port = self.port_of_primary()
        return [server for server in self.servers if server.port != port]

    def replication(self, server: Server) -> dict[str, Any]:
        answer: dict[str, Any] = self._call(server, "INFO", "replication")
        return answer

    def _call(self, server: Server, *command: str | int) -> Any:
        with server.client(decode_responses=True, password=self.password or None) as client:
            return cast("Callable[..., Any]", client.execute_command)(*command)

    # Waiting.

    def wait_replicated(self) -> None:
        """Until every server that runs, but the primary, has what was written so far.

        A link that is up is no proof. A primary calls a replica online once it has sent it the whole data set, but
        sends what is written since only after an acknowledgement, and the next one may be a second away.
        """

        def is_replicated() -> bool:
            port = self.port_of_primary()
            running = [server for server in self.servers if server.process is not None]
            # The primary first: replicas are compared with what it had then, whatever is written meanwhile.
            running.sort(key=lambda server: server.port != port)
            found = {server.port: self.replication(server) for server in running}
            primary = found.pop(port, {})
            states = [
                primary.get(f"slave{number}", {}).get("state")
                for number in range(primary.get("connected_slaves", 0))
            ]
            return (
                primary.get("role") == "master"
                and states == ["online"] * len(found)
                and all(
                    replica.get("master_link_status") == "up"
                    and replica.get("master_port") == port
                    and replica.get("slave_repl_offset", -1) >= primary["master_repl_offset"]
                    for replica in found.values()
                )
            )

        wait_for(is_replicated, "the replicas", FAILOVER_LIMIT_S)

    def wait_watched(self) -> None:
        """Until the sentinels know each other, and every replica that runs as one that may be chosen."""
        replicas = sum(server.process is not None for server in self.servers) - 1
        sentinels = [sentinel for sentinel in self.sentinels if sentinel.process is not None]

        def is_watched() -> bool:
            for sentinel in sentinels:
                fields = sentinel.call("SENTINEL", "MASTER", SERVICE, password=self.password)
                known = (
                    fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
                )
                if int(known["num-other-sentinels"]) < len(sentinels) - 1 or known["flags"] != "master":
                    return False
                rows = sentinel.call("SENTINEL", "REPLICAS", SERVICE, password=self.password)
                found = [
                    row if isinstance(row, dict) else dict(zip(row[::2], row[1::2], strict=True))
                    for row in rows
                ]
                good = [row for row in found if row["flags"] == "slave" and row["master-link-status"] == "ok"]
                if len(good) < replicas:
                    return False
            return True

        wait_for(is_watched, "the sentinels", FAILOVER_LIMIT_S)

    def wait_other_primary(self, port: int) -> None:
        """Until the sentinels have appointed another primary than the one at `port`."""
        wait_for(lambda: self.port_of_primary() not in (0, port), "a failover", FAILOVER_LIMIT_S)

    def wait_ready(self) -> None:
        self.wait_replicated()
        self.wait_watched()

    # Faults.

    def fail_over(self) -> None:
        """Have a replica appointed while everything works."""
        port = self.port_of_primary()
        # Refused for a while behind another failover, and where no replica is good enough yet.
        wait_for(
            lambda: self.sentinels[0].call("SENTINEL", "FAILOVER", SERVICE, password=self.password),
            "a failover to begin",
            FAILOVER_LIMIT_S,
        )
        # One that has not heard of it yet may still undo it.
        wait_for(
            lambda: len(ports := set(self.ports_of_primary())) == 1 and port not in ports,
            "the sentinels to agree on another primary",
            FAILOVER_LIMIT_S,
        )

    def stop(self) -> None:
        for sentinel in self.sentinels:
            sentinel.kill9()


@contextmanager
def paused(server: Server) -> Generator[None]:
    """Stop a server in its tracks, and let it go on."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@contextmanager
def start_watched(
    kind: Kind,
    *,
    tmp_path: Path,
    replicas: int = 1,
    appendonly: AppendOnly = "everysec",
    password: str = "",
    extra: tuple[str, ...] = (),
) -> Generator[Watched]:
    """Run a primary, its replicas and three sentinels; returns when a failover would work."""
    # A replica that has just connected is sent everything, and the usual wait for more of them is 5 s.
    options = ("--repl-diskless-sync-delay", "0", *extra)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                start_server(kind, tmp_path=tmp_path, tcp=True, appendonly=appendonly, extra=options)
            )
            for _ in range(1 + replicas)
        ]
        for server in servers:
            if password:
                server.call("CONFIG", "SET", "masterauth", password, "requirepass", password)
        watched = Watched(servers, [], password)
        stack.callback(watched.stop)
        for server in servers[1:]:
            watched._call(server, "REPLICAOF", "127.0.0.1", servers[0].port)
        for _ in range(SENTINELS):
            directory = tmp_path / f"sentinel-{secrets.token_hex(3)}"
            directory.mkdir()
            sentinel = Sentinel(kind, directory, free_port())
            watched.sentinels.append(sentinel)
            sentinel.start(servers[0], password)
        wait_for(watched.port_of_primary, "the sentinels to answer")
        for sentinel in watched.sentinels:
            sentinel.hurry(password)
        watched.wait_ready()
        yield watched
