"""What must be true, checked at the moment it could stop being true.

The oracle sits inside the in-memory journal: its `WatchedPartition` sees each move of each message, whichever
step made it. Handlers and clients report to it as well. It knows nothing of the runtime, so that it can be wrong
in no way that the runtime is.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from attrs import define, field

from atomic_actors.base._lifecycle import Event, InterruptionRules
from atomic_actors.codec._envelope import decode_envelope, plain_of
from atomic_actors.journal._protocol import Body, JournalSettings, unpack_body
from atomic_actors.journal.memory._counters import Entity, Message, Partition, Running
from atomic_actors.journal.memory._journal import MemoryJournal

#: Between a parent's unique id and the number of the outbox message.
CHILD = ">"


class Broken(AssertionError):
    """A promise was broken."""


def payload_of(body: bytes | Body) -> dict[str, Any]:
    head = body if isinstance(body, Body) else unpack_body(body)
    plain: dict[str, Any] = plain_of(decode_envelope(head.envelope).payload)
    return plain


@define(eq=False)
class Life:
    """One accepted message."""

    entity: str
    uid: str
    name: str
    tag: str
    plan: dict[str, Any]
    replay: bool
    attempts: int = 0
    interruptions: int = 0
    #: Starts of the handler, by attempt; and of the `on_interrupted` method.
    starts: Counter[int] = field(factory=Counter)
    recoveries: Counter[int] = field(factory=Counter)
    #: What the last run returned, and whether the method said `Retry()` since it was cut off.
    returned: Any = None
    may_run_again: bool = False
    end: str = ""
    reply: bytes = b""


@define(eq=False)
class Oracle:
    """Keeps its own books and compares."""

    trace: list[str] = field(factory=list)
    lives: dict[str, Life] = field(factory=dict)
    #: The first message of each tag, and all of them.
    by_tag: dict[str, list[Life]] = field(factory=lambda: defaultdict(list))
    #: Uniques that are not final, in the one order that they may start in.
    order: dict[str, list[str]] = field(factory=lambda: defaultdict(list))
    dispatched: dict[str, int] = field(factory=Counter)
    #: Tags that an entity's state must hold, in order.
    chain: dict[str, list[str]] = field(factory=lambda: defaultdict(list))
    #: Outbox messages that are committed and not accepted yet, by (source, target).
    owed: dict[tuple[str, str], deque[str]] = field(factory=lambda: defaultdict(deque))
    running: dict[str, str] = field(factory=dict)
    starts: int = 0
    broken: list[str] = field(factory=list)

    def note(self, *words: object) -> None:
        self.trace.append(" ".join(str(word) for word in words))

    def fail(self, text: str) -> None:
        """Keep it: an exception here would be a failure of the store, which is something else."""
        self.broken.append(text)
        self.note("BROKEN", text)

    # The store's moves.

    def accepted(self, entity: str, message: Message, *, at_head: bool) -> None:
        plain = payload_of(message.head)
        tag = plain["tag"]
        parent_uid, is_child, _ = tag.rpartition(CHILD)
        life = Life(entity, message.uid, message.head.name, tag, plain["plan"], bool(self.by_tag[tag]))
        if message.uid in self.lives:
            self.fail(f"{tag}: the same message was accepted twice")
        self.lives[message.uid] = life
        self.by_tag[tag].append(life)
        if at_head:
            self.order[entity].insert(self.dispatched[entity], message.uid)
        else:
            self.order[entity].append(message.uid)
        self.note("accepted", entity, self.name(tag), "replay" if life.replay else "")
        if is_child and not life.replay:
            parent = self.lives[parent_uid]
            owed = self.owed[parent.entity, entity]
            if not owed or owed.popleft() != tag:
                self.fail(f"{entity} got {tag} from {parent.entity} out of turn")

    def taken(self, entity: str, messages: tuple[Message, ...]) -> None:
        uids = [message.uid for message in messages]
        if self.dispatched[entity]:
            self.fail(f"{entity}: a second dispatch")
        if self.order[entity][: len(uids)] != uids:
            self.fail(f"{entity}: {uids} taken out of order, expected {self.order[entity][:4]}")
        self.dispatched[entity] = len(uids)
        for message in messages:
            life = self.lives[message.uid]
            life.attempts = message.attempts
        self.note("taken", entity, *(self.name(self.lives[uid].tag) for uid in uids))

    def ended_turn(self, entity: str) -> None:
        self.dispatched[entity] = 0

    def given_back(self, entity: str, messages: list[Message], event: Event) -> None:
        for message in messages:
            life = self.lives[message.uid]
            if message.interruptions > life.interruptions:
                life.interruptions = message.interruptions
                life.may_run_again = False
            self.note(event.value, entity, self.name(life.tag))

    def final(self, entity: str, message: Message, event: Event, reply: bytes) -> None:
        life = self.lives[message.uid]
        if life.end:
            self.fail(f"{life.tag}: {event.value} after {life.end}")
        life.end, life.reply = event.value, reply
        life.interruptions = message.interruptions
        self.order[entity].remove(message.uid)
        started = life.starts.total() + life.recoveries.total()
        self.note(event.value, entity, self.name(life.tag))
        if event in (Event.WITHDRAW, Event.EXPIRE) and started:
            self.fail(f"{life.tag}: {event.value} after it had started")
        if event is Event.COMPLETE:
            if not started:
                self.fail(f"{life.tag}: completed and never started")
            if plain_of(reply) != life.returned:
                self.fail(f"{life.tag}: the reply {plain_of(reply)} is not what it returned: {life.returned}")
            if life.name != "Count":
                self.chain[entity].append(life.tag)
                for number, target in enumerate(life.plan["sends"]):
                    self.owed[entity, f"worker/{target}"].append(f"{life.uid}{CHILD}{number}")

    # The handlers' moves.

    @contextmanager
    def turn(
        self, message_id: str, attempt: int, stamp: InterruptionRules, *, recovering: bool = False
    ) -> Iterator[Life]:
        """A handler, or an `on_interrupted` method, from its first line to its last."""
        entity, _, uid = message_id.rpartition("/")
        life = self.lives[uid]
        self.starts += 1
        self.note("start", entity, self.name(life.tag), attempt, "recovering" if recovering else "")
        if entity in self.running:
            self.fail(f"{entity}: {life.tag} began while {self.running[entity]} ran")
        if uid not in self.order[entity][: self.dispatched[entity]]:
            self.fail(f"{entity}: {life.tag} began and is not dispatched")
        if attempt != life.attempts:
            self.fail(f"{life.tag}: began attempt {attempt}, but the store has {life.attempts}")
        self._check_again(life, attempt, stamp, recovering)
        (life.recoveries if recovering else life.starts)[attempt] += 1
        self.running[entity] = life.tag
        try:
            yield life
        finally:
            if self.running.pop(entity, "") != life.tag:
                self.fail(f"{entity}: {life.tag} ended and was not running")
            self.note("stop", entity, self.name(life.tag))

    def _check_again(self, life: Life, attempt: int, stamp: InterruptionRules, recovering: bool) -> None:
        if life.starts[attempt] + life.recoveries[attempt]:
            self.fail(f"{life.tag}: attempt {attempt} started twice")
        if stamp.transactional or recovering or not life.interruptions:
            return
        if stamp.policy.value == "d" or (stamp.policy.value == "m" and not life.may_run_again):
            self.fail(
                f"{life.tag}: run again behind everyone's back after {life.interruptions} interruptions"
            )

    def name(self, tag: str) -> str:
        """A name for traces that is the same in every run: unique ids are not."""
        parent, child, number = tag.rpartition(CHILD)
        if child and parent in self.lives:
            return f"{self.name(self.lives[parent].tag)}{CHILD}{number}"
        return tag


class WatchedPartition(Partition):
    """Tells the oracle each move of a message."""

    oracle: Oracle

    def accept(self, entity: Entity, uid: str, body: bytes, *, at_head: bool = False) -> Message:
        message = super().accept(entity, uid, body, at_head=at_head)
        self.oracle.accepted(entity.name, message, at_head=at_head)
        return message

    def dispatch(
        self, entity: Entity, messages: tuple[Message, ...], claim: str, stamp: InterruptionRules
    ) -> Running:
        running = super().dispatch(entity, messages, claim, stamp)
        self.oracle.taken(entity.name, messages)
        return running

    def put_back(self, entity: Entity, messages: list[Message], event: Event) -> None:
        super().put_back(entity, messages, event)
        self.oracle.given_back(entity.name, messages, event)

    def finalise(self, entity: Entity, message: Message, event: Event, reply: bytes, now_ms: int) -> None:
        super().finalise(entity, message, event, reply, now_ms)
        self.oracle.final(entity.name, message, event, reply)

    def end_turn(self, entity: Entity, last: Any) -> None:
        super().end_turn(entity, last)
        self.oracle.ended_turn(entity.name)


class WatchedJournal(MemoryJournal):
    """A `MemoryJournal` under the oracle's eyes."""

    def __init__(self, settings: JournalSettings, oracle: Oracle, **arguments: Any) -> None:
        super().__init__(settings, **arguments)
        for number in range(settings.partitions):
            partition = WatchedPartition(settings=settings)
            partition.oracle = oracle
            self._partitions[number] = partition

    def entities(self) -> Iterator[Entity]:
        for partition in self._partitions.values():
            yield from partition.entities.values()

    def streams_at_rest(self) -> int:
        """Outbox messages that no target has acknowledged yet."""
        return sum(
            len(stream) for partition in self._partitions.values() for stream in partition.streams.values()
        )
