"""`atomic-actors nodes` and `partitions`, beside real workers."""

from __future__ import annotations

import json
import signal
from collections import Counter as Count
from collections.abc import Generator
from typing import Any

import anyio
import pytest
from attrs import frozen

from tests.cli.conftest import Command, Run
from tests.cli.running import PARTITIONS, PATIENCE_S, Running, running
from tests.cli.workers_application import BEGUN, Add, Counter, Nap
from tests.sentinel_servers import wait_for
from tests.servers import Server

pytestmark = [pytest.mark.timeout(180)]


@frozen
class Workers:
    """Two workers, and the command that looks at them."""

    run: Running
    command: Command

    def __call__(self, *words: str) -> Run:
        store = self.run.store
        options = ("--url", store["ATOMIC_ACTORS_URL"], "--namespace", store["ATOMIC_ACTORS_NAMESPACE"])
        return self.command(*words, *options, "--partitions", str(PARTITIONS))

    def json(self, *words: str) -> list[dict[str, Any]]:
        run = self(*words, "--json")
        assert run.code == 0, run.errors
        rows: list[dict[str, Any]] = json.loads(run.output)
        return rows

    def ask(self) -> None:
        async def main() -> None:
            async with self.run.sender() as system:
                for name in "abcdefgh":
                    assert await system.ask(Counter.ref(name), Add(1)) == 1

        anyio.run(main)


@pytest.fixture
def workers(valkey_server: Server, namespace: str, command: Command) -> Generator[Workers]:
    with running("--workers", "2", server=valkey_server, namespace=namespace) as run:
        run.wait_for("is served")
        yield Workers(run, command)
        run.send(signal.SIGTERM)
        assert run.wait_code() == 0, run.output


def test_who_is_there_and_who_owns_what(workers: Workers) -> None:
    nodes = workers.json("nodes")
    assert {node["pid"] for node in nodes} == {*workers.run.serving().values()}
    assert [node["kinds"] for node in nodes] == [["counter"]] * 2
    assert [(node["is_live"], node["is_draining"]) for node in nodes] == [(True, False)] * 2
    owners = workers.json("partitions")
    assert [owner["partition"] for owner in owners] == list(range(PARTITIONS))
    assert {owner["node_id"] for owner in owners} <= {node["node_id"] for node in nodes} | {""}

    table = workers("nodes").output
    assert max(map(len, table.splitlines())) <= 100
    for node in nodes:
        (line,) = [line for line in table.splitlines() if line.startswith(node["node_id"])]
        assert {str(node["pid"]), "default", "live", "counter"} <= {*line.split()}
    table = workers("partitions").output
    assert table.splitlines()[0].split() == ["partition", "owner", "machine", "pid", "epoch"]
    assert table.splitlines()[PARTITIONS].split()[0] == str(PARTITIONS - 1)


def test_a_drained_node_owns_nothing_and_the_others_everything(workers: Workers) -> None:
    drained, other = (node["node_id"] for node in workers.json("nodes"))
    run = workers("nodes", "drain", drained)
    assert run.code == 0, run.errors
    assert run.output == f"{drained} owns nothing any more and takes nothing new; it can be stopped\n"
    workers.ask()
    nodes = {node["node_id"]: node for node in workers.json("nodes")}
    assert (nodes[drained]["partitions"], nodes[drained]["is_draining"]) == (0, True)

    def are_all_at_the_other() -> bool:
        return Count(owner["node_id"] for owner in workers.json("partitions")) == {other: PARTITIONS}

    # The asks prove it of their own partitions only: the rest is claimed soon after it was given up.
    wait_for(are_all_at_the_other, "the other node to own everything", PATIENCE_S)


def test_when_all_are_drained_nobody_owns_anything(workers: Workers) -> None:
    run = workers("nodes", "drain", "--all", "--timeout", "20")
    assert run.code == 0, run.errors
    assert run.output.startswith("every node is drained")
    assert {owner["node_id"] for owner in workers.json("partitions")} == {""}
    shown = workers("partitions").output
    assert f"{PARTITIONS} of {PARTITIONS} partitions have no owner" in shown
    # What comes next takes over: new processes are new nodes.
    workers.run.send(signal.SIGHUP)
    workers.run.wait_for("reloaded 2 of 2")
    workers.ask()


def test_a_drain_that_takes_too_long_says_so(workers: Workers) -> None:
    async def nap() -> None:
        async with workers.run.sender() as system:
            await system.tell(Counter.ref("a"), Nap())

    anyio.run(nap)
    workers.run.wait_for(BEGUN)
    run = workers("nodes", "drain", "--all", "--timeout", "0.2")
    assert run.code == 1
    assert "partitions are still owned after 0.2 s" in run.errors
    assert run.errors.count("\n") == 1


def test_an_unknown_node(workers: Workers) -> None:
    run = workers("nodes", "drain", "nobody")
    assert run.code == 1
    assert run.errors == "error: there is no node 'nobody'; `nodes()` lists the nodes\n"


def test_nobody_is_there(command: Command, valkey_server: Server, namespace: str) -> None:
    options = ("--url", valkey_server.url, "--namespace", namespace, "--partitions", "2")
    assert command("nodes", *options).output == "no nodes\n"
    assert "2 of 2 partitions have no owner" in command("partitions", *options).output
