"""Runs a schedule: nodes that die and follow each other over one store, and clients who talk to whoever lives."""

from __future__ import annotations

import logging
import random
from collections import Counter
from typing import Any, Final

import anyio
from attrs import define, field

from atomic_actors import ActorSystem, Config, EntityRef, Receipt
from atomic_actors.base._errors import (
    AtomicActorsError,
    HandlerFailed,
    Interrupted,
    KeyReused,
    NotExecuted,
    OutcomeUnknown,
    QueueDepthExceeded,
    Refused,
    ResultExpired,
    StoreUnavailable,
    SystemNotRunning,
    UnknownMessage,
)
from atomic_actors.journal._settings import journal_settings
from tests.simulation.actors import MESSAGES, Stage, Worker
from tests.simulation.clock import run_virtual
from tests.simulation.faults import FaultyJournal, Weather
from tests.simulation.oracle import Oracle, WatchedJournal
from tests.simulation.plan import Call, NodeLife, Schedule

EPOCH_MS: Final = 1_700_000_000_000
#: In virtual seconds: how long clients may take, a node may take to leave, and the healed store to be quiet.
CLIENTS_LIMIT_S: Final = 300.0
CALL_LIMIT_S: Final = 60.0
LEAVE_LIMIT_S: Final = 30.0
QUIET_LIMIT_S: Final = 120.0
TOTAL_LIMIT_S: Final = 900.0

_ENDS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (Refused, "refuse"),
    (HandlerFailed, "fail"),
    (Interrupted, "interrupt"),
)


@define(eq=False)
class Answer:
    """What a client was told about a message."""

    tag: str
    value: Any = None
    error: BaseException | None = None


