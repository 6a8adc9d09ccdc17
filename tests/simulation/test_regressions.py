"""What the simulation found, each as small as it could be made."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import pytest
from attrs import define, field, frozen

from atomic_actors import (
    Actor,
    ActorSystem,
    Command,
    Config,
    Interrupted,
    NotExecuted,
    OutcomeUnknown,
    StoreUnavailable,
    handler,
)
from atomic_actors.base._records import partition_of
from atomic_actors.journal._protocol import (
    Append,
    BatchResult,
    ClaimPartition,
    JournalUnavailable,
    ReadOutcome,
    Release,
    Step,
    Take,
)
from atomic_actors.journal._settings import journal_settings
from atomic_actors.journal.memory._journal import MemoryJournal
from tests.journals import WrappedJournal
from tests.simulation.actors import Plan
from tests.simulation.clock import run_virtual
from tests.simulation.faults import CrashPoint
from tests.simulation.plan import Call, NodeLife, Schedule
from tests.simulation.world import EPOCH_MS, run_schedule

BACKENDS = ("trio", "asyncio")

pytestmark = pytest.mark.parametrize("backend", BACKENDS)

Hook = Callable[[Sequence[Step]], Awaitable[None]]


async def at_once(steps: Sequence[Step]) -> None:
    await anyio.lowlevel.checkpoint()


@define(eq=False)
class Gate(WrappedJournal):
    """A journal with a hook before the store has the steps, and one before the node has the answer."""

    before: Hook = at_once
    after: Hook = at_once
    seen: list[Step] = field(factory=list)

    async def execute(self, steps: Sequence[Step]) -> BatchResult:
        await self.before(steps)
        self.seen.extend(steps)
        answer = await self.store.execute(steps)
        await self.after(steps)
        return answer


def has(steps: Sequence[Step], kind: type[Any]) -> bool:
    return any(isinstance(step, kind) for step in steps)


@frozen
class Add(Command[int]):
    amount: int = 1
    sleep_s: float = 0.0


@define
class Sum:
    total: int = 0


class Adder(Actor[Sum], kind="adder"):
    @handler
    async def add(self, message: Add) -> int:
        await anyio.sleep(message.sleep_s)
        self.state.total += message.amount
        return self.state.total


ADDER = Adder.ref("one")


@define(eq=False)
class Scene:
    """A store, and systems over it in virtual time."""

    config: Config = field(
        factory=lambda: Config(
            url="memory:", actors=[Adder], partitions=2, drain_timeout_s=0.1, tick_interval_s=0.05
        )
    )
    store: MemoryJournal = field(init=False)

    def __attrs_post_init__(self) -> None:
        logging.getLogger("atomic_actors").setLevel(logging.CRITICAL + 1)
        self.store = MemoryJournal(
            journal_settings(self.config), now_ms=lambda: EPOCH_MS + int(anyio.current_time() * 1000)
        )

    def system(self, gate: Gate | None = None) -> ActorSystem:
        return ActorSystem(self.config, journal=gate or Gate(self.store))


async def error_of(call: Awaitable[Any]) -> BaseException | None:
    with anyio.fail_after(60):
        try:
            await call
        except Exception as error:
            return error
    return None


def test_leaving_does_not_say_that_an_accepted_ask_never_ran(backend: str) -> None:
    """It waits in the store and runs on the next node: sending it again would run it twice."""
    errors: list[BaseException | None] = []

    async def main() -> None:
        scene = Scene()

        async def ask(system: ActorSystem, sleep_s: float) -> None:
            errors.append(await error_of(system.ask(ADDER, Add(sleep_s=sleep_s))))

        async with anyio.create_task_group() as task_group:
            async with scene.system() as system:
                task_group.start_soon(ask, system, 60)
                await anyio.sleep(0.5)
                task_group.start_soon(ask, system, 0)
                await anyio.sleep(0.5)
        async with scene.system() as system:
            assert await system.ask(ADDER, Add(0)) == 1, "only what waited has run"

    run_virtual(backend, 1, main)
    # The first one ran and was cut off; the second one waits still.
    assert {type(error).__name__ for error in errors} == {"Interrupted", "OutcomeUnknown"}
    for error in errors:
        assert not isinstance(error, NotExecuted), repr(error)
        assert isinstance(error, (Interrupted, OutcomeUnknown)), repr(error)
        assert error.message_id, "it says what to ask for later"


@pytest.mark.parametrize("verb", ["tell", "tell_many"])
def test_a_tell_ends_when_the_system_is_left(backend: str, verb: str) -> None:
    """Its append was sent and is not answered: nobody knows whether it was accepted."""

    async def main() -> None:
        scene = Scene()

        async def hold(steps: Sequence[Step]) -> None:
            if has(steps, Append):
                await anyio.sleep_forever()

        async def tell(system: ActorSystem) -> None:
            call = system.tell(ADDER, Add()) if verb == "tell" else system.tell_many([(ADDER, Add())])
            error = await error_of(call)
            assert isinstance(error, OutcomeUnknown), repr(error)
            assert error.message_id

        async with anyio.create_task_group() as task_group:
            async with scene.system(Gate(scene.store, after=hold)) as system:
                task_group.start_soon(tell, system)
                await anyio.sleep(0.2)

    run_virtual(backend, 1, main)


def test_a_dispatch_that_arrives_while_leaving_is_given_back(backend: str) -> None:
    """The partition's scope has ended by then: nothing may be started in it, and nothing may stay dispatched."""

    async def main() -> None:
        scene = Scene()
        async with scene.system() as system:
            await system.pause(ADDER)
            receipt = await system.tell(ADDER, Add())

        async def late(steps: Sequence[Step]) -> None:
            if has(steps, Take):
                await anyio.sleep(1.0)

        gate = Gate(scene.store, after=late)
        with anyio.fail_after(30):
            async with scene.system(gate) as system:
                # Not through the system, which would wake the entity and wait for it.
                scene.store._partitions[partition_of(str(ADDER), 2)].entities[str(ADDER)].parked = False
                wake = system._running.supervisor.wake
                wake(partition_of(str(ADDER), 2), str(ADDER))
                await anyio.sleep(0.2)
        assert has(gate.seen, Take)
        assert has(gate.seen, Release)
        async with scene.system() as system:
            assert await system.result(receipt, timeout_s=20) == 1
            assert (await system.audit()).interrupted == 0, "it had not begun"

    run_virtual(backend, 1, main)


