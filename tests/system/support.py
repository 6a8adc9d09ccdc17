"""Actors that a test can hold where they are, and ways to see what a system did."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import attrs
from attrs import Factory, define, field, frozen

from atomic_actors import (
    Actor,
    ActorSystem,
    Command,
    Config,
    EntityRef,
    LifecycleEvent,
    Query,
    Refused,
    handler,
)
from atomic_actors.journal._protocol import Journal
from atomic_actors.journal._settings import journal_settings
from atomic_actors.journal.memory._journal import MemoryJournal

#: What a test waits for must be quick; a wait without end would hide what went wrong.
PATIENCE_S = 4.0

#: Short waits wherever a default is made for people.
QUICK: dict[str, Any] = {
    "partitions": 4,
    "tick_interval_s": 0.005,
    "backoff_initial_s": 0.02,
    "backoff_max_s": 0.05,
    "backoff_jitter": 0.0,
    "drain_timeout_s": 1.0,
}


@define(eq=False)
class NewSystem:
    """Makes systems over one store, with short waits."""

    url: str
    namespace: str = field(factory=lambda: f"test-{secrets.token_hex(6)}")
    #: In memory a journal lives as long as its store: the systems of one test share it.
    journal: MemoryJournal | None = None

    @property
    def in_memory(self) -> bool:
        return self.url == "memory:"

    def config(self, *actors: Any, **settings: Any) -> Config:
        return Config(
            url=self.url,
            namespace=self.namespace,
            actors=list(actors),
            allow_no_persistence=True,
            **{**QUICK, **settings},
        )

    def __call__(
        self, *actors: Any, wrap: Callable[[Journal], Journal] | None = None, **settings: Any
    ) -> ActorSystem:
        config = self.config(*actors, **settings)
        if not self.in_memory:
            assert wrap is None, "only the journal in memory can be wrapped"
            return ActorSystem(config)
        if self.journal is None:
            self.journal = MemoryJournal(journal_settings(config))
        return ActorSystem(config, journal=self.journal if wrap is None else wrap(self.journal))


@define(eq=False, slots=False)
class Stage:
    """What a test shares with its actors: a log of what ran, and gates to hold it."""

    log: list[str] = Factory(list)
    #: Kinds of events with what they saw, such as every `context.attempt`.
    seen: dict[str, list[Any]] = Factory(lambda: defaultdict(list))
    running: int = 0
    most_running: int = 0
    _gates: dict[str, anyio.Event] = Factory(dict)
    _entered: dict[str, anyio.Event] = Factory(lambda: defaultdict(anyio.Event))

    def hold(self, *names: str) -> None:
        """Whoever visits one of these waits there until `release`."""
        for name in names:
            self._gates[name] = anyio.Event()

    def release(self, *names: str) -> None:
        for name in names or tuple(self._gates):
            self._gates.pop(name).set()

    async def visit(self, name: str) -> None:
        self.log.append(name)
        self._entered[name].set()
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            gate = self._gates.get(name)
            if gate is not None:
                await gate.wait()
            else:
                await anyio.lowlevel.checkpoint()
        finally:
            self.running -= 1

    async def wait_for(self, name: str) -> None:
        """Return once somebody has visited `name`."""
        with anyio.fail_after(PATIENCE_S):
            await self._entered[name].wait()


class Watcher:
    """Collects lifecycle events of a system."""

    def __init__(self, system: ActorSystem, *names: Any) -> None:
        self.events: list[LifecycleEvent] = []
        self._changed = anyio.Event()
        for name in names:
            system.listen(name, self._saw)

    def _saw(self, event: LifecycleEvent) -> None:
        self.events.append(event)
        self._changed.set()
        self._changed = anyio.Event()

    @property
    def names(self) -> list[str]:
        return [event.event for event in self.events]

    async def wait(self, count: int = 1) -> list[LifecycleEvent]:
        """Return once there are `count` events."""
        with anyio.fail_after(PATIENCE_S):
            while len(self.events) < count:
                await self._changed.wait()
        return self.events


async def until(condition: Callable[[], Awaitable[object]], patience_s: float = PATIENCE_S) -> None:
    """Return once `condition()` answers something true; for what no event tells."""
    with anyio.fail_after(patience_s):
        while not await condition():  # noqa: ASYNC110 - what a store holds has no event
            await anyio.sleep(0.01)


# A kind for everything that can happen in a turn.


@frozen
class Write(Command[int]):
    """Transactional: keeps a word; the reply is how many there are."""

    word: str


@frozen
class Work(Command[str]):
    """Effectful: visits the stage under its word, then keeps it."""

    word: str


@frozen
class Break(Command[None]):
    text: str = "broken"


@frozen
class BreakWrite(Command[None]):
    """Transactional, and fails."""

    text: str = "broken"


@frozen
class Decline(Command[None]):
    """Transactional, and refuses after it has changed everything."""

    reason: str


@frozen
class Flaky(Command[int]):
    """Fails so many attempts; the reply is the attempt that did not."""

    failures: int


@frozen
class Send(Command[None]):
    to: str
    words: list[str]


@frozen
class Read(Query[list[str]]):
    pass


@define
class Declined(Refused):
    reason: str
    wrote: int = 0


@define
class Words:
    words: list[str] = Factory(list)


class Desk(Actor[Words], kind="desk"):
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @handler(transactional=True)
    async def write(self, message: Write) -> int:
        self.stage.log.append(message.word)
        self.state.words.append(message.word)
        return len(self.state.words)

    @handler
    async def work(self, message: Work) -> str:
        await self.stage.visit(message.word)
        self.state.words.append(message.word)
        return message.word

    @handler
    async def break_it(self, message: Break) -> None:
        self.state.words.append("of a failed turn")
        self.outbox.add(Desk.ref("elsewhere"), Write("of a failed turn"))
        raise RuntimeError(message.text)

    @handler(transactional=True)
    async def break_write(self, message: BreakWrite) -> None:
        self.state.words.append("of a failed turn")
        self.outbox.add(Desk.ref("elsewhere"), Write("of a failed turn"))
        raise RuntimeError(message.text)

    @handler(transactional=True)
    async def decline(self, message: Decline) -> None:
        self.state.words.append("of a refused turn")
        self.outbox.add(Desk.ref("elsewhere"), Write("of a refused turn"))
        raise Declined(message.reason, len(self.state.words))

    @handler(max_attempts=5)
    async def flaky(self, message: Flaky) -> int:
        attempt = self.context.attempt
        self.stage.log.append(f"attempt {attempt}")
        if attempt <= message.failures:
            raise RuntimeError(f"attempt {attempt}")
        return attempt

    @handler(transactional=True)
    async def send(self, message: Send) -> None:
        for word in message.words:
            self.outbox.add(Desk.ref(message.to), Write(word))

    @handler
    async def read(self, message: Read) -> list[str]:
        return self.state.words


def desk(name: str = "one") -> EntityRef:
    return Desk.ref(name)


def changed(config: Config, **settings: Any) -> Config:
    return attrs.evolve(config, **settings)


def unlike(*entities: EntityRef, partitions: int = QUICK["partitions"]) -> list[EntityRef]:
    """A desk in each partition that none of `entities` is in."""
    from atomic_actors.base._records import partition_of

    taken = {partition_of(str(entity), partitions) for entity in entities}
    found: dict[int, EntityRef] = {}
    for number in range(1000):
        entity = desk(f"other-{number}")
        partition = partition_of(str(entity), partitions)
        if partition not in taken:
            found.setdefault(partition, entity)
    return list(found.values())


def partition_mates(entity: EntityRef, partitions: int = QUICK["partitions"]) -> list[EntityRef]:
    """Other desks in the partition of `entity`."""
    from atomic_actors.base._records import partition_of

    mine = partition_of(str(entity), partitions)
    desks = [desk(f"other-{number}") for number in range(50)]
    return [each for each in desks if partition_of(str(each), partitions) == mine]
