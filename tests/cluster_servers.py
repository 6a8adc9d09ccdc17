"""Real clusters for tests: nodes of Redis or Valkey on free ports, started and ended here."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from attrs import define, field

from tests.servers import KINDS, AppendOnly, Kind, Server, free_port, start_server

SLOTS = 16_384
PATIENCE_S = 30.0
#: After so long without an answer a node counts as failed.
NODE_TIMEOUT_MS = 1_000


def wait_until(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Return once `condition()` is true; other processes tell nothing, so it is asked again and again."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            if condition():
                return
        except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError):
            pass
        assert time.monotonic() < deadline, f"{what} did not come about within {patience_s:g} s"
        time.sleep(0.02)


@define(eq=False)
class Cluster:
    """Some primaries, each with so many replicas: `servers` holds the primaries first."""

    kind: Kind
    servers: list[Server]
    primaries: int
    #: The node id of each server.
    ids: dict[int, str] = field(factory=dict[int, str], init=False)

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{_main_port(server)}" for server in self.servers[:2])

    def primary_of(self, slot: int) -> Server:
        """The server that has a slot now, as the others see it."""
        by_port = {server.port: server for server in self.servers}
        for server in self.servers:
            if server.process is None:
                continue
            for first, last, primary, *_ in server.call("CLUSTER", "SLOTS"):
                if first <= slot <= last:
                    found = by_port[primary[1]]
                    if found.process is not None:
                        return found
        raise AssertionError(f"nobody has slot {slot}")

    def id_of(self, server: Server) -> str:
        return self.ids[self.servers.index(server)]

    def is_primary(self, server: Server) -> bool:
        return str(server.call("ROLE")[0]) == "master"

    def wait_ok(self) -> None:
        """Return once every running node says that the cluster is whole."""
        running = [server for server in self.servers if server.process is not None]

        def is_ok() -> bool:
            return all(_information(server).get("cluster_state") == "ok" for server in running)

        wait_until(is_ok, "a cluster that is whole")

    def form(self) -> None:
        """Share out the slots, let the nodes meet, attach the replicas."""
        first = self.servers[0]
        share = -(-SLOTS // self.primaries)
        for number, server in enumerate(self.servers):
            self.ids[number] = str(server.call("CLUSTER", "MYID"))
            server.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < self.primaries:
                last = min((number + 1) * share, SLOTS) - 1
                server.call("CLUSTER", "ADDSLOTSRANGE", number * share, last)
            if server is not first:
                first.call("CLUSTER", "MEET", "127.0.0.1", _main_port(server), _bus_port(server))

        def know_each_other() -> bool:
            count = str(len(self.servers))
            return all(_information(server)["cluster_known_nodes"] == count for server in self.servers)

        wait_until(know_each_other, "nodes that know each other")
        for number, server in enumerate(self.servers[self.primaries :]):
            server.call("CLUSTER", "REPLICATE", self.ids[number % self.primaries])
        self.wait_ok()
        for server in self.servers[self.primaries :]:
            wait_until(lambda: server.call("ROLE")[3] == "connected", "a replica")  # noqa: B023

    # Moving slots.

    def begin_move(self, slot: int, target: Server) -> Server:
        """Mark a slot as moving; returns the server that has it."""
        source = self.primary_of(slot)
        target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))
        return source

    def move_keys(self, slot: int, source: Server, target: Server, limit: int = 0) -> int:
        """Move keys of a slot, all or so many; returns how many went."""
        moved = 0
        while not limit or moved < limit:
            keys: list[str] = source.call("CLUSTER", "GETKEYSINSLOT", slot, 10 if not limit else 1)
            if not keys:
                break
            source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            moved += len(keys)
        return moved

    def end_move(self, slot: int, source: Server, target: Server) -> None:
        """Hand the slot over: the new owner hears of it first."""
        for server in (target, source, *self.servers):
            if server.process is not None and self.is_primary(server):
                server.call("CLUSTER", "SETSLOT", slot, "NODE", self.id_of(target))

    def move_slot(self, slot: int, target: Server) -> None:
        """Move a slot with all its keys, key by key, as `redis-cli --cluster reshard` does."""
        source = self.begin_move(slot, target)
        self.move_keys(slot, source, target)
        self.end_move(slot, source, target)

    def move_slot_at_once(self, slot: int, target: Server) -> None:
        """Move a slot as a whole, as Valkey 9 can."""
        source = self.primary_of(slot)
        source.call("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", self.id_of(target))
        wait_until(lambda: self.primary_of(slot) is target, f"slot {slot} at its new place")


def _main_port(server: Server) -> int:
    """The port that the nodes tell clients of: the one for TLS where there is one."""
    if "--tls-port" not in server.extra:
        return server.port
    return int(server.extra[server.extra.index("--tls-port") + 1])


def _bus_port(server: Server) -> int:
    return int(server.extra[server.extra.index("--cluster-port") + 1])


def _information(server: Server) -> dict[str, str]:
    answer = server.call("CLUSTER", "INFO")
    if isinstance(answer, dict):
        return cast("dict[str, str]", answer)
    return dict(line.split(":", 1) for line in str(answer).split("\r\n") if ":" in line)


@contextmanager
def start_cluster(
    kind: Kind,
    *,
    tmp_path: Path,
    primaries: int = 3,
    replicas: int = 0,
    appendonly: AppendOnly = "no",
    extra: Sequence[str] = (),
    tls: Sequence[str] = (),
) -> Generator[Cluster]:
    """Run a cluster with its files below `tmp_path`; `replicas` is how many each primary has.

    With `tls`, the options that say which certificates, the nodes talk over TLS; the plain ports are for the test.
    """
    with ExitStack() as stack:
        servers: list[Server] = []
        for _ in range(primaries * (1 + replicas)):
            options: tuple[Any, ...] = (
                "--cluster-enabled", "yes",
                "--cluster-port", str(free_port()),
                "--cluster-node-timeout", str(NODE_TIMEOUT_MS),
                "--cluster-require-full-coverage", "no",
                "--cluster-replica-validity-factor", "0",
                "--repl-diskless-sync-delay", "0",
                *extra,
                *(("--tls-cluster", "yes", "--tls-port", str(free_port()), *tls) if tls else ()),
            )  # fmt: skip
            servers.append(
                stack.enter_context(
                    start_server(kind, tmp_path=tmp_path, tcp=True, appendonly=appendonly, extra=options)
                )
            )
        cluster = Cluster(kind, servers, primaries)
        cluster.form()
        yield cluster


@pytest.fixture(scope="session")
def valkey_cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[Cluster]:
    with start_cluster("valkey", tmp_path=tmp_path_factory.mktemp("v")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[Cluster]:
    with start_cluster("redis", tmp_path=tmp_path_factory.mktemp("r")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def installed_cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[Cluster]:
    with start_cluster("installed", tmp_path=tmp_path_factory.mktemp("i")) as cluster:
        yield cluster


@pytest.fixture(params=KINDS)
def store_cluster(request: pytest.FixtureRequest) -> Cluster:
    cluster: Cluster = request.getfixturevalue(f"{request.param}_cluster")
    return cluster
