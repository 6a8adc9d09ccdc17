"""The actors of the simulation: each message carries the plan of what its handler is to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
from attrs import Factory, define, field, frozen

from atomic_actors import Actor, Command, Completed, EntityRef, Park, Query, Refused, Retry, handler
from atomic_actors.base._lifecycle import InterruptionRules
from tests.simulation.oracle import CHILD, Life, Oracle


@frozen
class Plan:
    """What a handler does."""

    #: ok, refuse, fail, hang, or crash (the node dies while it runs).
    end: str = "ok"
    #: From this attempt on it ends well, whatever `end` says.
    well_from: int = 1_000
    sleep_s: float = 0.0
    #: Entities that get a message in its outbox.
    sends: list[str] = Factory(list[str])
    #: An entity that it asks, or "".
    asks: str = ""
    #: A child task: "", "ok" or "fail".
    child: str = ""
    #: What the `on_interrupted` method does: complete, retry, park, fail, hang, crash.
    recovery: str = "complete"


@frozen
class Put(Command[int]):
    tag: str
    plan: Plan = Factory(Plan)


@frozen
class Work(Command[int]):
    tag: str
    plan: Plan = Factory(Plan)


@frozen
class Again(Command[int]):
    tag: str
    plan: Plan = Factory(Plan)


@frozen
class Look(Command[int]):
    tag: str
    plan: Plan = Factory(Plan)


@frozen
class Count(Query[int]):
    tag: str
    plan: Plan = Factory(Plan)


AnyMessage = Put | Work | Again | Look | Count
MESSAGES: dict[str, type[Any]] = {cls.__name__: cls for cls in (Put, Work, Again, Look, Count)}


@define
class Chain:
    """The tags of everything that was committed, in order."""

    tags: list[str] = field(factory=list[str])


@define
class No(Refused):
    tag: str


class Planned(Exception):
    """What a plan that fails raises."""


@define(eq=False)
class Stage:
    """What the actors know of the simulation."""

    oracle: Oracle
    #: Kills the node.
    crash: Callable[[], None]


TRANSACTIONAL, DIES, AGAIN, LOOKS = (
    InterruptionRules.decode(text) for text in ("trc0", "edc0", "erc0", "emc0")
)


class Worker(Actor[Chain], kind="worker"):
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @handler(transactional=True)
    async def put(self, message: Put) -> int:
        return await self._perform(message, TRANSACTIONAL)

    @handler
    async def work(self, message: Work) -> int:
        return await self._perform(message, DIES)

    @handler(on_interrupted="retry")
    async def again(self, message: Again) -> int:
        return await self._perform(message, AGAIN)

    @handler(on_interrupted="look_around")
    async def look(self, message: Look) -> int:
        return await self._perform(message, LOOKS)

    @handler
    async def count(self, message: Count) -> int:
        return await self._perform(message, TRANSACTIONAL)

    async def look_around(self, message: Look) -> Completed[int] | Retry | Park:
        context, plan = self.context, message.plan
        with self.stage.oracle.turn(context.message_id, context.attempt, LOOKS, recovering=True) as life:
            await anyio.lowlevel.checkpoint()
            if plan.recovery == "retry":
                life.may_run_again = True
                return Retry()
            if plan.recovery == "park":
                return Park()
            if plan.recovery == "fail":
                raise Planned("the method raised")
            if plan.recovery == "hang":
                await anyio.sleep_forever()
            if plan.recovery == "crash":
                self.stage.crash()
                await anyio.sleep_forever()
            return Completed(self._change(message, life))

    async def _perform(self, message: AnyMessage, stamp: InterruptionRules) -> int:
        context, plan = self.context, message.plan
        with self.stage.oracle.turn(context.message_id, context.attempt, stamp) as life:
            # The change comes first, so that whatever goes wrong later has something to take back.
            reply = self._change(message, life)
            if plan.sleep_s >= 0:
                await anyio.sleep(plan.sleep_s)
            if plan.child:
                context.start_soon(self._child, plan.child)
            if plan.asks and stamp is not TRANSACTIONAL:
                await context.ask(EntityRef("worker", plan.asks), Count(f"{message.tag}?{context.attempt}"))
            if context.attempt < plan.well_from:
                await self._end(message.tag, plan.end)
            return reply

    def _change(self, message: AnyMessage, life: Life) -> int:
        if not isinstance(message, Count):
            self.state.tags.append(life.tag)
            for number, target in enumerate(message.plan.sends):
                self.outbox.add(EntityRef("worker", target), Put(f"{life.uid}{CHILD}{number}"))
        life.returned = len(self.state.tags)
        return len(self.state.tags)

    async def _end(self, tag: str, end: str) -> None:
        if end == "refuse":
            raise No(tag)
        if end == "fail":
            raise Planned(tag)
        if end == "hang":
            await anyio.sleep_forever()
        if end == "crash":
            self.stage.crash()
            await anyio.sleep_forever()

    async def _child(self, end: str) -> None:
        await anyio.sleep(0.01)
        if end == "fail":
            raise Planned("a child")
