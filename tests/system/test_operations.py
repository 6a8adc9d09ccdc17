"""Listeners, statistics, audit, where, counts, hooks, passivation."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import anyio
import pytest
from attrs import Factory, define, frozen

from atomic_actors import (
    Actor,
    Command,
    Context,
    EntityKind,
    EntityRef,
    HandlerFailed,
    InvalidConfig,
    InvalidEntityId,
    KindConfig,
    LifecycleEvent,
    Query,
    UnknownKind,
    handler,
)
from tests.system.support import (
    Break,
    Decline,
    Declined,
    Desk,
    Flaky,
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

ALL = ("accepted", "dispatched", "completed", "refused", "failed", "interrupted", "dead-lettered")


# Listeners


@pytest.mark.parametrize("verb", ["ask", "tell"])
async def test_every_event(new_system: NewSystem, stage: Stage, verb: str) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        watcher = Watcher(system, *ALL)
        for message in (Work("a"), Decline("no"), Break("cup")):
            if verb == "ask":
                with suppress(Declined, HandlerFailed):
                    await system.ask(desk(), message)
            else:
                receipt = await system.tell(desk(), message)
                with suppress(Declined, HandlerFailed):
                    await system.result(receipt)
        await watcher.wait(10)
        by_name: dict[str, list[LifecycleEvent]] = {}
        for event in watcher.events:
            by_name.setdefault(event.name, []).append(event)
        # A handler may begin before the answer to its sender is here: the order of the two is open.
        assert sorted(event.event for event in by_name["Work"]) == ["accepted", "completed", "dispatched"]
        assert sorted(event.event for event in by_name["Decline"]) == ["accepted", "dispatched", "refused"]
        broken = by_name["Break"]
        assert sorted(event.event for event in broken) == [
            "accepted",
            "dead-lettered",
            "dispatched",
            "failed",
        ]
        assert len({event.message_id for event in broken}) == 1
        assert {event.entity for event in broken} == {desk()}
        attempts = {event.event: event.attempt for event in broken}
        assert attempts == {"accepted": 0, "dispatched": 1, "failed": 1, "dead-lettered": 1}
        errors = {event.event: event.error for event in broken}
        assert errors["accepted"] == errors["dispatched"] == ""
        assert "RuntimeError" in errors["failed"]
        assert "cup" in errors["failed"]


async def test_events_of_retries(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Desk.using(stage=stage)) as system:
        watcher = Watcher(system, "dispatched", "completed", "failed", "dead-lettered")
        assert await system.ask(desk(), Flaky(2)) == 3
        events = await watcher.wait(6)
        assert [(event.event, event.attempt) for event in events] == [
            ("dispatched", 1),
            ("failed", 1),
            ("dispatched", 2),
            ("failed", 2),
            ("dispatched", 3),
            ("completed", 3),
        ]


async def test_a_listener_that_raises_hurts_nobody(
    new_system: NewSystem, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    def bad(event: LifecycleEvent) -> None:
        raise RuntimeError("deaf")

    async with new_system(Desk.using(stage=stage)) as system:
        for name in ALL:
            system.listen(name, bad)  # type: ignore[call-overload]
        watcher = Watcher(system, "completed", "dead-lettered")
        assert await system.ask(desk(), Write("a")) == 1
        with pytest.raises(HandlerFailed):
            await system.ask(desk(), Break())
        assert await system.ask(desk(), Read()) == ["a"]
        assert [event.event for event in await watcher.wait(3)] == ["completed", "dead-lettered", "completed"]
    assert any(
        "listener" in record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR
    )


async def test_taking_a_listener_off(new_system: NewSystem, stage: Stage) -> None:
    heard: list[LifecycleEvent] = []
    async with new_system(Desk.using(stage=stage)) as system:
        take_off = system.listen("completed", heard.append)
        await system.ask(desk(), Write("a"))
        take_off()
        take_off()
        await system.ask(desk(), Write("b"))
        assert len(heard) == 1


async def test_bad_listeners(new_system: NewSystem, stage: Stage) -> None:
    wrong: Any = "finished"
    nobody: Any = None
    system = new_system(Desk.using(stage=stage))
    with pytest.raises(InvalidConfig, match="'finished' is not one of accepted, dispatched"):
        system.listen(wrong, print)
    with pytest.raises(InvalidConfig, match="callable"):
        system.listen("completed", nobody)


# Figures


async def test_statistics_and_audit(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("busy")
    async with new_system(Desk.using(stage=stage)) as system:
        await system.ask(desk(), Write("a"))
        with pytest.raises(Declined):
            await system.ask(desk(), Decline("no"))
        with pytest.raises(HandlerFailed):
            await system.ask(desk(), Break())
        await system.ask(desk(), Flaky(1))
        await system.tell(desk("two"), Work("busy"))
        await stage.wait_for("busy")
        for word in "bc":
            await system.tell(desk("two"), Write(word))
        report = await system.audit()
        counts = (report.accepted, report.enqueued, report.dispatched, report.completed, report.refused)
        assert counts == (7, 2, 1, 3, 1)
        assert (report.failed, report.dead_letters, report.outbound) == (1, 1, 0)
        assert report.is_balanced
        figures = system.statistics()
        assert figures.accepted == 7
        assert (figures.completed, figures.refused, figures.failed) == (2, 1, 1)
        assert (figures.retried, figures.interrupted, figures.dead_lettered) == (1, 0, 1)
        assert (figures.activations, figures.owned_partitions) == (2, 4)
        assert figures.store.available
        where = await system.where(desk("two"))
        assert (where.waiting, where.dispatched, where.is_here, where.is_active) == (2, 1, True, True)
        kind = await system.counts("desk")
        assert (kind.kind, kind.active, kind.dispatched, kind.dead_letters) == ("desk", 2, 1, 1)
        stage.release()


async def test_where_nobody_is(new_system: NewSystem, stage: Stage) -> None:
    wrong: Any = "desk/one"
    async with new_system(Desk.using(stage=stage)) as system:
        where = await system.where(desk("nobody"))
        assert (where.entity, where.waiting, where.dispatched, where.version) == (desk("nobody"), 0, 0, 0)
        assert (where.is_active, where.is_parked, where.is_here) == (False, False, True)
        for call in (system.where, system.pause, system.resume, system.passivate):
            with pytest.raises(InvalidEntityId, match="EntityRef"):
                await call(wrong)
            with pytest.raises(UnknownKind, match=r"'nobody'.*desk"):
                await call(EntityRef("nobody", "x"))
        with pytest.raises(UnknownKind, match=r"'nobody'.*desk"):
            await system.counts("nobody")


# Passivation and hooks


@define
class Diary:
    days: list[str] = Factory(list)


@frozen
class Live(Command[list[str]]):
    day: str


@frozen
class Look(Query[list[str]]):
    pass


class Person(Actor[Diary], kind="person"):
    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.memory: list[str] = []

    async def on_activate(self) -> None:
        self.stage.log.append("activate")
        self.stage.seen["days"].append(list(self.state.days))
        if self.stage.seen["bad morning"]:
            raise RuntimeError(self.stage.seen["bad morning"].pop())
        self.memory = list(self.state.days)

    async def on_passivate(self) -> None:
        await self.stage.visit("passivate")
        if self.stage.seen["bad night"]:
            raise RuntimeError(self.stage.seen["bad night"].pop())

    @handler
    async def live(self, message: Live) -> list[str]:
        self.state.days.append(message.day)
        self.memory.append(message.day)
        return self.memory

    @handler
    async def look(self, message: Look) -> list[str]:
        return self.state.days


PERSON = Person.ref("p")


async def test_passivate_and_come_back(new_system: NewSystem, stage: Stage) -> None:
    async with new_system(Person.using(stage=stage)) as system:
        assert await system.passivate(PERSON) is False
        assert await system.ask(PERSON, Live("monday")) == ["monday"]
        assert await system.passivate(PERSON) is True
        assert not (await system.where(PERSON)).is_active
        assert await system.ask(PERSON, Live("tuesday")) == ["monday", "tuesday"]
    assert stage.log == ["activate", "passivate", "activate", "passivate"]
    assert stage.seen["days"] == [[], ["monday"]]


@pytest.mark.parametrize(
    "settings", [{"idle_timeout_s": 0.05}, {"kinds": {"person": KindConfig(idle_timeout_s=0.05)}}]
)
async def test_the_idle_go_to_sleep(new_system: NewSystem, stage: Stage, settings: dict[str, Any]) -> None:
    async with new_system(Person.using(stage=stage), **settings) as system:
        await system.ask(PERSON, Live("monday"))
        await stage.wait_for("passivate")
        assert await system.ask(PERSON, Look()) == ["monday"]
        assert stage.log[:3] == ["activate", "passivate", "activate"]


async def test_the_busy_do_not_go_to_sleep(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("slow")
    async with new_system(Desk.using(stage=stage), idle_timeout_s=0.03) as system:
        receipt = await system.tell(desk(), Work("slow"))
        await stage.wait_for("slow")
        await system.tell(desk("other"), Write("a"))

        async def sleeps() -> bool:
            return not (await system.where(desk("other"))).is_active

        await until(sleeps)
        assert (await system.where(desk())).is_active
        stage.release()
        assert await system.result(receipt) == "slow"


async def test_messages_while_it_goes_to_sleep(new_system: NewSystem, stage: Stage) -> None:
    stage.hold("passivate")
    async with new_system(Person.using(stage=stage)) as system, anyio.create_task_group() as task_group:
        await system.ask(PERSON, Live("monday"))
        task_group.start_soon(system.passivate, PERSON)
        await stage.wait_for("passivate")
        receipts = [await system.tell(PERSON, Live(day)) for day in ("tuesday", "wednesday")]
        stage.release()
        assert await system.result(receipts[0]) == ["monday", "tuesday"]
        assert await system.ask(PERSON, Look()) == ["monday", "tuesday", "wednesday"]
        # One copy: the second one was activated after the first one had ended.
        assert stage.log[:3] == ["activate", "passivate", "activate"]


async def test_a_raising_on_activate_costs_its_message(new_system: NewSystem, stage: Stage) -> None:
    stage.seen["bad morning"].append("overslept")
    async with new_system(Person.using(stage=stage)) as system:
        with pytest.raises(HandlerFailed, match="overslept"):
            await system.ask(PERSON, Live("monday"))
        (letter,) = await system.dead_letters.list()
        assert (letter.name, letter.error_type) == ("Live", "RuntimeError")
        assert await system.ask(PERSON, Live("tuesday")) == ["tuesday"]


async def test_a_raising_on_activate_is_tried_again(new_system: NewSystem, stage: Stage) -> None:
    stage.seen["bad morning"].append("overslept")
    async with new_system(Person.using(stage=stage), max_attempts=2) as system:
        assert await system.ask(PERSON, Live("monday")) == ["monday"]
        assert stage.log == ["activate", "activate"]


async def test_a_raising_on_passivate_is_logged(
    new_system: NewSystem, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.seen["bad night"].append("insomnia")
    async with new_system(Person.using(stage=stage)) as system:
        await system.ask(PERSON, Live("monday"))
        assert await system.passivate(PERSON)
        assert await system.ask(PERSON, Look()) == ["monday"]
    assert "on_passivate of person/p raised" in caplog.text


async def test_hooks_of_free_functions(new_system: NewSystem) -> None:
    log: list[str] = []
    people = EntityKind("person", state=Diary)

    @people.on_activate
    async def wake(context: Context[Diary], log: list[str]) -> None:
        log.append(f"wake {context.entity} {context.state.days}")

    @people.on_passivate
    async def sleep(context: Context[Diary], log: list[str]) -> None:
        log.append("sleep")

    @people.handler
    async def live(context: Context[Diary], message: Live) -> list[str]:
        context.state.days.append(message.day)
        return context.state.days

    async with new_system(people.using(log=log)) as system:
        await system.ask(PERSON, Live("monday"))
        await system.passivate(PERSON)
        assert await system.ask(PERSON, Live("tuesday")) == ["monday", "tuesday"]
    assert log == ["wake person/p []", "sleep", "wake person/p ['monday']", "sleep"]
