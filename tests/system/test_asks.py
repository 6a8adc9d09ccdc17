"""Asks inside turns: paths, cycles, hops, deadlines."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from attrs import frozen

from atomic_actors import (
    Actor,
    ActorSystem,
    AskCycle,
    AskTimeout,
    Command,
    EntityRef,
    HandlerFailed,
    Query,
    Refused,
    TooManyHops,
    handler,
)
from tests.system.support import Declined, NewSystem, Stage, until

pytestmark = pytest.mark.anyio

#: A node reads a deadline off the store's clock, which it knows as well as the last answer was quick. Still far less
#: than lies between these deadlines and one of an ask's own, which has `ask_timeout_s` (5 s).
CLOCK_ERROR_S = 1.0


@frozen
class Chain(Command[list[str]]):
    """Asks the next one for the rest; the reply is who was asked."""

    rest: list[str]
    #: Whether to ask through the system instead of the context.
    through_system: bool = False


@frozen
class ChainTransactional(Command[list[str]]):
    rest: list[str]


@frozen
class Sleep(Command[None]):
    pass


@frozen
class AskSleeper(Command[None]):
    pass


@frozen
class Say(Query[str]):
    what: str


@frozen
class Catch(Command[str]):
    what: str


class Holder:
    """Lets a handler reach its system, as a web application's globals do."""

    system: ActorSystem | None = None


class Link(Actor, kind="link"):
    def __init__(self, stage: Stage, holder: Holder) -> None:
        self.stage = stage
        self.holder = holder

    @handler
    async def chain(self, message: Chain) -> list[str]:
        self.stage.seen["deadline"].append(self.context.deadline)
        self.stage.seen["message_id"].append(self.context.message_id)
        if not message.rest:
            return [self.context.entity.id]
        to, rest = Link.ref(message.rest[0]), Chain(message.rest[1:], message.through_system)
        if message.through_system:
            assert self.holder.system is not None
            return [self.context.entity.id, *await self.holder.system.ask(to, rest)]
        return [self.context.entity.id, *await self.context.ask(to, rest)]

    @handler(transactional=True)
    async def chain_transactional(self, message: ChainTransactional) -> list[str]:
        return await self.context.ask(Link.ref(message.rest[0]), Chain([]))

    @handler
    async def sleep(self, message: Sleep) -> None:
        self.stage.seen["deadline"].append(self.context.deadline)
        await self.stage.visit("sleep")

    @handler
    async def ask_sleeper(self, message: AskSleeper) -> None:
        self.stage.seen["deadline"].append(self.context.deadline)
        await self.context.ask(Link.ref("sleeper"), Sleep())

    @handler
    async def say(self, message: Say) -> str:
        if message.what == "no":
            raise Declined("no")
        if message.what == "break":
            raise RuntimeError("broken")
        return message.what

    @handler
    async def catch(self, message: Catch) -> str:
        try:
            return await self.context.ask(Link.ref("other"), Say(message.what))
        except (Refused, HandlerFailed) as error:
            return type(error).__name__


@pytest.fixture
def link(stage: Stage) -> Any:
    return Link.using(stage=stage, holder=Holder())


@pytest.mark.parametrize("through_system", [False, True])
async def test_a_chain(new_system: NewSystem, stage: Stage, through_system: bool) -> None:
    holder = Holder()
    async with new_system(Link.using(stage=stage, holder=holder)) as system:
        holder.system = system
        reply = await system.ask(Link.ref("a"), Chain(["b", "c", "d"], through_system), timeout_s=3)
        assert reply == ["a", "b", "c", "d"]
        assert len(set(stage.seen["message_id"])) == 4
        # The first one's deadline holds for all.
        first = stage.seen["deadline"][0]
        assert all(deadline <= first + CLOCK_ERROR_S for deadline in stage.seen["deadline"])
        assert (await system.audit()).completed == 4


@pytest.mark.parametrize("through_system", [False, True])
@pytest.mark.parametrize("names", [["a"], ["b", "a"], ["b", "b"], ["b", "c", "a"]])
async def test_a_cycle_is_told_at_once(
    new_system: NewSystem, stage: Stage, names: list[str], through_system: bool
) -> None:
    holder = Holder()
    async with new_system(Link.using(stage=stage, holder=holder)) as system:
        holder.system = system
        with anyio.fail_after(4), pytest.raises((HandlerFailed, AskCycle)):
            await system.ask(Link.ref("a"), Chain(names, through_system), timeout_s=60)
        letters = await system.dead_letters.list()
        path = " -> ".join(f"link/{name}" for name in ["a", *names])
        (cycle,) = [letter for letter in letters if letter.error_type == "AskCycle"]
        assert path in cycle.error
        assert "outbox" in cycle.error
        assert cycle.entity.id == (["a", *names][-2])


@frozen
class Meet(Command[str]):
    """Waits until both are there, then asks the other one."""

    other: str


class Partner(Actor, kind="partner"):
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @handler
    async def meet(self, message: Meet) -> str:
        await self.stage.visit(self.context.entity.id)
        return await self.context.ask(Partner.ref(message.other), Meet(self.context.entity.id))


