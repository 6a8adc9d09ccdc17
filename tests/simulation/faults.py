"""The fault layer: a journal between a node and the store that delays, loses, repeats, tears, and dies.

A crash is a point in the stream of steps. `before`: the step never reached the store; `after`: it did, and the
node never heard; `late`: it reaches the store only when the node's successor is at work already. Steps before it
in the same batch did happen, those behind it did not. From then on the node gets no answer to anything.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, Literal

import anyio
from attrs import define, field, frozen

from atomic_actors.journal._protocol import BatchResult, JournalUnavailable, Step
from tests.journals import WrappedJournal

#: What can happen to a batch.
FAULTS: Final = (
    "slow_request",
    "slow_reply",
    "refused",
    "lost_request",
    "lost_reply",
    "torn",
    "twice",
    "late",
    "outage",
)
MOMENTS: Final = ("before", "after", "late")
Moment = Literal["before", "after", "late"]

#: A late batch comes this many calls after the one that replaced it, at the most.
LATE_CALLS_MAX: Final = 6


@frozen
class CrashPoint:
    """The `count`th step (of the kind, or of any kind where `kind` is "") of a node's life."""

    kind: str
    count: int
    moment: Moment


@define(eq=False)
class Weather:
    """The faults of one schedule, and how often each of them happened."""

    rng: random.Random
    #: The kinds that exist here, and how likely each call meets one.
    kinds: tuple[str, ...] = ()
    rate: float = 0.0
    fired: Counter[str] = field(factory=Counter)
    crashes: Counter[tuple[str, str]] = field(factory=Counter)
    calls: int = 0
    steps: int = 0
    step_kinds: Counter[str] = field(factory=Counter)
    #: Batches that the network still has, and the calls that they wait for.
    late: list[tuple[int, list[Step]]] = field(factory=list)
    outage_until_s: float = 0.0

    def clear(self) -> None:
        """From now on nothing goes wrong; what is late still comes."""
        self.kinds = ()
        self.outage_until_s = 0.0

    def draw(self) -> str:
        if not self.kinds or self.rng.random() >= self.rate:
            return ""
        kind = self.rng.choice(self.kinds)
        self.fired[kind] += 1
        return kind


@define(eq=False)
class FaultyJournal(WrappedJournal):
    """One node's way to the store.

    Args:
        store: the shared journal.
        weather: what goes wrong.
        crash: where this node dies, or None.
        on_crash: called at that point.
    """

    weather: Weather
    crash: CrashPoint | None
    on_crash: Callable[[], None]
    dead: bool = False
    _counted: int = 0

    def die(self) -> None:
        """No answer any more, and the node's end."""
        if not self.dead:
            self.dead = True
            self.on_crash()

    async def execute(self, steps: Sequence[Step]) -> BatchResult:
        if self.dead:
            await anyio.sleep_forever()
        weather = self.weather
        weather.calls += 1
        await self._deliver_late()
        fault = weather.draw()
        if weather.outage_until_s > anyio.current_time():
            await anyio.sleep(weather.rng.choice((0, 0.01)))
            raise JournalUnavailable("the store is down", sent=False)
        if fault == "outage":
            weather.outage_until_s = anyio.current_time() + weather.rng.choice((0.05, 0.5, 3.0))
            raise JournalUnavailable("the store went down", sent=True)
        if fault == "refused":
            raise JournalUnavailable("refused", sent=False)
        if fault == "slow_request":
            await self._pause()
        if fault in ("lost_request", "late"):
            if fault == "late":
                weather.late.append((weather.calls + weather.rng.randint(1, LATE_CALLS_MAX), list(steps)))
            await self._pause()
            raise JournalUnavailable("no answer in time", sent=True)
        if fault == "torn":
            await self._tear(steps)
        if fault == "twice":
            await self._count(steps)
        answer = await self._count(steps)
        if fault == "slow_reply":
            await self._pause()
        if fault == "lost_reply":
            await self._pause()
            raise JournalUnavailable("the answer was lost", sent=True)
        if self.dead:
            await anyio.sleep_forever()
        return answer

    async def _pause(self) -> None:
        await anyio.sleep(self.weather.rng.choice((0, 0.001, 0.02, 0.2, 1.0)))
        if self.dead:
            await anyio.sleep_forever()

    async def _tear(self, steps: Sequence[Step]) -> None:
        """Each partition's steps are one call, and only some of the calls came through."""
        through = {step.partition for step in steps if self.weather.rng.random() < 0.5}
        await self._count([step for step in steps if step.partition in through])
        raise JournalUnavailable("some calls had no answer", sent=True)

    async def _deliver_late(self) -> None:
        weather = self.weather
        due = [steps for call, steps in weather.late if call <= weather.calls]
        weather.late = [(call, steps) for call, steps in weather.late if call > weather.calls]
        for steps in due:
            weather.fired["late_delivery"] += 1
            await self.store.execute(steps)

    async def _count(self, steps: Sequence[Step]) -> BatchResult:
        """Execute, unless the crash point lies in it."""
        if self.dead:
            await anyio.sleep_forever()
        for position, step in enumerate(steps):
            kind = type(step).__name__
            self.weather.steps += 1
            self.weather.step_kinds[kind] += 1
            crash = self.crash
            if crash is None or crash.kind not in ("", kind):
                continue
            self._counted += 1
            if self._counted < crash.count:
                continue
            self.weather.crashes[kind, crash.moment] += 1
            self.dead = True
            try:
                await self._store(steps[: position + (crash.moment == "after")])
            finally:
                if crash.moment == "late":
                    late_call = self.weather.calls + self.weather.rng.randint(2, 2 * LATE_CALLS_MAX)
                    self.weather.late.append((late_call, list(steps[position:])))
                self.on_crash()
            await anyio.sleep_forever()
        return await self._store(steps)

    async def _store(self, steps: Sequence[Step]) -> BatchResult:
        if not steps:
            return BatchResult((), 0)
        return await self.store.execute(steps)
