"""What an ask costs and may: how many wait at once, how many calls one to another node needs, and its path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from atomic_actors import AskLimitExceeded, AskTimeout, Expired, HandlerFailed, NotExecuted
from atomic_actors.node._assembly import Parts
from tests.servers import Server
from tests.system.support import Desk, NewSystem, Read, Stage, Work, desk, until
from tests.system.test_volatile import EAR, Ear, Hear, Heard, Pass

pytestmark = pytest.mark.anyio


async def test_only_so_many_asks_wait_at_once(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("slow", "deaf")
    async with new_system(Desk.using(stage=stage), Ear.using(stage=stage), max_inflight_asks=2) as system:
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(system.ask, desk(), Work("slow"))
            await stage.wait_for("slow")
            # What is no ask does not count, nor does looking for the result of a message that was sent before.
            receipt = await system.tell(desk(), Work("told"))
            task_group.start_soon(system.result, receipt)
            task_group.start_soon(system.ask, EAR, Hear("deaf"))
            await stage.wait_for("deaf")
            with pytest.raises(
                AskLimitExceeded, match=r"Read for desk/one was not sent: 2 .*max_inflight_asks"
            ) as over:
                await system.ask(desk(), Read())
            assert isinstance(over.value, NotExecuted)
            assert over.value.code == "ask_limit_exceeded"
            with pytest.raises(AskLimitExceeded):
                await system.ask(EAR, Heard())
            assert (await system.audit()).accepted == 2
            stage.release()
        assert await system.ask(desk(), Read()) == ["slow", "told"]
        # One that times out, or is cancelled, counts no more.
        stage.hold("again")
        for _ in range(3):
            with pytest.raises((AskTimeout, HandlerFailed, Expired)):
                await system.ask(desk(), Work("again"), timeout_s=0.05)
            with anyio.move_on_after(0.05):
                await system.ask(EAR, Hear("x"), timeout_s=1)
        stage.release()
        assert await system.ask(EAR, Heard()) == ["deaf", "x", "x", "x"]


async def test_asks_of_turns_count_and_do_not_wait(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage), Ear.using(stage=stage), max_inflight_asks=1) as system:
        with anyio.fail_after(2), pytest.raises(HandlerFailed, match="AskLimitExceeded"):
            await system.ask(EAR, Pass(desk()), timeout_s=60)
        # A tell needs no place, so its turn has one for its own ask.
        await system.tell(EAR, Pass(desk()))
        assert await system.ask(EAR, Heard()) == []


async def test_no_limit(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Ear.using(stage=stage), max_inflight_asks=0) as system:
        async with anyio.create_task_group() as task_group:
            for number in range(50):
                task_group.start_soon(system.ask, EAR, Hear(str(number)))
        assert len(await system.ask(EAR, Heard())) == 50


# Between nodes.


def parts_of(system: Any) -> Parts:
    parts = vars(system)["_parts"]
    assert isinstance(parts, Parts)
    return parts


@pytest.fixture
def quiet(store_server: Server) -> Callable[..., Any]:
    """Makes systems that do nothing by themselves while a test counts."""
    new_system = NewSystem(store_server.url)

    def make(*actors: Any, weight: float = 1_000.0) -> Any:
        return new_system(*actors, lease_ttl_s=60, lease_renew_interval_s=20, node_weight=weight)

    return make


async def until_heard(system: Any) -> None:
    """Return once the node hears what others push to it."""
    messenger = parts_of(system).store.messenger
    assert messenger is not None

    async def is_heard() -> bool:
        return messenger.is_heard

    await until(is_heard)


def calls_of(server: Server) -> dict[str, int]:
    stored: dict[str, dict[str, Any]] = server.call("INFO", "commandstats")
    return {name.removeprefix("cmdstat_"): int(each["calls"]) for name, each in stored.items()}


@pytest.mark.redis
async def test_three_calls_for_an_ask_of_another_node(
    quiet: Callable[..., Any], stage: Stage, store_server: Server
) -> None:
    asks = 40
    async with (
        quiet(Desk.using(stage=stage)) as owner,
        quiet(Desk.using(stage=stage), weight=0.001) as sender,
    ):
        await until_heard(sender)
        await sender.ask(desk(), Work("warm"))
        assert parts_of(owner).supervisor.catalog.find(str(desk())) is not None
        steps = spy(sender)
        store_server.call("CONFIG", "RESETSTAT")
        for number in range(asks):
            await sender.ask(desk(), Work(str(number)))
        calls = calls_of(store_server)
        # Append, take and finish; one sweep of the owner's partitions may come in between.
        assert 3 * asks <= calls["fcall"] <= 3 * asks + 4
        # The answers were pushed, and no poll was needed.
        assert calls["publish"] == asks
        assert "ReadOutcome" not in steps


@pytest.mark.redis
async def test_slow_turns_are_not_polled_for(
    quiet: Callable[..., Any], stage: Stage, store_server: Server
) -> None:
    stage.hold("slow")
    async with quiet(Desk.using(stage=stage)), quiet(Desk.using(stage=stage), weight=0.001) as sender:
        await until_heard(sender)
        steps = spy(sender)
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(sender.ask, desk(), Work("slow"))
            await stage.wait_for("slow")
            await anyio.sleep(0.2)
            assert steps == ["Append"]
            # A push that never comes costs a look after a while, and no more.
            await anyio.sleep(0.5)
            assert steps == ["Append", "ReadOutcome"]
            stage.release()


class Spied:
    """A journal that notes the names of the steps that go through it."""

    def __init__(self, journal: Any) -> None:
        self.journal = journal
        self.names: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.journal, name)

    def submit(self, step: Any, on_result: Any) -> None:
        self.names.append(type(step).__name__)
        self.journal.submit(step, on_result)


def spy(system: Any) -> list[str]:
    """The names of the steps that a node's senders need from now on."""
    calls: Any = parts_of(system).sender.call_checker
    calls.journal = Spied(calls.journal)
    names: list[str] = calls.journal.names
    return names
