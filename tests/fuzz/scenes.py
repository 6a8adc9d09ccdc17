"""A system at work on a store in which things are damaged, before it starts or in the middle of turns.

What has to hold, whatever it was: the node goes on; entities that are not damaged answer; every message that was
accepted has ended, or is a dead letter, or waits where a person can see it; and the books can be read.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from random import Random
from typing import Any, Final, cast

import anyio
from attrs import define, field

from atomic_actors import ActorSystem, AtomicActorsError, EntityRef, Receipt, SystemFailed
from atomic_actors.base._records import partition_of
from tests.fuzz.effort import Broken
from tests.fuzz.store_damage import StoreDamage
from tests.system.support import (
    QUICK,
    Break,
    BreakWrite,
    Decline,
    Desk,
    NewSystem,
    Read,
    Send,
    Stage,
    Work,
    Write,
    desk,
)

__all__ = ("Scene",)

DESKS: Final = tuple(desk(name) for name in ("a", "b", "c", "d"))
STRIKES_MAX: Final = 3
PATIENCE_S: Final = 4.0
#: How long a message may still take to end, where nothing keeps it from doing so.
SETTLE_S: Final = 0.6
#: Steps in a second that a node at rest may send: sweeps and leases of four partitions, and a few retries.
STEPS_AT_REST_PER_S: Final = 400


class _Said(logging.Handler):
    """What the node says to people."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error