@define(eq=False)
class World:
    """One run."""

    schedule: Schedule
    oracle: Oracle = field(factory=Oracle)
    rng: random.Random = field(init=False)
    weather: Weather = field(init=False)
    config: Config = field(init=False)
    store: WatchedJournal = field(init=False)
    system: ActorSystem | None = field(default=None, init=False)
    answers: list[Answer] = field(factory=list, init=False)
    receipts: list[tuple[str, Receipt[Any]]] = field(factory=list, init=False)
    errors: Counter[str] = field(factory=Counter, init=False)
    nodes: int = field(default=0, init=False)
    tags: int = field(default=0, init=False)
    clients_left: int = field(default=0, init=False)
    healed: bool = field(default=False, init=False)
    error: Exception | None = field(default=None, init=False)
    #: What clients wait for.
    doing: dict[str, str] = field(factory=dict, init=False)
    _up: anyio.Event = field(init=False)
    _leave: anyio.Event = field(init=False)
    _node: FaultyJournal | None = field(default=None, init=False)
    _node_scope: anyio.CancelScope | None = field(default=None, init=False)
    #: The calls of the living node's clients: they die with it.
    _calls: dict[anyio.CancelScope, None] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        schedule = self.schedule
        self.rng = random.Random(schedule.seed ^ 0x5EED)
        self.weather = Weather(random.Random(schedule.seed ^ 0xBAD), schedule.faults, schedule.fault_rate)
        stage = Stage(self.oracle, self.crash)
        self.config = Config(url="memory:", actors=[Worker.using(stage=stage)], **schedule.settings)
        self.store = WatchedJournal(journal_settings(self.config), self.oracle, now_ms=self.now_ms)

    def now_ms(self) -> int:
        return EPOCH_MS + int(anyio.current_time() * 1000)

    # Nodes.

    def crash(self) -> None:
        """The living node dies now, from within."""
        if self._node is not None:
            self._node.die()

    def _on_crash(self) -> None:
        self.oracle.note("crash of node", self.nodes)
        if self._node_scope is not None:
            self._node_scope.cancel()
        for scope in tuple(self._calls):
            scope.cancel()

    async def run_node(self, life: NodeLife | None) -> None:
        """One node, from its start to its end; None is a healthy one that lives until it is asked to leave."""
        self.nodes += 1
        node = FaultyJournal(self.store, self.weather, life.crash if life else None, self._on_crash)
        self._node, self._leave = node, anyio.Event()
        self.oracle.note("node", self.nodes)
        leaving = float("inf")
        with anyio.CancelScope() as self._node_scope:
            try:
                async with ActorSystem(self.config, journal=node) as system:
                    self.system = system
                    self._up.set()
                    with anyio.move_on_after(life.leave_after_s if life else float("inf")):
                        await self._leave.wait()
                    self._up = anyio.Event()
                    self.oracle.note("node leaves")
                    leaving = anyio.current_time()
            except StoreUnavailable:
                if self.system is not None:
                    raise
                self.oracle.note("node could not start")
                await anyio.sleep(0.5)
        self.system, self._node_scope = None, None
        if self._up.is_set():
            self._up = anyio.Event()
        if not node.dead and anyio.current_time() - leaving > LEAVE_LIMIT_S:
            self.oracle.fail(f"leaving took {anyio.current_time() - leaving:.0f} s")
        self.oracle.note("node is gone")
        if self.oracle.running:
            self.oracle.fail(f"handlers outlived their node: {self.oracle.running}")

    async def main(self) -> None:
        self._up = anyio.Event()
        try:
            with anyio.fail_after(TOTAL_LIMIT_S):
                await self._play()
        except BaseExceptionGroup as group:
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from None
            raise

    async def _play(self) -> None:
        async with anyio.create_task_group() as task_group:
            self.clients_left = len(self.schedule.clients)
            for number, calls in enumerate(self.schedule.clients):
                task_group.start_soon(self._client, number, calls)
            for life in self.schedule.nodes:
                await self.run_node(life)
            task_group.start_soon(self._heal)
            while not self.healed:
                # A plan may kill this one too; the next one takes over.
                await self.run_node(None)
            task_group.cancel_scope.cancel()

    async def _heal(self) -> None:
        """Wait for the clients, end the bad weather, and let a healthy node finish everything."""
        with anyio.move_on_after(CLIENTS_LIMIT_S):
            while self.clients_left:  # noqa: ASYNC110 - they are counted
                await anyio.sleep(0.2)
        if self.clients_left:
            self.oracle.fail(f"{self.clients_left} clients hang in {self.doing}")
        self.weather.clear()
        with anyio.move_on_after(QUIET_LIMIT_S):
            while not self.is_quiet():
                self.unpark()
                await anyio.sleep(0.5)
        if not self.is_quiet():
            self.oracle.fail(f"not quiet: {self.unfinished()}")
        await self._check_audit()
        self.healed = True
        self._leave.set()

    def is_quiet(self) -> bool:
        """Whether nothing waits, runs or is on its way."""
        return (
            not any(entity.messages for entity in self.store.entities())
            and not self.store.streams_at_rest()
            and not self.weather.late
            and self.system is not None
        )

    def unfinished(self) -> str:
        waiting = {entity.name: list(entity.messages.values()) for entity in self.store.entities()}
        shown = {name: str(messages[:2])[:400] for name, messages in waiting.items() if messages}
        return f"{shown}, {self.store.streams_at_rest()} in streams, {len(self.weather.late)} late"

    def unpark(self) -> None:
        """What a person on call does after an incident: make room for letters, resume what is parked."""
        for partition in self.store._partitions.values():
            partition.letters.clear()
            for entity in partition.entities.values():
                if entity.parked:
                    entity.parked = False
                    partition.index(entity)

    async def _check_audit(self) -> None:
        while True:
            system = self.system
            try:
                assert system is not None
                report = await system.audit()
                break
            except (AtomicActorsError, AssertionError):
                await anyio.sleep(0.1)
        if not report.is_balanced:
            self.oracle.fail(f"audit: {report.problems}")
        if report.accepted != len(self.oracle.lives):
            self.oracle.fail(f"audit has {report.accepted} accepted, the oracle {len(self.oracle.lives)}")

    # Clients.

    async def _client(self, number: int, calls: tuple[Call, ...]) -> None:
        for call in calls:
            await anyio.sleep(call.after_s)
            await self._up.wait()
            system = self.system
            if system is None:
                continue
            tag = f"c{number}.{self.tags}"
            self.tags += 1
            began = anyio.current_time()
            with anyio.CancelScope() as scope:
                self._calls[scope] = None
                self.doing[tag] = call.verb
                try:
                    await self._do(system, tag, call)
                finally:
                    del self._calls[scope]
                    del self.doing[tag]
            if anyio.current_time() - began > CALL_LIMIT_S:
                self.oracle.fail(f"{tag}: {call.verb} took {anyio.current_time() - began:.0f} s")
        self.clients_left -= 1

    async def _do(self, system: ActorSystem, tag: str, call: Call) -> None:
        try:
            await getattr(self, f"_do_{call.verb}")(system, tag, call)
        except AtomicActorsError as error:
            self.errors[type(error).__name__] += 1

    async def _learn(self, tag: str, answer: Any, *, sends: bool = True) -> Any:
        """Await an answer about a message and remember it. A `result` that is not begun says nothing of it."""
        try:
            value = await answer
        except AtomicActorsError as error:
            self.oracle.note("answer", tag, type(error).__name__)
            if sends or not isinstance(error, SystemNotRunning):
                self.answers.append(Answer(tag, error=error))
            raise
        self.oracle.note("answer", tag, "receipt" if isinstance(value, Receipt) else value)
        self.answers.append(Answer(tag, value))
        if isinstance(value, Receipt):
            self.receipts.append((tag, value))
            if tag not in self.oracle.by_tag:
                self.oracle.fail(f"{tag}: a receipt, but the store has never seen it")
        return value

    def _message(self, tag: str, call: Call) -> tuple[EntityRef, Any]:
        return EntityRef("worker", call.entity), MESSAGES[call.message](tag, call.plan)

    async def _do_tell(self, system: ActorSystem, tag: str, call: Call) -> None:
        await self._learn(tag, system.tell(*self._message(tag, call)))

    async def _do_ask(self, system: ActorSystem, tag: str, call: Call) -> None:
        await self._learn(tag, system.ask(*self._message(tag, call)))

    async def _do_tell_many(self, system: ActorSystem, tag: str, call: Call) -> None:
        messages = [self._message(f"{tag}-{number}", call) for number in range(4)]
        for number, receipt in enumerate(await system.tell_many(messages)):
            self.receipts.append((f"{tag}-{number}", receipt))

    async def _do_ask_cancelled(self, system: ActorSystem, tag: str, call: Call) -> None:
        on_cancel: Any = "withdraw" if call.number < 0.7 else "detach"
        with anyio.move_on_after(call.number * 0.2):
            await self._learn(tag, system.ask(*self._message(tag, call), on_cancel=on_cancel))

    async def _do_ask_short(self, system: ActorSystem, tag: str, call: Call) -> None:
        await self._learn(tag, system.ask(*self._message(tag, call), timeout_s=0.05 + call.number * 0.5))

    async def _do_tell_expiring(self, system: ActorSystem, tag: str, call: Call) -> None:
        await self._learn(tag, system.tell(*self._message(tag, call), expires_in_s=call.number * 0.5))

    async def _do_tell_keyed(self, system: ActorSystem, tag: str, call: Call) -> None:
        key = f"k{int(call.number * 3)}"
        # The same key has the same content, and so the same tag.
        ref, message = self._message(
            f"{key}-{call.entity}-{call.message}", Call(call.verb, call.entity, call.message)
        )
        await self._learn(message.tag, system.tell(ref, message, key=key))

    async def _do_ask_keyed(self, system: ActorSystem, tag: str, call: Call) -> None:
        key = f"k{int(call.number * 3)}"
        ref, message = self._message(
            f"{key}-{call.entity}-{call.message}", Call(call.verb, call.entity, call.message)
        )
        await self._learn(message.tag, system.ask(ref, message, key=key))

    async def _do_withdraw(self, system: ActorSystem, tag: str, call: Call) -> None:
        if not self.receipts:
            return
        tag, receipt = self.receipts[-1 - int(call.number * min(4, len(self.receipts)))]
        withdrawn = await system.withdraw(receipt)
        self.oracle.note("withdraw", tag, withdrawn)
        end = self.oracle.lives[receipt.message_id.rpartition("/")[2]].end
        if withdrawn != (end == "withdraw") and not (end == "withdraw" and not withdrawn):
            self.oracle.fail(f"{tag}: withdraw said {withdrawn}, but it is {end or 'not finished'}")

    async def _do_result(self, system: ActorSystem, tag: str, call: Call) -> None:
        if self.receipts:
            tag, receipt = self.receipts[int(call.number * len(self.receipts))]
            await self._learn(tag, system.result(receipt, timeout_s=3.0), sends=False)

    async def _do_passivate(self, system: ActorSystem, tag: str, call: Call) -> None:
        with anyio.move_on_after(5):
            await system.passivate(EntityRef("worker", call.entity))

    async def _do_pause(self, system: ActorSystem, tag: str, call: Call) -> None:
        await system.pause(EntityRef("worker", call.entity))

    async def _do_resume(self, system: ActorSystem, tag: str, call: Call) -> None:
        await system.resume(EntityRef("worker", call.entity))

    async def _do_replay(self, system: ActorSystem, tag: str, call: Call) -> None:
        letters = await system.dead_letters.list()
        if letters:
            letter = letters[int(call.number * len(letters))]
            at: Any = "head" if call.number < 0.5 else "tail"
            await system.dead_letters.replay(letter.message_id, at=at)

    # The end.

    def check(self) -> None:
        """Everything that can only be seen at the end."""
        oracle = self.oracle
        for answer in self.answers:
            self._check_answer(answer)
        for (source, target), owed in oracle.owed.items():
            if owed:
                oracle.fail(f"{target} never got {list(owed)} from {source}")
        for entity in self.store.entities():
            tags: list[str] = []
            if entity.state:
                from atomic_actors.codec._envelope import plain_of

                tags = plain_of(entity.state)["tags"]
            if tags != oracle.chain[entity.name]:
                oracle.fail(
                    f"{entity.name}: the state holds {tags}, committed were {oracle.chain[entity.name]}"
                )

    def _check_answer(self, answer: Answer) -> None:
        oracle, error, tag = self.oracle, answer.error, answer.tag
        lives = oracle.by_tag.get(tag, [])
        if error is None:
            if isinstance(answer.value, Receipt):
                return
            if not any(life.end == "complete" and life.returned == answer.value for life in lives):
                oracle.fail(
                    f"{tag}: the asker got {answer.value}, but {[(life.end, life.returned) for life in lives]}"
                )
            return
        uid = (error.message_id or "").rpartition("/")[2] if isinstance(error, AtomicActorsError) else ""
        life = oracle.lives.get(uid)
        for cls, end in _ENDS:
            if isinstance(error, cls) and (life is None or life.end != end):
                oracle.fail(f"{tag}: the asker got {error!r}, but it is {life.end if life else 'unknown'}")
        if isinstance(error, NotExecuted):
            # Under a key the tag may be another call's message as well; without an id nothing was sent.
            meant = [life] if life else [] if uid or tag.startswith("k") else lives
            # A copy of a refused append that the network delivers later is accepted then: see `late`.
            refused_late = isinstance(error, QueueDepthExceeded) and self.weather.fired["late_delivery"]
            if any(each.starts or each.recoveries for each in meant) and not refused_late:
                oracle.fail(f"{tag}: the asker got {type(error).__name__}, but it ran")
        elif isinstance(error, UnknownMessage | ResultExpired):
            if life is not None:
                oracle.fail(f"{tag}: the asker got {type(error).__name__}, but the store has it ({life.end})")
        elif not isinstance(error, OutcomeUnknown | Refused | HandlerFailed | Interrupted | KeyReused):
            oracle.fail(f"{tag}: unexpected {error!r}")


def run_schedule(schedule: Schedule) -> World:
    """Run a schedule and check it; what was broken is in `world.oracle.broken`."""
    logging.getLogger("atomic_actors").setLevel(logging.CRITICAL + 1)
    world = World(schedule)
    try:
        run_virtual(schedule.backend, schedule.seed, world.main)
    except Exception as error:
        world.oracle.fail(f"raised {error!r}")
        world.oracle.broken.extend(f"  cause {cause!r}" for cause in (error.__cause__,) if cause is not None)
        world.error = error
    else:
        world.check()
    return world
