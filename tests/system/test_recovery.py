"""A process dies; the next one finds its messages where it left them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from attrs import Factory, define, frozen

from atomic_actors import (
    Actor,
    ActorSystem,
    Command,
    Completed,
    Config,
    Interrupted,
    KindConfig,
    Park,
    Query,
    Retry,
    StoreUnavailable,
    handler,
)
from atomic_actors.journal._protocol import JournalUnavailable
from tests.journals import BrokenJournal
from tests.system.support import (
    Desk,
    NewSystem,
    Read,
    Stage,
    Watcher,
    Work,
    Write,
    desk,
    until,
)

pytestmark = pytest.mark.anyio


@define
class Trips:
    trips: list[str] = Factory(list)


@frozen
class Fly(Command[str]):
    """Effectful, without any word about interruptions: the default."""

    to: str


@frozen
class FlyAgain(Command[str]):
    to: str


@frozen
class FlyAndLook(Command[str]):
    to: str


@frozen
class Note(Command[int]):
    """Transactional."""

    to: str


@frozen
class GetTrips(Query[list[str]]):
    pass


class Pilot(Actor[Trips], kind="pilot"):
    def __init__(self, stage: Stage, answer: Any = None) -> None:
        self.stage = stage
        self.answer = answer

    async def _fly(self, to: str) -> str:
        self.stage.seen["attempts"].append((to, self.context.attempt))
        await self.stage.visit(to)
        self.state.trips.append(to)
        return to

    @handler
    async def fly(self, message: Fly) -> str:
        return await self._fly(message.to)

    @handler(on_interrupted="retry")
    async def fly_again(self, message: FlyAgain) -> str:
        return await self._fly(message.to)

    async def look(self, message: FlyAndLook) -> Completed[str] | Retry | Park:
        self.stage.seen["looked"].append((message.to, self.context.attempt, self.context.message_id))
        await self.stage.visit("look")
        if isinstance(self.answer, Completed):
            self.state.trips.append("seen from outside")
        answer: Completed[str] | Retry | Park = self.answer
        return answer

    @handler(on_interrupted="look")
    async def fly_and_look(self, message: FlyAndLook) -> str:
        return await self._fly(message.to)

    @handler(transactional=True)
    async def note(self, message: Note) -> int:
        self.stage.seen["attempts"].append((message.to, self.context.attempt))
        await self.stage.visit(message.to)
        self.state.trips.append(message.to)
        return len(self.state.trips)

    @handler
    async def get(self, message: GetTrips) -> list[str]:
        return self.state.trips


PILOT = Pilot.ref("p")


@asynccontextmanager
async def dying(new_system: NewSystem, *actors: Any, **settings: Any) -> AsyncGenerator[ActorSystem]:
    """A system whose process dies at the end of the block: nothing more reaches its store."""
    if not new_system.in_memory:
        pytest.skip("cuts a journal in memory off; processes are killed elsewhere")
    journals: list[BrokenJournal] = []

    def wrap(inner: Any) -> BrokenJournal:
        journals.append(BrokenJournal(inner))
        return journals[0]

    with anyio.CancelScope() as scope:
        async with new_system(*actors, wrap=wrap, store_failure_threshold=1, **settings) as system:
            yield system
            journals[0].error = JournalUnavailable("the process is dead", sent=False)
            # One refused call, and the system knows that it need not wait for its store.
            kind = system.config.actors[0].target
            with pytest.raises(StoreUnavailable):
                await system.tell(kind.ref("nobody"), GetTrips() if kind is Pilot else Read())
            scope.cancel()
            await anyio.sleep_forever()


async def die_in(new_system: NewSystem, stage: Stage, *messages: Command[Any], **settings: Any) -> list[str]:
    """Tell the messages, and die while the first one that the stage holds runs; their ids."""
    async with dying(new_system, Pilot.using(stage=stage), **settings) as system:
        receipts = await system.tell_many([(PILOT, message) for message in messages])
        await stage.wait_for("there")
    stage.release()
    return [receipt.message_id for receipt in receipts]


async def test_a_handler_that_was_running_is_not_run_again(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("there")
    first, second = await die_in(new_system, stage, Fly("there"), Fly("home"))
    async with new_system(Pilot.using(stage=stage)) as system:
        with pytest.raises(Interrupted, match="wholly, partly or not at all"):
            await system.result(first)
        assert await system.result(second) == "home"
        (letter,) = await system.dead_letters.list()
        assert (letter.message_id, letter.reason) == (first, "interrupted")
        assert (letter.attempts, letter.interruptions) == (1, 1)
        assert letter.message == {"to": "there"}
        assert stage.log == ["there", "home"]
        assert await system.ask(PILOT, GetTrips()) == ["home"]
        # A person looks, and decides.
        again = await system.dead_letters.replay(first)
        assert await system.result(again) == "there"
        assert (await system.audit()).is_balanced


async def test_events_of_an_interruption(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("there")
    (first,) = await die_in(new_system, stage, Fly("there"))
    system = new_system(Pilot.using(stage=stage))
    watcher = Watcher(system, "interrupted", "dead-lettered")
    async with system:
        events = await watcher.wait(2)
        assert [(event.event, event.message_id, event.name) for event in events] == [
            ("interrupted", first, "Fly"),
            ("dead-lettered", first, "Fly"),
        ]
        assert system.statistics().interrupted == 1
        assert system.statistics().dead_lettered == 1


async def test_a_transactional_handler_is_run_again(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("there")
    ids = await die_in(new_system, stage, Note("before"), Note("there"), Note("after"))
    async with new_system(Pilot.using(stage=stage)) as system:
        assert [await system.result(message_id) for message_id in ids] == [1, 2, 3]
        assert await system.ask(PILOT, GetTrips()) == ["before", "there", "after"]
        assert await system.dead_letters.list() == []
        assert (await system.audit()).completed == 4


async def test_what_was_committed_is_there(new_system: NewSystem, stage: Stage) -> None:
    async with dying(new_system, Desk.using(stage=stage)) as system:
        assert await system.ask(desk(), Write("a")) == 1
        assert await system.ask(desk(), Work("b")) == "b"
        await system.pause(desk("two"))
        waiting = await system.tell(desk("two"), Write("c"), key="k")
    async with new_system(Desk.using(stage=stage)) as system:
        assert await system.ask(desk(), Read()) == ["a", "b"]
        await system.resume(desk("two"))
        assert await system.result(waiting) == 1
        assert (await system.tell(desk("two"), Write("c"), key="k")).message_id == waiting.message_id
        assert stage.log == ["a", "b", "c"]


async def test_retry(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("there")
    ids = await die_in(new_system, stage, FlyAgain("there"), Fly("home"))
    async with new_system(Pilot.using(stage=stage)) as system:
        assert [await system.result(message_id) for message_id in ids] == ["there", "home"]
        assert stage.seen["attempts"] == [("there", 1), ("there", 2), ("home", 1)]
        assert await system.ask(PILOT, GetTrips()) == ["there", "home"]


async def test_retry_for_a_whole_kind(new_system: NewSystem, stage: Stage) -> None:
    kinds = {"pilot": KindConfig(on_interrupted="retry")}
    stage.hold("there")
    (first,) = await die_in(new_system, stage, Fly("there"), kinds=kinds)
    async with new_system(Pilot.using(stage=stage), kinds=kinds) as system:
        assert await system.result(first) == "there"


@pytest.mark.parametrize("limit", [1, 3])
async def test_a_poison_message_does_not_kill_node_after_node(
    new_system: NewSystem, stage: Stage, limit: int
) -> None:
    (first,) = [""]
    for number in range(limit):
        stage.hold("there")
        if number == 0:
            (first,) = await die_in(new_system, stage, FlyAgain("there"), max_interruptions=limit)
            continue
        stage._entered.clear()
        async with dying(new_system, Pilot.using(stage=stage), max_interruptions=limit):
            await stage.wait_for("there")
        stage.release()
    async with new_system(Pilot.using(stage=stage), max_interruptions=limit) as system:
        with pytest.raises(Interrupted):
            await system.result(first)
        (letter,) = await system.dead_letters.list()
        assert (letter.attempts, letter.interruptions) == (limit, limit)
        assert stage.seen["attempts"] == [("there", number) for number in range(1, limit + 1)]


# A method that looks at the outside world


async def recovered(new_system: NewSystem, stage: Stage, answer: Any) -> tuple[ActorSystem, str]:
    stage.hold("there")
    (first,) = await die_in(new_system, stage, FlyAndLook("there"))
    return new_system(Pilot.using(stage=stage, answer=answer)), first


async def test_the_method_knows_that_it_was_done(new_system: NewSystem, stage: Stage) -> None:
    system, first = await recovered(new_system, stage, Completed("seen"))
    async with system:
        assert await system.result(first) == "seen"
        assert [entry[0] for entry in stage.seen["looked"]] == ["there"]
        assert stage.seen["looked"][0][2] == first
        # The handler itself did not run again; what the method changed is committed.
        assert stage.log == ["there", "look"]
        assert await system.ask(PILOT, GetTrips()) == ["seen from outside"]
        assert await system.dead_letters.list() == []


async def test_the_method_knows_that_nothing_was_done(new_system: NewSystem, stage: Stage) -> None:
    system, first = await recovered(new_system, stage, Retry())
    async with system:
        assert await system.result(first) == "there"
        assert stage.log == ["there", "look", "there"]
        assert await system.ask(PILOT, GetTrips()) == ["there"]
        assert await system.dead_letters.list() == []


async def test_the_method_does_not_know(new_system: NewSystem, stage: Stage) -> None:
    system, first = await recovered(new_system, stage, Park())
    async with system:
        with pytest.raises(Interrupted):
            await system.result(first)
        (letter,) = await system.dead_letters.list()
        assert (letter.message_id, letter.reason) == (first, "interrupted")
        assert (await system.where(PILOT)).is_parked
        last = await system.tell(PILOT, Note("home"))
        await system.resume(PILOT)
        assert await system.result(last) == 1


async def test_the_method_answers_nonsense(new_system: NewSystem, stage: Stage) -> None:
    system, first = await recovered(new_system, stage, "done")
    async with system:
        await until(system.dead_letters.list)
        (letter,) = await system.dead_letters.list()
        assert letter.message_id == first
        assert "Completed(reply), Retry() or Park()" in letter.error


async def test_a_second_interruption_in_the_method_is_final(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("there")
    (first,) = await die_in(new_system, stage, FlyAndLook("there"))
    stage.hold("look")
    async with dying(new_system, Pilot.using(stage=stage, answer=Retry())):
        await stage.wait_for("look")
    stage.release()
    async with new_system(Pilot.using(stage=stage, answer=Retry())) as system:
        with pytest.raises(Interrupted):
            await system.result(first)
        assert stage.log == ["there", "look"]


async def test_on_dead_park_after_an_interruption(new_system: NewSystem, stage: Stage) -> None:
    kinds = {"pilot": KindConfig(on_dead="park")}
    stage.hold("there")
    first, second = await die_in(new_system, stage, Fly("there"), Fly("home"), kinds=kinds)
    async with new_system(Pilot.using(stage=stage), kinds=kinds) as system:
        with pytest.raises(Interrupted):
            await system.result(first)
        assert (await system.where(PILOT)).is_parked
        assert stage.log == ["there"]
        await system.resume(PILOT)
        assert await system.result(second) == "home"


async def test_a_graceful_stop_follows_the_same_rules(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("there", "note")
    other = Pilot.ref("other")
    async with new_system(Pilot.using(stage=stage), drain_timeout_s=0.05) as system:
        first = await system.tell(PILOT, Fly("there"))
        second = await system.tell(other, Note("note"))
        for name in ("there", "note"):
            await stage.wait_for(name)
    stage.release()
    async with new_system(Pilot.using(stage=stage)) as system:
        with pytest.raises(Interrupted):
            await system.result(first)
        assert await system.result(second) == 1
        assert (await system.audit()).is_balanced


async def test_memory_forgets(stage: Stage) -> None:
    """What `memory:` promises: nothing beyond its system."""
    config = Config(url="memory:", actors=[Desk.using(stage=stage)])
    async with ActorSystem(config) as system:
        await system.ask(desk(), Write("a"))
    async with ActorSystem(config) as system:
        assert await system.ask(desk(), Read()) == []
