"""A node around a supervisor, for tests: the store's answers and the time are given by the test."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import anyio
from attrs import Factory, define, field, frozen

from atomic_actors import Actor, Command, Config, EntityRef, handler
from atomic_actors.actors._kinds import BoundKind, bind_kinds
from atomic_actors.base._oneshot import Backend, oneshot_factory
from atomic_actors.base._telemetry import Listeners
from atomic_actors.codec._codec import Codec
from atomic_actors.codec._envelope import Headers, encode_envelope
from atomic_actors.journal._protocol import (
    Dispatch,
    Dispatched,
    Finish,
    Offer,
    Result,
    Step,
    Sweep,
    Take,
    Taken,
    pack_body,
)
from atomic_actors.journal.commit._batches import OnResult
from atomic_actors.journal.commit._store_clock import StoreClock
from atomic_actors.node.execution._activation import Activation
from atomic_actors.node.execution._body import Body
from atomic_actors.node.execution._deferred import DeferredEntities
from atomic_actors.node.execution._events import Events
from atomic_actors.node.execution._owned_partition import OwnedPartition
from atomic_actors.node.execution._parking import Parking
from atomic_actors.node.execution._schedule import Schedule
from atomic_actors.node.execution._settlements import Settlements
from atomic_actors.node.execution._supervisor import Supervisor
from atomic_actors.node.execution._turn_runner import NodeParts

S = TypeVar("S", bound=Step)

HERE = "here"


@frozen
class Add(Command[int]):
    amount: int = 1


@frozen
class Stay(Command[None]):
    pass


@frozen
class Break(Command[None]):
    pass


@define
class Total:
    amount: int = 0


class Counter(Actor[Total], kind="counter"):
    @handler
    async def add(self, message: Add) -> int:
        self.state.amount += message.amount
        return self.state.amount

    @handler
    async def stay(self, message: Stay) -> None:
        self.state.amount = 99
        await anyio.sleep_forever()

    @handler
    async def break_(self, message: Break) -> None:
        self.state.amount = 99
        raise ValueError("broken")


def counter(name: str = "a") -> str:
    return f"counter/{name}"


@define(eq=False)
class Commits:
    """Takes steps, and answers when the test says so."""

    waiting: list[tuple[Step, OnResult]] = Factory(list)
    available: bool = True

    def enqueue(self, step: Step, on_result: OnResult, *, overtakes: bool = False) -> None:
        self.waiting.append((step, on_result))

    def take(self, kind: type[S]) -> tuple[S, OnResult]:
        """The oldest step of a kind that waits; it does not any more."""
        for position, (step, on_result) in enumerate(self.waiting):
            if isinstance(step, kind):
                del self.waiting[position]
                return step, on_result
        raise AssertionError(f"no {kind.__name__} waits: {[step for step, _ in self.waiting]}")

    def answer(self, kind: type[S], result: Result) -> S:
        step, on_result = self.take(kind)
        on_result(result)
        return step

    def kinds(self) -> list[str]:
        return [type(step).__name__ for step, _ in self.waiting]


@define(eq=False)
class Replies:
    """Hears what askers are told."""

    node_id: str = HERE
    told: list[tuple[str, str, str, bytes]] = Factory(list)

    def reply(self, sender: str, entity: str, uid: str, outcome: bytes) -> None:
        self.told.append((sender, entity, uid, outcome))

    def packed_reply(
        self, sender: str, entity: str, uid: str, word: bytes, reply: bytes
    ) -> tuple[bytes, bytes] | None:
        return sender.encode(), word + reply


@define(eq=False)
class Leases:
    """Stands for the membership."""

    partitions: int
    claims: list[str] = field(init=False)
    epochs: list[int] = field(init=False)
    #: Partitions whose leases have run out, as the node has not noticed yet.
    run_out: set[int] = Factory(set)
    supervisor: Supervisor | None = None

    def __attrs_post_init__(self) -> None:
        self.claims, self.epochs = [""] * self.partitions, [0] * self.partitions

    @property
    def leases(self) -> Leases:
        return self

    def is_valid(self, partition: int) -> bool:
        return bool(self.claims[partition]) and partition not in self.run_out

    def claim(self, partition: int) -> None:
        self.epochs[partition] += 1
        self.claims[partition] = f"claim-{self.epochs[partition]}"
        assert self.supervisor is not None
        self.supervisor.claimed(partition)

    def lose(self, partition: int, why: str) -> None:
        if self.claims[partition]:
            self.claims[partition] = ""
            assert self.supervisor is not None
            self.supervisor.lost(partition, why)


@define(eq=False)
class World:
    """The parts around a supervisor, and what the test does with them."""

    config: Config
    now_s: float = 100.0
    commits: Commits = Factory(Commits)
    body: Body = Factory(Body)
    replies: Replies = field(init=False)
    leases: Leases = field(init=False)
    node: NodeParts = field(init=False)
    kinds: dict[str, BoundKind] = field(init=False)
    supervisor: Supervisor = field(init=False)
    store_clock: StoreClock = field(init=False)
    _sent: int = 0

    def __attrs_post_init__(self) -> None:
        codec = Codec()
        self.kinds = bind_kinds(self.config, codec)
        self.replies, self.leases = Replies(), Leases(self.config.partitions)
        commits, replies = cast("Any", self.commits), cast("Any", self.replies)
        backend = Backend(oneshot_factory(), lambda: self.now_s)
        events = Events(Listeners())
        self.store_clock = StoreClock(backend.clock)
        self.store_clock.note(1_000_000, self.now_s)
        self.node = NodeParts(
            config=self.config,
            backend=backend,
            codec=codec,
            commits=commits,
            replies=replies,
            store_clock=self.store_clock,
            call_checker=cast("Any", None),
            events=events,
            schedule=Schedule(),
            settlements=Settlements(commits, replies, events),
            parking=Parking(commits),
            deferred=DeferredEntities(commits, backend),
        )
        membership = cast("Any", self.leases)
        self.supervisor = Supervisor(
            node=self.node,
            membership=membership,
            kinds=self.kinds,
            service_journals=cast("Any", None),
            body=self.body,
        )
        self.leases.supervisor = self.supervisor

    def partition(self, number: int = 0) -> OwnedPartition:
        partition = self.supervisor.partition(number)
        assert partition is not None
        return partition

    def activation(self, entity: str) -> Activation:
        activation = self.supervisor.catalog.find(entity)
        assert activation is not None
        return activation

    def admit(self, name: str = "a") -> Activation | None:
        ref = EntityRef("counter", name)
        return self.supervisor.admit(self.kinds["counter"], ref, str(ref), 0)

    def offer(self, *messages: Command[Any], turn: int = 1, version: int = 0, sender: str = HERE) -> Offer:
        """A dispatch of messages to a counter without a state."""
        items: list[Dispatched] = []
        for message in messages:
            self._sent += 1
            bound = self.kinds["counter"].by_type[type(message)]
            envelope = encode_envelope(Headers(sender=sender), bound.payload_coder.encode(message))
            body = pack_body(name=bound.spec.name, deadline_ms=0, waited_for=True, key="", envelope=envelope)
            items.append(Dispatched(f"{self._sent:032x}", body, 1, 0))
        return Offer(
            dispatch=Dispatch(turn=turn, messages=tuple(items), recovering=False, version=version, state=None)
        )

    async def begin(self, *messages: Command[Any], entity: str = "counter/a", turn: int = 1) -> None:
        """Wake an entity, and let it have a turn."""
        self.supervisor.wake(0, entity)
        self.commits.answer(Take, Taken(self.offer(*messages, turn=turn)))
        await anyio.wait_all_tasks_blocked()

    async def run(
        self, *messages: Command[Any], entity: str = "counter/a", turn: int = 1
    ) -> tuple[Finish, OnResult]:
        """Wake an entity, let it have a turn, and return its commit."""
        await self.begin(*messages, entity=entity, turn=turn)
        return self.commits.take(Finish)


@asynccontextmanager
async def owner(**settings: Any) -> AsyncGenerator[World]:
    """A node that owns the first of two partitions; its first sweep is not answered."""
    world = World(Config(url="memory:", actors=[Counter], partitions=2, **settings))
    async with anyio.create_task_group() as task_group:
        world.supervisor.start(task_group, cast("Any", None))
        world.leases.claim(0)
        await anyio.wait_all_tasks_blocked()
        assert world.commits.kinds() == [Sweep.__name__]
        yield world
        task_group.cancel_scope.cancel()
    assert world.body.crash is None