@pytest.mark.parametrize("recovery", ["fail", "hang"])
def test_a_recovery_that_fails_does_not_run_the_handler_again(backend: str, recovery: str) -> None:
    """Only `Retry()` says that the handler may run again; an error of the method says nothing."""
    look = Call("tell", "0", "Look", Plan(end="crash", well_from=2, recovery=recovery))
    settings = {"max_attempts": 3, "turn_timeout_s": 1.0, "tick_interval_s": 0.05}
    world = run_schedule(Schedule(1, backend, ((look,),), (), settings=settings))
    assert not world.oracle.broken, world.oracle.broken
    (life,) = world.oracle.lives.values()
    assert life.starts.total() == 1
    assert life.end in ("interrupt", "fail")


def test_a_lookup_of_the_own_id_says_nothing_of_the_first_one(backend: str) -> None:
    """A key that was used before: the ask waits for the first message, whatever an older lookup answers."""

    async def main() -> None:
        scene = Scene()
        slow = False

        async def before(steps: Sequence[Step]) -> None:
            if slow and has(steps, Append):
                await anyio.sleep(0.7)

        async def after(steps: Sequence[Step]) -> None:
            if slow and has(steps, ReadOutcome):
                await anyio.sleep(1.0)

        async with scene.system(Gate(scene.store, before, after)) as system:
            first = await system.tell(ADDER, Add(5), key="once")
            assert await system.result(first) == 5
            slow = True
            assert await system.ask(ADDER, Add(5), key="once", timeout_s=20) == 5

    run_virtual(backend, 1, main)


@pytest.mark.parametrize("kind", [ClaimPartition, Step])
def test_entering_without_a_store_says_so(backend: str, kind: Any) -> None:
    """`StoreUnavailable`, as itself: not in a group, and not the journal's own exception."""

    async def main() -> None:
        scene = Scene()

        async def away(steps: Sequence[Step]) -> None:
            if kind is Step or has(steps, kind):
                raise JournalUnavailable("the store is away", sent=False)

        with anyio.fail_after(60), pytest.raises(StoreUnavailable):
            async with scene.system(Gate(scene.store, away)):
                raise AssertionError("entered")

    run_virtual(backend, 1, main)


def test_leaving_without_a_store_raises_nothing(backend: str) -> None:
    """The leases run out by themselves; the body's own end is what counts."""

    async def main() -> None:
        scene = Scene()

        async def away(steps: Sequence[Step]) -> None:
            if has(steps, Release):
                raise JournalUnavailable("the store is away", sent=False)

        with anyio.fail_after(60):
            async with scene.system(Gate(scene.store, away)) as system:
                assert await system.ask(ADDER, Add(1)) == 1
            async with scene.system() as system:
                assert await system.ask(ADDER, Add(1)) == 2

    run_virtual(backend, 1, main)


def test_a_failed_handler_is_no_interruption(backend: str) -> None:
    """A crash in the commit of a failure, after the store has it: the asker's copy of the truth is `failed`."""
    ask = Call("tell", "0", "Work", Plan(end="fail"))
    life = NodeLife(CrashPoint("Finish", 1, "after"), 10.0)
    world = run_schedule(Schedule(1, backend, ((ask,),), (life,), settings={"tick_interval_s": 0.05}))
    assert not world.oracle.broken, world.oracle.broken
    assert [each.end for each in world.oracle.lives.values()] == ["fail"]