async def test_two_chains_that_wait_for_each_other(new_system: NewSystem, stage: Stage) -> None:
    """Neither path has the other one's entity, so nobody sees a cycle; the deadline ends both."""
    stage.hold("a", "b")
    told: list[Exception] = []
    async with new_system(Partner.using(stage=stage)) as system:

        async def ask(name: str, other: str) -> None:
            with pytest.raises((AskTimeout, HandlerFailed)) as error:
                await system.ask(Partner.ref(name), Meet(other), timeout_s=0.8)
            told.append(error.value)

        with anyio.fail_after(4):
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(ask, "a", "b")
                task_group.start_soon(ask, "b", "a")
                await stage.wait_for("a")
                await stage.wait_for("b")
                stage.release()
        assert len(told) == 2

        async def both_ended() -> bool:
            report = await system.audit()
            return not report.enqueued and not report.dispatched

        await until(both_ended)
        assert stage.log == ["a", "b"] or stage.log == ["b", "a"]
        letters = await system.dead_letters.list()
        assert {letter.entity.id for letter in letters} == {"a", "b"}
        assert not any(letter.error_type == "AskCycle" for letter in letters)


async def test_the_path_of_a_cycle(new_system: NewSystem) -> None:
    caught: list[AskCycle] = []

    @frozen
    class Ping(Command[None]):
        pass

    class Narcissus(Actor, kind="narcissus"):
        @handler
        async def ping(self, message: Ping) -> None:
            try:
                await self.context.ask(self.context.entity, Ping())
            except AskCycle as error:
                caught.append(error)

    async with new_system(Narcissus) as system:
        await system.ask(Narcissus.ref("n"), Ping())
    assert caught[0].path == ("narcissus/n", "narcissus/n")
    assert caught[0].code == "ask_cycle"


async def test_asking_the_same_one_twice_in_a_row(new_system: NewSystem, link: Any) -> None:
    """Only who waits is on the path: siblings are no cycle."""
    async with new_system(link) as system:
        for _ in range(2):
            assert await system.ask(Link.ref("a"), Catch("yes")) == "yes"


async def test_too_many_hops(new_system: NewSystem, link: Any) -> None:
    async with new_system(link, max_hops=2) as system:
        assert await system.ask(Link.ref("a"), Chain(["b", "c"])) == ["a", "b", "c"]
        with pytest.raises((HandlerFailed, TooManyHops)):
            await system.ask(Link.ref("a"), Chain(["b", "c", "d"]))
        hops = [
            letter for letter in await system.dead_letters.list() if letter.error_type == TooManyHops.__name__
        ]
        assert len(hops) == 1
        assert "link/a -> link/b -> link/c" in hops[0].error
        assert "max_hops=2" in hops[0].error


async def test_hops_without_end(new_system: NewSystem, link: Any) -> None:
    async with new_system(link, max_hops=0) as system:
        names = [f"n{number}" for number in range(12)]
        assert await system.ask(Link.ref("a"), Chain(names)) == ["a", *names]


async def test_an_ask_has_the_time_of_its_turn(new_system: NewSystem, stage: Stage, link: Any) -> None:
    stage.hold("sleep")
    async with new_system(link) as system:
        # All three clocks run out together; whoever is first has the word.
        with pytest.raises((AskTimeout, HandlerFailed)):
            await system.ask(Link.ref("a"), AskSleeper(), timeout_s=0.5)
        outer, inner = stage.seen["deadline"]
        assert inner <= outer + CLOCK_ERROR_S


async def test_an_ask_without_a_deadline_has_the_usual_time(
    new_system: NewSystem, stage: Stage, link: Any
) -> None:
    stage.hold("sleep")
    async with new_system(link, ask_timeout_s=0.05) as system:
        receipt = await system.tell(Link.ref("a"), AskSleeper())
        # Who is quicker, the asker's clock or the deadline of the one who is asked, is open.
        with pytest.raises(HandlerFailed, match=r"AskTimeout|DeadlineExceeded"):
            await system.result(receipt, 4)


async def test_answers_of_an_ask_in_a_turn(new_system: NewSystem, link: Any) -> None:
    async with new_system(link) as system:
        replies = [await system.ask(Link.ref("a"), Catch(what)) for what in ("yes", "no", "break")]
        assert replies == ["yes", "Declined", "HandlerFailed"]


async def test_a_transactional_turn_does_not_ask(new_system: NewSystem, link: Any) -> None:
    async with new_system(link) as system:
        with pytest.raises(HandlerFailed, match=r"NotSupported.*transactional.*outbox"):
            await system.ask(Link.ref("a"), ChainTransactional(["b"]))
        assert (await system.audit()).accepted == 1


async def test_asks_of_children(new_system: NewSystem) -> None:
    """A child belongs to its turn: it asks with the turn's path, and sees its cycles."""

    @frozen
    class Gather(Command[list[str]]):
        pass

    class Parent(Actor, kind="parent"):
        @handler
        async def gather(self, message: Gather) -> list[str]:
            found: list[str] = []

            async def ask(entity: EntityRef) -> None:
                try:
                    await self.context.ask(entity, Gather() if entity.kind == "parent" else Say("x"))
                    found.append("answered")
                except AskCycle:
                    found.append("cycle")

            async with anyio.create_task_group() as task_group:
                task_group.start_soon(ask, Link.ref("l"))
                task_group.start_soon(ask, Parent.ref("p"))
            self.context.start_soon(ask, Link.ref("m"))
            return found

    async with new_system(Parent, Link.using(stage=Stage(), holder=Holder())) as system:
        assert sorted(await system.ask(Parent.ref("p"), Gather())) == ["answered", "answered", "cycle"]
        assert (await system.audit()).completed == 3
