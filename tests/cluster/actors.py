"""The actors of the simulated cluster: each message says what its handler is to do."""

from __future__ import annotations

from typing import Any

import anyio
from attrs import Factory, define, field, frozen

from atomic_actors import Actor, Command, Completed, EntityRef, Park, Query, Refused, Retry, handler


@frozen
class Plan:
    """What a handler does."""

    #: ok, refuse, fail or hang.
    end: str = "ok"
    #: From this attempt on it ends well, whatever `end` says.
    well_from: int = 1_000
    sleep_s: float = 0.0
    #: Workers that get a message from its outbox.
    sends: list[str] = Factory(list[str])
    #: A counter that it asks, or "".
    asks: str = ""
    #: A child task: "", ok or fail.
    child: str = ""
    #: What the `on_interrupted` method does: complete, retry, park or fail.
    recovery: str = "complete"


@frozen
class Put(Command[int]):
    plan: Plan = Factory(Plan)


@frozen
class Work(Command[int]):
    plan: Plan = Factory(Plan)


@frozen
class Again(Command[int]):
    plan: Plan = Factory(Plan)


@frozen
class Look(Command[int]):
    plan: Plan = Factory(Plan)


WORKER_MESSAGES: dict[str, type[Any]] = {cls.__name__: cls for cls in (Put, Work, Again, Look)}


@define
class Chain:
    """The unique ids of everything that was committed, in order."""

    uids: list[str] = field(factory=list[str])


@define
class No(Refused):
    pass


class Planned(Exception):
    """What a plan that fails raises."""


class Worker(Actor[Chain], kind="worker"):
    """Writes down each message that changed it."""

    @handler(transactional=True)
    async def put(self, message: Put) -> int:
        return await self._perform(message.plan, transactional=True)

    @handler
    async def work(self, message: Work) -> int:
        return await self._perform(message.plan)

    @handler(on_interrupted="retry")
    async def again(self, message: Again) -> int:
        return await self._perform(message.plan)

    @handler(on_interrupted="look_around")
    async def look(self, message: Look) -> int:
        return await self._perform(message.plan)

    async def look_around(self, message: Look) -> Completed[int] | Retry | Park:
        plan = message.plan
        await anyio.lowlevel.checkpoint()
        if plan.recovery == "retry":
            return Retry()
        if plan.recovery == "park":
            return Park()
        if plan.recovery == "fail":
            raise Planned("the method raised")
        return Completed(self._change(plan))

    async def _perform(self, plan: Plan, *, transactional: bool = False) -> int:
        # The change comes first, so that whatever goes wrong later has something to take back.
        reply = self._change(plan)
        if plan.sleep_s >= 0:
            await anyio.sleep(plan.sleep_s)
        if plan.child:
            self.context.start_soon(self._child, plan.child)
        if plan.asks and not transactional:
            await self.context.ask(EntityRef("counter", plan.asks), Read())
        if self.context.attempt < plan.well_from:
            if plan.end == "refuse":
                raise No
            if plan.end == "fail":
                raise Planned("as planned")
            if plan.end == "hang":
                await anyio.sleep_forever()
        return reply

    def _change(self, plan: Plan) -> int:
        self.state.uids.append(self.context.message_id.rpartition("/")[2])
        for target in plan.sends:
            self.outbox.add(EntityRef("worker", target), Put())
        return len(self.state.uids)

    async def _child(self, end: str) -> None:
        await anyio.sleep(0.01)
        if end == "fail":
            raise Planned("a child")


@frozen
class Add(Command[int]):
    amount: int


@frozen
class Read(Query[int]):
    pass


@define
class Total:
    amount: int = 0


class Counter(Actor[Total], kind="counter"):
    """A register: what every linearizable history of it looks like is easy to say."""

    @handler
    async def add(self, message: Add) -> int:
        self.state.amount += message.amount
        await anyio.lowlevel.checkpoint()
        return self.state.amount

    @handler
    async def read(self, message: Read) -> int:
        return self.state.amount
