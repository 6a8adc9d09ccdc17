"""One simulated node: a process of its own, its way to the store, and the real `ActorSystem` in it.

Everything above the journal is the code that runs in production. Simulated are the process (`Process`), the clock
of its leases, who renews them, and the way to the store and to the other nodes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar

import outcome
import trio
from attrs import define, evolve, field

from atomic_actors._system import ActorSystem
from atomic_actors.actors._kinds import BoundHandler, BoundKind
from atomic_actors.base._config import Config
from atomic_actors.base._errors import OutcomeUnknown, StoreUnavailable, SystemFailed
from atomic_actors.journal._directory import Directory, NodeEntry
from atomic_actors.journal._history import CommitHistory
from atomic_actors.journal._protocol import (
    BatchResult,
    ClaimPartition,
    Finish,
    Finished,
    Journal,
    JournalSettings,
    JournalUnavailable,
    Renew,
    Renewed,
    Result,
    Stale,
    Step,
)
from atomic_actors.node._store import Store
from atomic_actors.node.execution._turn import TurnContext
from atomic_actors.node.ownership._identity import NodeIdentity
from atomic_actors.node.ownership._instants import instant_now
from atomic_actors.node.ownership._lease_keeper import RETRY_INTERVAL_S, Keeper
from atomic_actors.node.routing._node_messenger import NodeMessenger
from atomic_actors.testing.checkers._history import Began, Record, Stopped
from atomic_actors.testing.simulation._channels import Network, SimulatedChannels
from atomic_actors.testing.simulation._faults import CrashPoint, Faults
from atomic_actors.testing.simulation._recording_journal import RecordingJournal
from atomic_actors.testing.simulation._virtual_time import Process, current_process

__all__ = ("NodeCrashed", "SimulatedNode", "World", "record_handlers")

T = TypeVar("T")


class NodeCrashed(OutcomeUnknown):
    """The simulated node that this call was made at has died: whether the message was accepted is not known."""

    code = "node_crashed"


class World(Protocol):
    """What a node needs of the simulation around it."""

    store: RecordingJournal
    network: Network
    faults: Faults
    config: Config
    nursery: trio.Nursery

    def at_s(self) -> float: ...
    def record(self, record: Record) -> None: ...
    def after(self, delay_s: float, function: Callable[[], object]) -> None: ...
    def broke(self, text: str, error: BaseException | None = None) -> None: ...
    def new_system(self, journal: Journal) -> ActorSystem: ...
    def disarm(self, armed_by: object) -> None: ...


@define(eq=False)
class SimulatedNode:
    """A node, from its start to its end.

    Args:
        world: the simulation.
        number: counts from 1, and is never used again.
    """

    world: World
    number: int
    process: Process = field(init=False)
    journal: NodeJournal = field(init=False)
    channels: SimulatedChannels = field(init=False)
    system: ActorSystem | None = field(default=None, init=False)
    status: Literal["starting", "up", "leaving", "gone", "dead"] = field(default="starting", init=False)
    #: It dies when its tasks have continued this many times; 0 for never.
    _dies_at_step: int = field(default=0, init=False)
    #: Nodes with the same one were armed together: only the first that gets there dies.
    armed_by: object = field(default=None, init=False)
    #: Who its owner's records name, once it has claimed something.
    identity: NodeIdentity | None = field(default=None, init=False)
    #: Set when it is up, and when it has ended without ever being so.
    settled: trio.Event = field(factory=trio.Event, init=False)
    _leave: trio.Event = field(factory=trio.Event, init=False)
    _scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    _calls: dict[trio.Event, list[outcome.Outcome[Any]]] = field(
        factory=dict[trio.Event, list[outcome.Outcome[Any]]], init=False
    )

    def __attrs_post_init__(self) -> None:
        self.process = Process(on_step=self._on_step, owner=self)
        self.journal = NodeJournal(self)
        self.channels = self.world.network.join(self.number)

    def __repr__(self) -> str:
        return f"<node {self.number} {self.status}{' paused' if self.is_paused else ''}>"

    @property
    def is_dead(self) -> bool:
        """Whether it crashed: nothing of it runs any more."""
        return self.status == "dead"

    @property
    def is_paused(self) -> bool:
        """Whether it lives and is paused."""
        return self.process.is_stopped and not self.is_dead

    @property
    def is_up(self) -> bool:
        """Whether calls can be made at it now."""
        return self.status == "up" and not self.process.is_stopped

    # Life.

    def start(self) -> None:
        """Start its process."""
        self.process.start_soon(self.world.nursery, self._run)

    async def _run(self) -> None:
        system = self.world.new_system(self.journal)
        try:
            with self._scope:
                async with system:
                    self.system, self.status = system, "up"
                    self.settled.set()
                    await self._leave.wait()
                    self.status = "leaving"
        except StoreUnavailable as error:
            if self.system is not None and not self.is_dead:
                self.world.broke(f"node {self.number} ended by itself: {error!r}", error)
        except SystemFailed as error:
            if not self.is_dead:
                self.world.broke(f"node {self.number} failed: {error.__cause__!r}", error.__cause__)
        if not self.is_dead:
            self.status = "gone"
            self.world.network.lose(self.number)
            self._notify_callers()
        self.settled.set()

    def leave(self) -> None:
        """Leave in good order."""
        self._leave.set()

    def die(self, why: str = "crash", *, process_gone: bool = False) -> None:
        """Die now, as by SIGKILL.

        Args:
            why: the kind of fault.
            process_gone: the other nodes can see that the process is gone (they are on the same machine).
        """
        if self.status in ("dead", "gone"):
            return
        self.status = "dead"
        self.process.stop()
        self.world.network.lose(self.number)
        if process_gone and self.identity is not None:
            self.identity.retire()
        self.world.faults.fire(self.number, why)
        self._notify_callers()
        self.settled.set()

    def _notify_callers(self) -> None:
        for event, result in self._calls.items():
            error = NodeCrashed(f"node {self.number} died before it answered")
            result.append(outcome.Error(error))
            event.set()

    def end(self) -> None:
        """The simulation is over: let whatever still runs of this node end, unheard."""
        if self.status != "gone":
            self.status = "dead"
        self._scope.cancel()
        if self.process.is_stopped:
            self.process.go_on()
        if self.identity is not None:
            self.identity.retire()

    def _on_step(self, steps: int) -> None:
        if self._dies_at_step and steps >= self._dies_at_step:
            self.world.disarm(self.armed_by)
            self._dies_at_step = 0
            self.die("crash at an await")

    def disarm(self) -> None:
        """Do not die after all."""
        self.journal.crash_point, self._dies_at_step, self.armed_by = None, 0, None

    def die_at_await(self, nth: int) -> None:
        """Die when one of its tasks goes on, the given number of times from now."""
        self._dies_at_step = self.process.steps + nth

    async def call(self, function: Callable[[ActorSystem], Awaitable[T]]) -> T:
        """Call something in this node's process, and wait for its answer.

        Raises:
            NodeCrashed: the node died first.
        """
        if not self.is_up or self.system is None:
            raise NodeCrashed(f"node {self.number} is {self.status}")
        ended, result, scope = trio.Event(), list[outcome.Outcome[T]](), trio.CancelScope()
        self._calls[ended] = result
        inside = partial(_call_inside, partial(function, self.system), result, scope, ended)
        self.process.start_soon(self.world.nursery, inside)
        try:
            try:
                await ended.wait()
            except trio.Cancelled:
                scope.cancel()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 10.0):
                    await ended.wait()
                raise
        finally:
            del self._calls[ended]
        return result[0].unwrap()


async def _call_inside(
    function: Callable[[], Awaitable[T]],
    result: list[outcome.Outcome[T]],
    scope: trio.CancelScope,
    ended: trio.Event,
) -> None:
    with scope:
        try:
            result.append(outcome.Value(await function()))
        except Exception as error:
            result.append(outcome.Error(error))
    ended.set()


# What the handlers do, for the history.


def record_handlers(system: ActorSystem, world: World) -> None:
    """Let every handler of a system, and of its copies, write down when it begins and ends."""
    for kind in system._kinds.values():  # pyright: ignore[reportPrivateUsage]
        if not kind.durable:
            continue
        for name, bound in kind.by_name.items():
            kind.by_name[name] = _recorded(bound, kind, world)
        for cls, bound in kind.by_type.items():
            kind.by_type[cls] = kind.by_name[bound.spec.name]
        if kind.fallback is not None:
            kind.fallback = _recorded(kind.fallback, kind, world)


def _recorded(bound: BoundHandler, kind: BoundKind, world: World) -> BoundHandler:
    spec = bound.spec
    changed = evolve(
        spec,
        function=_watch(spec.function, kind, world, recovering=False),
        recover=None if spec.recover is None else _watch(spec.recover, kind, world, recovering=True),
    )
    return evolve(bound, spec=changed)


def _watch(function: Callable[..., Any], kind: BoundKind, world: World, *, recovering: bool) -> Any:
    async def watched(instance: Any, message: Any) -> Any:
        process = current_process()
        assert process is not None, "a handler runs in no node's process"
        node: SimulatedNode = process.owner
        if node.is_dead:
            await trio.sleep_forever()  # it was about to go on when its node died
        number = node.number
        context: TurnContext = instance if kind.free else instance.context
        entity, _, uid = context.message_id.rpartition("/")
        attempt = context.attempt
        world.record(
            Began(
                at_s=world.at_s(),
                node=number,
                entity=entity,
                uid=uid,
                attempt=attempt,
                epoch=context.fencing_token,
                recovering=recovering,
            )
        )
        how: Literal["returned", "raised", "cancelled"] = "returned"
        try:
            return await function(instance, message)
        except Exception:
            how = "raised"
            raise
        except BaseException:
            how = "cancelled"
            raise
        finally:
            if not node.is_dead:
                world.record(
                    Stopped(
                        at_s=world.at_s(),
                        node=number,
                        entity=entity,
                        uid=uid,
                        attempt=attempt,
                        how=how,
                        recovering=recovering,
                    )
                )

    return watched


# The way to the store.


@define(eq=False)
class NodeJournal:
    """One node's way to the store that all share; what `Store` is made of."""

    node: SimulatedNode
    history: CommitHistory = field(factory=CommitHistory, init=False)
    #: Until when calls of this node do not get through.
    cut_off_until_s: float = field(default=0.0, init=False)
    #: Where it dies, if it is armed; and how many steps of these kinds there were since then.
    crash_point: CrashPoint | None = field(default=None, init=False)
    _counted: int = field(default=0, init=False)

    @property
    def settings(self) -> JournalSettings:
        """See `Journal.settings`."""
        return self.node.world.store.settings

    def make_store(self) -> Store:
        """See `WithStore.make_store`."""
        node, config = self.node, self.node.world.config
        return Store(
            journal=self,
            messenger=NodeMessenger(node.channels),
            history=self.history,
            directory=_NodeDirectory(self, node.world.store.directory),
            keeper=_TaskKeeper(config.partitions, config.lease_renew_interval_s, node),
        )

    async def __aenter__(self) -> Self:
        await self.node.world.store.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.node.world.store.__aexit__(exc_type, exc_value, traceback)

    def check_way(self) -> None:
        """Whether a call would reach the store now.

        Raises:
            JournalUnavailable: it would not.
        """
        now_s, node = trio.current_time(), self.node
        if node.is_dead:
            raise JournalUnavailable("the node is dead", sent=False)
        if max(self.cut_off_until_s, node.world.faults.store_away_until_s) > now_s:
            raise JournalUnavailable("the store is away", sent=False)

    async def execute(self, steps: Sequence[Step]) -> BatchResult:
        """See `Journal.execute`."""
        faults, number = self.node.world.faults, self.node.number
        for step in steps:
            faults.count(step)
            if isinstance(step, ClaimPartition) and self.node.identity is None:
                self._introduce(step)
        try:
            self.check_way()
        except JournalUnavailable:
            await trio.sleep(faults.rng.choice((0.001, 0.01)))
            raise
        fault = faults.draw_call(number)
        if fault in ("call refused", "store away"):
            await trio.lowlevel.checkpoint()
            raise JournalUnavailable(fault, sent=fault == "store away")
        if fault in ("slow request", "request lost", "call late"):
            if fault == "call late":
                self.node.world.after(faults.delay_s(), partial(self._arrive_late, steps))
            await trio.sleep(faults.delay_s())
            if fault != "slow request":
                raise JournalUnavailable(fault, sent=True)
        if fault == "call torn":
            # Each partition's steps are one call, and only some of the calls come through.
            through = {step.partition for step in steps if faults.rng.random() < 0.5}
            await self._reach([step for step in steps if step.partition in through])
            raise JournalUnavailable(fault, sent=True)
        if fault == "call twice":
            await self._reach(steps)
        question = self.history.ask()
        answer = await self._reach(steps)
        numbers = self.node.world.store.commit_numbers(steps)
        if fault in ("slow reply", "reply lost"):
            await trio.sleep(faults.delay_s())
            if fault == "reply lost":
                raise JournalUnavailable(fault, sent=True)
        else:
            await trio.lowlevel.checkpoint()
        self.history.read(question, numbers)
        return answer

    def _introduce(self, step: ClaimPartition) -> None:
        identity = NodeIdentity.decode(step.node)
        if identity is not None:
            self.node.identity = identity
            self.node.world.store.node_numbers[identity.node_id] = self.node.number

    def _arrive_late(self, steps: Sequence[Step]) -> None:
        self._push(steps, self.node.world.store.apply(steps).results)

    async def _reach(self, steps: Sequence[Step]) -> BatchResult:
        """Execute steps in the store, unless this node dies at one of them."""
        position = self._dying_at(steps)
        if position is None:
            return self._apply(steps)
        point = self.crash_point
        assert point is not None
        self.node.world.disarm(self.node.armed_by)
        self.crash_point = None
        done, left = steps[: position + (point.side == "after")], steps[position:]
        if done:
            self._apply(done)
        if point.side == "late":
            faults = self.node.world.faults
            self.node.world.after(faults.delay_s() + 0.5, partial(self._arrive_late, left))
        self.node.die("crash at a step")
        await trio.sleep_forever()
        raise AssertionError("a dead node's task must not be woken")

    def _dying_at(self, steps: Sequence[Step]) -> int | None:
        point = self.crash_point
        if point is None:
            return None
        for position, step in enumerate(steps):
            if not point.kinds or type(step).__name__ in point.kinds:
                self._counted += 1
                if self._counted >= point.nth:
                    return position
        return None

    def _apply(self, steps: Sequence[Step]) -> BatchResult:
        answer = self.node.world.store.apply(steps)
        self._push(steps, answer.results)
        return answer

    def _push(self, steps: Sequence[Step], results: Sequence[Result]) -> None:
        for step, result in zip(steps, results, strict=True):
            if isinstance(step, Finish) and isinstance(result, Finished):
                for channel, payload in step.pushes:
                    self.node.world.network.publish(channel, payload)

    def arm(self, point: CrashPoint) -> None:
        """Let the node die at a step, counted from now."""
        self.crash_point, self._counted = point, 0


