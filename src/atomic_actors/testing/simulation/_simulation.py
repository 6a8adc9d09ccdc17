"""Run your own actors in a simulated cluster: virtual time, one seed for everything, and faults on demand.

The nodes are real (`ActorSystem` and all below it); simulated are time, the network, the processes and the store,
which is the in-memory journal. One seed gives one run, always.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar, cast

import trio
import trio.testing
from attrs import define, field

from atomic_actors._system import ActorSystem
from atomic_actors.actors._messages import Message, target_of
from atomic_actors.base._config import Config
from atomic_actors.base._errors import (
    AtomicActorsError,
    HandlerFailed,
    Interrupted,
    NotExecuted,
    QueueDepthExceeded,
    Refused,
    UsageError,
)
from atomic_actors.base._records import EntityRef, Receipt
from atomic_actors.base._telemetry import Listeners
from atomic_actors.journal._protocol import Journal
from atomic_actors.journal._settings import journal_settings
from atomic_actors.testing.checkers._checkers import check_history
from atomic_actors.testing.checkers._history import Answered, Called, Fault, History, Record, Word
from atomic_actors.testing.checkers._linearizability import (
    NotLinearizable,
    SequentialModel,
    Undecided,
    check_linearizable,
    entities_called,
    operations_of,
)
from atomic_actors.testing.checkers._timeline import timeline
from atomic_actors.testing.simulation._channels import Network
from atomic_actors.testing.simulation._faults import MOMENTS, CrashPoint, Faults, Moment
from atomic_actors.testing.simulation._node import NodeCrashed, SimulatedNode, record_handlers
from atomic_actors.testing.simulation._recording_journal import RecordingJournal
from atomic_actors.testing.simulation._system import AnsweringModel, LivingSystem, shown_refusal
from atomic_actors.testing.simulation._virtual_time import start_outside

__all__ = ("Simulation", "SimulationFailed")

T = TypeVar("T")

#: When virtual time begins for the store: milliseconds since 1970.
EPOCH_MS: Final = 1_700_000_000_000
#: How finely time goes on while anything is under way, in seconds.
STEP_S: Final = 0.25
#: How long nothing may be under way before idle time is skipped.
REST_S: Final = 0.5
#: A node that died is followed by another one after this long.
RESTART_AFTER_S: Final = 0.2
#: The verbs that send a message.
SENDING: Final = ("ask", "tell")


class SimulationFailed(AssertionError):
    """A promise was broken in a simulation; the text says which, and shows what happened."""


@define(eq=False, kw_only=True)
class Simulation:
    """A simulated cluster. Made by `simulate` and `run_simulation`.

    Args:
        config: the settings of every node.
        seed: decides everything.
        size: how many nodes there are, as long as none joins or leaves.
        nursery: what its tasks live in.
        clock: the run's clock.
        rng: what the simulation draws from.
        faults: what can go wrong by itself.
        template: the system that those of the nodes are copied from.
        restarts: whether a node that died is followed by another one.
    """

    config: Config
    seed: int
    size: int
    nursery: trio.Nursery
    clock: trio.testing.MockClock
    rng: random.Random
    faults: Faults
    #: Never entered: what the systems of the nodes are copied from.
    template: ActorSystem
    restarts: bool = True
    history: History = field(factory=History, init=False)
    #: Every node that there was, oldest first.
    nodes: list[SimulatedNode] = field(factory=list[SimulatedNode], init=False)
    store: RecordingJournal = field(init=False)
    network: Network = field(init=False)
    #: The cluster's actors: each call goes to a node that lives, drawn by the seed.
    system: ActorSystem = field(init=False)
    #: What went wrong in the runtime itself.
    broken: list[str] = field(factory=list[str], init=False)
    error: BaseException | None = field(default=None, init=False)
    _began_s: float = field(init=False)
    _calls: int = field(default=0, init=False)
    _calling: int = field(default=0, init=False)
    #: How many things are still on their way, late.
    late: int = field(default=0, init=False)
    _over: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._began_s = trio.current_time()
        self.network = Network(self.faults, self)
        self.store = RecordingJournal(journal_settings(self.config), self)
        self.system = self.at(0)
        record_handlers(self.template, self)
        self.faults.begin(self)

    # What nodes need (`World`).

    def at_s(self) -> float:
        """Virtual seconds since the simulation began."""
        return round(trio.current_time() - self._began_s, 6)

    def now_ms(self) -> int:
        """The store's time."""
        return EPOCH_MS + int(self.at_s() * 1000)

    def record(self, record: Record) -> None:
        """Write down what happened."""
        if not self._over:
            self.history.add(record)

    def note_fault(self, node: int, kind: str, detail: str) -> None:
        """Write down that something went wrong by itself."""
        self.record(Fault(self.at_s(), node, kind, detail))

    def ring(self, partition: int, entity: str) -> None:
        """A step in the store rings a doorbell."""
        self.network.ring(partition, entity)

    def after(self, delay_s: float, function: Callable[[], object], *, is_late: bool = True) -> None:
        """Let something happen later, in no node's process; nothing is quiet before what is late has come."""
        self.late += is_late
        start_outside(self.nursery, self._wait_and_call, delay_s, function, is_late)

    async def _wait_and_call(self, delay_s: float, function: Callable[[], object], is_late: bool) -> None:
        await trio.sleep(delay_s)
        self.late -= is_late
        if not self._over:
            function()

    def broke(self, text: str, error: BaseException | None = None) -> None:
        """Something went wrong that must not."""
        if not self._over:
            self.broken.append(f"{self.at_s():.3f} s: {text}")
            self.error = self.error or error

    def new_system(self, journal: Journal) -> ActorSystem:
        """A system for a node. All share what was made of the actors' classes, which takes the most time."""
        system = copy.copy(self.template)
        system._journal, system._listeners = journal, Listeners()  # pyright: ignore[reportPrivateUsage]
        return system

    # Nodes.

    def living(self, number: int = 0) -> SimulatedNode | None:
        """A node that can be called now, drawn by the seed; or the one of that number. None where there is none."""
        up = [node for node in self.nodes if node.is_up and number in (0, node.number)]
        return self.rng.choice(up) if up else None

    def at(self, number: int) -> ActorSystem:
        """The system at one node (0: at any): what is called there dies with it."""
        return cast("ActorSystem", LivingSystem(self, number))

    def join(self) -> SimulatedNode:
        """Start one node more."""
        node = SimulatedNode(self, len(self.nodes) + 1)
        self.nodes.append(node)
        node.start()
        start_outside(self.nursery, self._follow, node)
        return node

    async def _follow(self, node: SimulatedNode) -> None:
        """Start another node where one died, so that there are as many as there should be."""
        await node.settled.wait()
        while node.status in ("starting", "up"):  # noqa: ASYNC110 - it ends in several ways
            await trio.sleep(RESTART_AFTER_S)
        while not self._over and self.restarts:
            if sum(each.status in ("starting", "up") for each in self.nodes) >= self.size:
                return
            await trio.sleep(RESTART_AFTER_S)
            if sum(each.status in ("starting", "up") for each in self.nodes) < self.size:
                self.join()
                return

    def crash(
        self,
        *,
        before: Moment | None = None,
        after: Moment | None = None,
        nth: int = 1,
        node: int = 0,
    ) -> None:
        """Kill a node, as `kill -9` does: now, or at a moment to come.

        Args:
            before: just before the `nth` such step of the node reaches the store: append, take, commit, settle,
                relay, acknowledge, claim, release, call (any step); or before the `nth` time that any of its
                tasks goes on (await).
            after: just after it; the node never learns of it.
            nth: counted from now.
            node: which one; where left out, whichever of those that live now gets there first.

        Raises:
            ValueError: there is no such moment or node, or both sides are given.
        """
        chosen = [each for each in self.nodes if each.is_up and node in (0, each.number)]
        if not chosen:
            raise ValueError(f"node: there is no {node or 'node'} that is alive")
        moment = before or after
        if before is not None and after is not None:
            raise ValueError("crash: before= or after=, not both")
        if after == "await":
            raise ValueError('crash: after="await" has no meaning; use before="await"')
        if moment is None:
            self.rng.choice(chosen).die()
            return
        if nth < 1:
            raise ValueError(f"nth: counts from 1, not {nth}")
        armed_by = object()
        for each in chosen:
            each.armed_by = armed_by
            if moment == "await":
                each.die_at_await(nth)
            elif moment in MOMENTS:
                each.journal.arm(CrashPoint(MOMENTS[moment], nth, "before" if before else "after"))
            else:
                raise ValueError(f"before, after: there is no {moment!r}; use {', '.join(MOMENTS)} or await")

    def disarm(self, armed_by: object) -> None:
        """One of the nodes that were armed together dies: the others do not."""
        for node in self.nodes:
            if armed_by is not None and node.armed_by is armed_by:
                node.disarm()

    def pause(self, for_s: float, node: int = 0) -> None:
        """Stop a node's process for a time, as SIGSTOP or a suspended machine does.

        Args:
            for_s: how long, in seconds; longer than `lease_ttl_s` lets others take over.
            node: which one; any that lives where left out.

        Raises:
            ValueError: no such node lives now.
        """
        chosen = self.living(node)
        if chosen is None:
            raise ValueError(f"node: there is no {node or 'node'} that is alive, and is not paused")
        if for_s <= 0:
            raise ValueError(f"for_s: must be above 0, not {for_s:g}")
        chosen.process.stop()
        self.faults.fire(chosen.number, "pause", f"for {for_s:g} s")

        def go_on() -> None:
            if chosen.is_paused:
                chosen.process.go_on()

        self.after(for_s, go_on, is_late=False)

    def back_up(self) -> Callable[[], None]:
        """Remember what the store holds now. The function that this returns brings it back, as often as it is called.

        That is what a store does that loses its last second, whose backup is put in place, or whose replica was
        behind: nodes notice it, and report lost history.
        """
        restore = self.store.snapshot()

        def lose_history() -> None:
            restore()
            self.faults.fire(0, "history lost")

        return lose_history

    # Time.

    async def advance(
        self, seconds: float = 0.0, *, minutes: float = 0.0, hours: float = 0.0, days: float = 0.0
    ) -> None:
        """Let so much time pass.

        While anything is under way, every timer goes off at its time. Time in which nothing is to be done for any
        message is skipped: then what waits for its time (an actor that goes to sleep, an outcome that is
        forgotten) happens at its end.
        """
        end_s = trio.current_time() + seconds + 60 * minutes + 3_600 * hours + 86_400 * days
        while True:
            left_s = end_s - trio.current_time()
            if left_s <= 0:
                return
            skipped_s = min(left_s - REST_S, self._idle_for_s() - REST_S)
            if skipped_s > STEP_S:
                self._skip(skipped_s)
            await trio.sleep(min(max(end_s - trio.current_time(), 0.0), STEP_S))

    def _skip(self, seconds: float) -> None:
        for node in self.nodes:
            node.process.skip(seconds)
        self.clock.jump(seconds)

    def _idle_for_s(self) -> float:
        """How long there will be nothing to do; 0 where there is something."""
        if self.late or self._calling or any(node.status in ("starting", "leaving") for node in self.nodes):
            return 0.0
        if self.restarts and sum(node.is_up for node in self.nodes) < self.size:
            return 0.0
        next_ms = 1 << 62
        for partition in self.store.partitions():
            if partition.running or any(partition.streams.values()) or not partition.lease.claim:
                return 0.0
            next_ms = min((next_ms, *partition.ready.values()))
            for entity in partition.entities.values():
                for message in entity.messages.values():
                    next_ms = min(next_ms, message.head.deadline_ms or next_ms)
        return max(0.0, (next_ms - self.now_ms()) / 1000)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing waits, runs or is on its way; what waits at a parked entity does not count."""
        if self.late:
            return False
        return not any(
            partition.running or partition.ready or any(partition.streams.values())
            for partition in self.store.partitions()
        )

    async def settle(self, timeout_s: float = 120.0) -> None:
        """End all faults, and let time go on until nothing waits, runs or is on its way.

        Raises:
            SimulationFailed: it has not ended in `timeout_s`.
        """
        self.faults.clear()
        for node in self.nodes:
            node.disarm()
            if node.is_paused:
                node.process.go_on()
            node.journal.cut_off_until_s = 0.0
            if node.channels.is_deaf:
                node.channels.set_deaf(False)
        end_s = trio.current_time() + timeout_s
        while not self.is_quiet:
            if trio.current_time() >= end_s:
                self.fail(
                    [
                        f"{self.at_s():.3f} s: not quiet {timeout_s:g} s after the last fault: {self.unfinished()}"
                    ]
                )
            await trio.sleep(STEP_S)

    def unfinished(self) -> str:
        """What waits, for a person to read."""
        waiting = {
            entity.name: [f"{uid[-6:]} {message.state.value}" for uid, message in entity.messages.items()]
            for entity in self.store.entities()
            if entity.messages
        }
        streams = sum(len(stream) for each in self.store.partitions() for stream in each.streams.values())
        return f"{waiting}, {streams} in streams, {self.late} on their way, nodes {self.nodes}"

    # Calls.

    async def call(
        self, name: str, arguments: tuple[Any, ...], options: dict[str, Any], number: int = 0
    ) -> Any:
        """Call a verb of the system at a living node, and write down what was sent and answered."""

        def inside(system: ActorSystem) -> Awaitable[Any]:
            answer: Awaitable[Any] = getattr(system, name)(*arguments, **options)
            return answer

        sent = self._sent(arguments, options) if name in SENDING else None
        if sent is None:
            return await self.call_at(inside, number)
        self._calls += 1
        number_of_call = self._calls
        entity, message = sent
        self.record(
            Called(
                at_s=self.at_s(),
                call=number_of_call,
                caller="caller",
                verb=name,
                entity=str(entity),
                message=message,
            )
        )
        try:
            answer = await self.call_at(inside, number)
        except NodeCrashed:
            raise
        except AtomicActorsError as error:
            uid = (error.message_id or "").rpartition("/")[2]
            value = shown_refusal(error) if isinstance(error, Refused) else error
            self.record(
                Answered(at_s=self.at_s(), call=number_of_call, word=self._word(error), value=value, uid=uid)
            )
            raise
        receipt: object = answer
        if isinstance(receipt, Receipt):
            uid = receipt.message_id.rpartition("/")[2]
            self.record(Answered(at_s=self.at_s(), call=number_of_call, word="accepted", value=None, uid=uid))
        else:
            self.record(Answered(at_s=self.at_s(), call=number_of_call, word="reply", value=answer))
        return answer

    def _sent(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[EntityRef, Any] | None:
        """The entity and the message of a call; None where they are not known: the system itself raises the reason."""
        entity = options.get("entity", arguments[0] if arguments else None)
        message = options.get("message", arguments[1] if len(arguments) > 1 else None)
        if isinstance(entity, EntityRef):
            return None if message is None else (entity, message)
        try:
            return target_of(cast("Message[Any]", entity)), entity
        except AtomicActorsError:
            return None

    async def call_at(self, function: Callable[[ActorSystem], Awaitable[T]], number: int = 0) -> T:
        """Call anything at a living node, in its process; waits for one where there is none.

        Raises:
            NodeCrashed: the node died meanwhile, or that very one is not there any more.
        """
        if not 0 <= number <= len(self.nodes):
            raise ValueError(f"node: there is no node {number}; there have been {len(self.nodes)}")
        node = self.living(number)
        while node is None:
            if number and self.nodes[number - 1].status in ("dead", "gone"):
                raise NodeCrashed(f"node {number} is {self.nodes[number - 1].status}")
            if not self.restarts and all(each.status in ("dead", "gone") for each in self.nodes):
                raise NodeCrashed("no node is alive, and restarts=False: start one with `join`")
            await trio.sleep(RESTART_AFTER_S)
            node = self.living(number)
        self._calling += 1
        try:
            return await node.call(function)
        finally:
            self._calling -= 1

    def _word(self, error: AtomicActorsError) -> Word:
        if isinstance(error, Refused):
            return "refused"
        if isinstance(error, HandlerFailed):
            return "failed"
        if isinstance(error, Interrupted):
            return "interrupted"
        # A copy of a refused append that the network still has is accepted when it arrives.
        late_copy = isinstance(error, QueueDepthExceeded) and self.faults.fired["call late"]
        return "never" if isinstance(error, NotExecuted) and not late_copy else "unknown"

    # The verdict.

    def check(self, models: Mapping[str, SequentialModel[Any]] | None = None) -> None:
        """Check everything that was promised, over all that happened so far.

        Nothing lost, nothing twice, order kept, one owner, every answer true: see `docs/testing.md` for the rules.

        Args:
            models: by kind, what one of its entities would do if messages came one at a time and nothing failed.
                The answers that callers got must be explained by some order of their messages, for each entity.

        Raises:
            SimulationFailed: a promise was broken; the text has the seed, what was broken, and a timeline.
        """
        waiting = {entity.name for entity in self.store.entities() if entity.messages}
        found = [
            violation
            for violation in check_history(self.history, healed=self.is_quiet, leases_honoured=True)
            # What waits at a parked entity is not lost.
            if violation.rule != "nothing-lost" or violation.entity not in waiting
        ]
        unknown = sorted(set(models or {}) - set(self.template._kinds))  # pyright: ignore[reportPrivateUsage]
        if unknown:
            raise UsageError(f"models: there is no kind {unknown[0]!r} in this simulation")
        problems = [*self.broken, *(f"{each.at_s:.3f} s: {each.rule}: {each.text}" for each in found)]
        about = found[0].entity if found else ""
        for entity in entities_called(self.history):
            model = (models or {}).get(entity.partition("/")[0])
            wrong = None if model is None else self._explain(entity, model)
            if wrong is not None:
                problems.append(f"{entity}: {wrong}")
                about = about or entity
        if problems:
            self.fail(problems, about or None)

    def _explain(self, entity: str, model: SequentialModel[Any]) -> NotLinearizable | Undecided | None:
        model = AnsweringModel(model)
        answer = check_linearizable(operations_of(self.history, entity), model)
        if isinstance(answer, Undecided):
            # Too many unknown outcomes: take those from the store.
            operations = operations_of(self.history, entity, bounded_by_ends=True)
            answer = check_linearizable(operations, model)
        return answer

    def fail(self, problems: list[str], entity: str | None = None) -> None:
        """Raise `SimulationFailed` with these problems and a timeline."""
        shown = "\n  ".join(problems[:10])
        raise SimulationFailed(
            f"seed {self.seed}, {len(self.nodes)} nodes in all, {self.faults.fired.total()} faults:\n  {shown}\n"
            f"{timeline(self.history, entity=entity)}"
        ) from self.error

    # The beginning and the end.

    async def begin(self) -> None:
        """Start the first nodes."""
        for _ in range(self.size):
            self.join()
        for node in tuple(self.nodes):
            await node.settled.wait()

    def end(self) -> None:
        """End everything."""
        self._over = True
        for node in self.nodes:
            node.end()
        self.nursery.cancel_scope.cancel()