@define(eq=False)
class Scene:
    """One input: a store with a past, some damage, and what came of it."""

    random: Random
    new_system: NewSystem
    damage: StoreDamage
    stage: Stage = field(factory=Stage)
    receipts: list[Receipt[Any]] = field(factory=list[Receipt[Any]])
    said: _Said = field(factory=_Said)

    async def play(self) -> None:
        """Play it.

        Raises:
            Broken: something did not hold; it names the damage.
        """
        logger = logging.getLogger("atomic_actors")
        logger.addHandler(self.said)
        try:
            with anyio.fail_after(30):
                await self._play()
        except Exception as error:
            first = _first_of(error)
            raise Broken("the scene ended with", self._story(), first) from first
        finally:
            logger.removeHandler(self.said)

    def _story(self) -> object:
        return self.damage.done, self.said.lines[-5:]

    async def _play(self) -> None:
        in_the_middle = self.random.random() < 0.5
        async with self._system() as system:
            await self._make_past(system)
            if in_the_middle:
                async with anyio.create_task_group() as group:
                    await self._hold_turns(system, group)
                    self._strike()
                    self.stage.release()
                await self._look(system)
        if in_the_middle:
            return
        self._strike()
        try:
            async with self._system() as system:
                await self._look(system)
        except SystemFailed:
            raise
        except AtomicActorsError:
            # What holds for the whole namespace is not what it was: a node may refuse to start, and says why.
            if not self.damage.is_everywhere:
                raise

    @asynccontextmanager
    async def _system(self) -> AsyncGenerator[ActorSystem]:
        async with self.new_system(Desk.using(stage=self.stage), on_dead="continue") as system:
            yield system

    def _strike(self) -> None:
        for _ in range(self.random.randint(1, STRIKES_MAX)):
            self.damage.strike(self.random)

    # The past.

    async def _make_past(self, system: ActorSystem) -> None:
        """States, outcomes, dead letters, parked entities with a queue, streams with something in them."""
        for ref in DESKS:
            await system.ask(ref, Write("first"))
        for message in (Break(), BreakWrite(), Decline("no")):
            self.receipts.append(await system.tell(self.random.choice(DESKS), message))
        parked = desk("parked")
        await system.pause(parked)
        for waiting in (Write("x"), Work("y"), Write("z")):
            key = self.random.choice((None, waiting.word))
            self.receipts.append(await system.tell(parked, waiting, key=key))
        for ref in DESKS:
            self.receipts.append(
                await system.tell(ref, Send(self.random.choice(("a", "e", "f")), ["one", "two"]))
            )
            self.receipts.append(await system.tell(ref, Write("second")))
        for receipt in self.receipts:
            if receipt.entity != parked and self.random.random() < 0.7:
                await self._result(system, receipt, PATIENCE_S)

    async def _hold_turns(self, system: ActorSystem, group: anyio.abc.TaskGroup) -> None:
        """Turns that stand in a handler, with more behind them."""
        for ref in self.random.sample(DESKS, 2):
            word = f"held by {ref.id}"
            self.stage.hold(word)
            receipt = await system.tell(ref, Work(word))
            self.receipts += (receipt, await system.tell(ref, Write("behind")))
            await self.stage.wait_for(word)
            group.start_soon(self._result, system, receipt, 1.0)

    # What has to hold.

    async def _result(self, system: ActorSystem, receipt: Receipt[Any], timeout_s: float) -> str:
        """How a message ended: `ended`, or the code of the error."""
        try:
            await system.result(receipt, timeout_s=timeout_s)
        except AtomicActorsError as error:
            return error.code
        return "ended"

    async def _look(self, system: ActorSystem) -> None:
        if self.random.random() < 0.5:
            await self._tolerate(system.resume, desk("parked"))
        async with anyio.create_task_group() as group:
            for ref in (*DESKS, desk("e")):
                group.start_soon(self._poke, system, ref)
        await self._ask_the_sound(system)
        report = await system.audit()
        assert report.accepted >= 0
        letters = {letter.message_id for letter in await system.dead_letters.list()}
        await self._tolerate(system.nodes)
        await self._tolerate(system.partitions)
        assert isinstance(repr(system.statistics()), str)
        async with anyio.create_task_group() as group:
            for receipt in self.receipts:
                group.start_soon(self._account_for, system, receipt, letters)
        await self._check_rest(system)

    async def _poke(self, system: ActorSystem, ref: EntityRef) -> None:
        for message in (Write("third"), Read()):
            await self._tolerate(system.ask, ref, message, timeout_s=SETTLE_S)

    async def _tolerate(self, function: Any, *arguments: Any, **options: Any) -> None:
        """An error of the library is an answer; any other one is not."""
        try:
            await function(*arguments, **options)
        except SystemFailed:
            raise
        except AtomicActorsError:
            pass

    async def _ask_the_sound(self, system: ActorSystem) -> None:
        """Entities that are new, in partitions that work, notice nothing."""
        for number in range(8):
            ref = desk(f"sound-{number}")
            if (
                partition_of(str(ref), QUICK["partitions"]) in self.damage.partitions
                or self.damage.is_everywhere
            ):
                continue
            reply = await system.ask(ref, Write("sound"), timeout_s=PATIENCE_S)
            if reply != 1:
                raise Broken(f"{ref} answered {reply}", None)

    async def _account_for(self, system: ActorSystem, receipt: Receipt[Any], letters: set[str]) -> None:
        """A message has ended, is a dead letter, waits where one can see it, or somebody said what is wrong."""
        code = await self._result(system, receipt, SETTLE_S)
        if code not in ("ask_timeout", "unknown_message", "interrupted", "outcome_unknown"):
            return
        if receipt.message_id in letters or self._was_said(receipt):
            return
        try:
            location = await system.where(receipt.entity)
        except AtomicActorsError:
            return  # the record itself cannot be read, and that is what it says
        if location.is_parked or location.waiting or location.dispatched:
            return
        # It may have ended just between the two looks.
        if await self._result(system, receipt, PATIENCE_S) == "ask_timeout":
            raise Broken(f"{receipt.message_id} is nowhere to be seen ({code})", None)

    def _was_said(self, receipt: Receipt[Any]) -> bool:
        partition = partition_of(str(receipt.entity), QUICK["partitions"])
        if partition in self.damage.partitions or self.damage.is_everywhere:
            return True
        uid = receipt.message_id.rpartition("/")[2]
        told = " ".join(self.said.lines) + " ".join(self.damage.done)
        # What was struck out of existence with its own name is nobody's to find.
        return str(receipt.entity) in told or uid in told

    async def _check_rest(self, system: ActorSystem) -> None:
        """Nobody runs in circles."""
        before = system.statistics().store.steps
        await anyio.sleep(0.25)
        steps = system.statistics().store.steps - before
        if steps > STEPS_AT_REST_PER_S / 4:
            raise Broken(f"{steps} steps in a quarter of a second, and nobody sends anything", None)
