"""Each call of the journal in turn is cut off, doubled or late: the outcome is the same, and nothing runs twice."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import define, evolve, frozen

from atomic_actors import (
    Actor,
    ActorSystem,
    AskTimeout,
    Command,
    Config,
    Interrupted,
    ResultExpired,
    StoreUnavailable,
    UnknownMessage,
    handler,
)
from tests.chaos.checks import Verdict, finish
from tests.chaos.proxy import Fault, Proxy, frame_end, run_proxy
from tests.chaos.workload import Plan
from tests.servers import Server, start_server

pytestmark = pytest.mark.anyio

SEED = int(os.environ.get("AA_TESTS_CHAOS_SEED", "1"))
CALLS = 40
STORE_TIMEOUT_S = 0.3
STORE: dict[str, Any] = {"allow_no_persistence": True, "store_timeout_s": STORE_TIMEOUT_S}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    folder = tmp_path_factory.mktemp("s")
    with start_server("valkey", tmp_path=folder, tcp=True, appendonly="no") as server:
        yield server


def _plan(directory: Path, url: str, namespace: str) -> Plan:
    directory.mkdir()
    return Plan(
        url,
        namespace,
        directory,
        SEED,
        accounts=4,
        clients=2,
        places=12,
        partitions=4,
        pace_s=0.001,
        settings=STORE,
    )


async def _run(plan: Plan, proxy: Proxy) -> Verdict:
    async with run_proxy(proxy):
        try:
            return await finish(evolve(plan, url=proxy.url))
        except BaseException as error:
            error.add_note(f"{proxy.fault} at call {proxy.at}; AA_TESTS_CHAOS_SEED={SEED}")
            raise


def _check(verdict: Verdict, expected: Verdict) -> None:
    assert verdict.balances == expected.balances
    assert verdict.accepted == expected.accepted
    # Everything started once.
    assert (verdict.starts, verdict.again, verdict.dead_letters) == (expected.starts, 0, 0)
    assert verdict.told == expected.told


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", ["request lost", "reply lost", "doubled", "late"])
async def test_one_call(fault: Fault, server: Server, tmp_path: Path, namespace: str) -> None:
    expected = await finish(_plan(tmp_path / "0", server.url, f"{namespace}-0"))
    assert expected.dead_letters == 0
    for call in range(1, CALLS + 1):
        plan = _plan(tmp_path / str(call), "", f"{namespace}-{call}")
        proxy = Proxy(server.port, fault, call, delay_s=STORE_TIMEOUT_S + 0.1)
        verdict = await _run(plan, proxy)
        assert proxy.fired == 1
        _check(verdict, expected)


async def test_every_call_twice(server: Server, tmp_path: Path, namespace: str) -> None:
    expected = await finish(_plan(tmp_path / "0", server.url, f"{namespace}-0"))
    proxy = Proxy(server.port, "doubled", 0, every=True)
    verdict = await _run(_plan(tmp_path / "1", "", f"{namespace}-1"), proxy)
    assert proxy.fired > CALLS
    _check(verdict, expected)


# --- longer than the outcome is kept ---------------------------------------------------------------------


@frozen
class Add(Command[int]):
    number: int


@define
class Numbers:
    count: int = 0


class Counting(Actor[Numbers], kind="counting"):
    def __init__(self, starts: Counter[int]) -> None:
        self.starts = starts

    @handler
    async def add(self, message: Add) -> int:
        self.starts[message.number] += 1
        self.state.count += 1
        return message.number


def _config(url: str, namespace: str, *actors: Any) -> Config:
    return Config(
        url=url,
        namespace=namespace,
        actors=actors,
        partitions=2,
        result_ttl_s=1.0,
        accept_timeout_s=0.5,
        ask_timeout_s=6.0,
        **STORE,
    )


@pytest.mark.timeout(120)
async def test_an_owner_is_cut_off_for_longer_than_outcomes_are_kept(server: Server, namespace: str) -> None:
    ended: Counter[str] = Counter()
    for call in (4, 5, 6, 9, 12):
        proxy = Proxy(server.port, "outage", call, delay_s=1.2)
        starts: Counter[int] = Counter()
        async with run_proxy(proxy):
            config = _config(proxy.url, f"{namespace}-{call}", Counting.using(starts=starts))
            async with ActorSystem(config) as system:
                for number in range(8):
                    ended[await _outcome(system, number, starts)] += 1
                await _check_end(system, starts)
        assert proxy.fired == 1
    print(f"\n{dict(ended)}")


@pytest.mark.timeout(120)
async def test_a_sender_is_cut_off_for_longer_than_outcomes_are_kept(server: Server, namespace: str) -> None:
    """Its message ran meanwhile and the outcome is gone: sent again, it is not accepted, let alone run."""
    ended: Counter[str] = Counter()
    for call in (2, 3, 4):
        proxy = Proxy(server.port, "outage", call, delay_s=2.5)
        starts: Counter[int] = Counter()
        name = f"{namespace}-{call}"
        config = _config(server.url, name, Counting.using(starts=starts))
        async with run_proxy(proxy), ActorSystem(config) as owner:
            async with ActorSystem(_config(proxy.url, name)) as sender:
                for number in range(3):
                    ended[await _outcome(sender, number, starts)] += 1
            await _check_end(owner, starts)
        assert proxy.fired == 1
    print(f"\n{dict(ended)}")
    assert ended["unknown_message"]


async def _check_end(system: ActorSystem, starts: Counter[int]) -> None:
    with anyio.fail_after(20):
        report = await system.audit()
        while report.enqueued or report.dispatched:
            await anyio.sleep(0.05)
            report = await system.audit()
    assert report.is_balanced, report.problems
    assert report.completed == len(starts)
    assert max(starts.values()) == 1


async def _outcome(system: ActorSystem, number: int, starts: Counter[int]) -> str:
    try:
        assert await system.ask(Counting.ref("one"), Add(number)) == number
    except (UnknownMessage, ResultExpired, Interrupted, AskTimeout, StoreUnavailable) as error:
        if isinstance(error, StoreUnavailable):
            assert not starts[number], "nothing was sent, and it ran"
        return error.code
    return "replied"


# --- the proxy itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        b"+OK\r\n",
        b"$3\r\na\r\n\r\n",
        b"$-1\r\n",
        b"*2\r\n$1\r\na\r\n:7\r\n",
        b"*-1\r\n",
        b"%1\r\n+a\r\n*1\r\n_\r\n",
        b">2\r\n+a\r\n#t\r\n",
        b"|1\r\n+a\r\n+b\r\n:1\r\n",
    ],
)
async def test_where_frames_end(frame: bytes) -> None:
    assert frame_end(frame + b"+next\r\n") == len(frame)
    assert all(frame_end(frame[:cut]) == -1 for cut in range(len(frame)))