@define(eq=False)
class _NodeDirectory:
    """One node's way to the directory of nodes."""

    journal: NodeJournal
    directory: Directory

    async def announce(self, node_id: str, record: bytes) -> Sequence[NodeEntry]:
        self.journal.check_way()
        return await self.directory.announce(node_id, record)

    async def read(self) -> Sequence[NodeEntry]:
        self.journal.check_way()
        return await self.directory.read()

    async def forget(self, node_id: str, beats: int | None = None) -> bool:
        self.journal.check_way()
        return await self.directory.forget(node_id, beats)

    async def drain(self, node_ids: Sequence[str]) -> Sequence[str]:
        self.journal.check_way()
        return await self.directory.drain(node_ids)


@define(eq=False)
class _TaskKeeper(Keeper):
    """Renews leases from a task of the node's process, which is paused with it."""

    node: SimulatedNode
    _scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)

    def start(self) -> None:
        self.node.process.start_soon(self.node.world.nursery, self._run)

    async def aclose(self, timeout_s: float) -> None:
        self._scope.cancel()

    async def _run(self) -> None:
        with self._scope:
            wait_s = self.interval_s
            while True:
                await trio.sleep(wait_s / self.node.process.clock_rate)
                wait_s = self.interval_s
                held = self.held()
                if not held:
                    continue
                sent = instant_now()
                try:
                    answer = await self.node.journal.execute([Renew(*each) for each in held])
                except JournalUnavailable:
                    wait_s = RETRY_INTERVAL_S
                    continue
                known = [_is_renewed(result) for result in answer.results]
                self.note(held, known, sent)


def _is_renewed(result: Result) -> bool | None:
    if isinstance(result, Renewed):
        return True
    return False if isinstance(result, Stale) else None
