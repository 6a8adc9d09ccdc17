"""What the in-memory journal keeps of one partition, and the moves that change it.

`Partition` holds the books: who owns it, every entity's record, the two indexes (running and ready),
outcomes, keys, dead letters and streams. Its methods are the only code that changes a message's state,
and each of them goes through `_wal.advance`, so that the counters and the messages cannot part.

Invariants, true between any two steps:

* a message is in `Entity.messages` exactly while it is ENQUEUED or DISPATCHED;
* `Entity.waiting` is the number of its ENQUEUED messages, and each of them stands in `Entity.log` once;
  an id in the log without a message is the tombstone of one that was withdrawn, has expired or was
  interrupted while it waited;
* `Partition.running` has exactly the entities whose `running` is set;
* `Partition.ready` has exactly the entities that wait, do not run and are not parked, each with its
  head's not-before, or with what `Defer` put there since.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import Final, Literal

from attrs import Factory, define, frozen
from msgspec.structs import replace

from atomic_actors.base._lifecycle import Event, InterruptionRules, Settlement, State, advance
from atomic_actors.base._records import message_id_of
from atomic_actors.journal._protocol import (
    Body,
    JournalSettings,
    LeaseState,
    RelayEntry,
    StoredLetter,
    Target,
    unpack_body,
)

#: How a handler is treated that the caller's policy does not name.
DEFAULT_STAMP: Final = InterruptionRules.decode("edc3")

#: The end of what is kept without end.
NEVER_MS: Final = 1 << 62

#: Expired records that one call removes at most, so that no call pays for a long silence.
PURGED_PER_CALL: Final = 1_000


@define(eq=False, kw_only=True)
class Message:
    """One accepted message that is not finished yet."""

    uid: str
    body: bytes
    head: Body
    state: State = State.ABSENT
    attempts: int = 0
    interruptions: int = 0
    #: The next turn runs the user's `on_interrupted` method.
    recovering: bool = False
    not_before_ms: int = 0

    def expired_unrun(self, now_ms: int) -> bool:
        """Whether its deadline has passed without an attempt."""
        return self.attempts == 0 and 0 < self.head.deadline_ms <= now_ms


@define(eq=False, kw_only=True)
class Running:
    """A dispatch: the messages of one turn, and the claim under which they were taken."""

    turn: int
    claim: str
    messages: tuple[Message, ...]
    stamp: InterruptionRules
    recovering: bool

    @property
    def uids(self) -> tuple[str, ...]:
        """The messages' unique ids, in order."""
        return tuple(message.uid for message in self.messages)


@frozen
class FinishedTurn:
    """How the entity's last turn ended, if by `Finish`: what a second sending is answered with."""

    turn: int
    claim: str
    version: int
    not_buried: tuple[str, ...]


@frozen
class SettledTurn:
    """How the entity's last turn ended, if by `Interrupt`."""

    turn: int
    settlement: Settlement


@define(eq=False, kw_only=True)
class Entity:
    """One entity's record."""

    name: str
    log: deque[str] = Factory(deque[str])
    messages: dict[str, Message] = Factory(dict[str, Message])
    waiting: int = 0
    running: Running | None = None
    parked: bool = False
    version: int = 0
    state: bytes = b""
    #: Takes so far: the number of the turn that runs, or ran last.
    turn: int = 0
    last: FinishedTurn | SettledTurn | None = None

    def head(self) -> Message | None:
        """The first waiting message; tombstones before it are looked past, not removed."""
        if not self.waiting:
            return None
        for uid in self.log:
            message = self.messages.get(uid)
            if message is not None:
                return message
        raise AssertionError(f"{self.name}: {self.waiting} messages wait and the log has none")


@define
class Lease:
    """The owner of the partition; `claim` "" means none."""

    node: bytes = b""
    epoch: int = 0
    claim: str = ""
    renewals: int = 0

    def shown(self) -> LeaseState:
        """What those see who only look."""
        return LeaseState(self.node, self.epoch, self.claim, self.renewals)


@define(eq=False, kw_only=True)
class Partition:
    """The books of one partition."""

    settings: JournalSettings
    lease: Lease = Factory(Lease)
    incarnation: int = 0
    commit: int = 0
    counts: dict[str, int] = Factory(
        lambda: {"accepted": 0, "refused": 0, **{state.value: 0 for state in State}}
    )
    entities: dict[str, Entity] = Factory(dict[str, Entity])
    running: dict[str, Entity] = Factory(dict[str, Entity])
    ready: dict[str, int] = Factory(dict[str, int])
    #: (entity, uid) to (end of its life, outcome).
    outcomes: dict[tuple[str, str], tuple[int, bytes]] = Factory(dict[tuple[str, str], tuple[int, bytes]])
    #: (entity, key) to (end of its life, unique id, digest).
    keys: dict[tuple[str, str], tuple[int, str, str]] = Factory(dict[tuple[str, str], tuple[int, str, str]])
    #: By message id, in the order of their deaths.
    letters: dict[str, StoredLetter] = Factory(dict[str, StoredLetter])
    #: By target: messages, oldest first, each with the incarnation that its number belongs to.
    streams: dict[Target, deque[tuple[int, RelayEntry]]] = Factory(
        dict[int | str, deque[tuple[int, RelayEntry]]]
    )
    #: The last number given to each target in this incarnation.
    numbers_out: dict[Target, int] = Factory(dict[int | str, int])
    #: The last number received of each (source, incarnation).
    numbers_in: dict[tuple[Target, int], int] = Factory(dict[tuple[int | str, int], int])
    _outcome_ends: deque[tuple[int, tuple[str, str]]] = Factory(deque[tuple[int, tuple[str, str]]])
    _key_ends: deque[tuple[int, tuple[str, str]]] = Factory(deque[tuple[int, tuple[str, str]]])

    # Looking.

    def owned_by(self, claim: str) -> bool:
        """Whether `claim` is the current claim; "" never is."""
        return claim != "" and claim == self.lease.claim

    def outcome(self, entity: str, uid: str, now_ms: int) -> bytes | None:
        """A kept outcome."""
        kept = self.outcomes.get((entity, uid))
        return kept[1] if kept is not None and now_ms < kept[0] else None

    def key_used(self, entity: str, key: str, now_ms: int) -> tuple[str, str] | None:
        """The unique id and digest that a key was used with."""
        kept = self.keys.get((entity, key))
        return (kept[1], kept[2]) if kept is not None and now_ms < kept[0] else None

    def room_for_letters(self, now_ms: int) -> int | None:
        """How many more dead letters fit; None for any number."""
        limit = self.settings.partition_dead_letter_limit
        if not limit:
            return None
        self.purge_letters(now_ms)
        return max(0, limit - len(self.letters))

    def entity(self, name: str) -> Entity:
        """The entity's record, made where there is none."""
        record = self.entities.get(name)
        if record is None:
            record = self.entities[name] = Entity(name=name)
        return record

    # Moving messages.

    def _move(self, message: Message, event: Event) -> None:
        before = message.state
        after = advance(before, event)
        if before is not State.ABSENT:
            self.counts[before.value] -= 1
        self.counts[after.value] += 1
        message.state = after

    def accept(self, entity: Entity, uid: str, body: bytes, *, at_head: bool = False) -> Message:
        """Push a new message to the entity's log."""
        message = Message(uid=uid, body=body, head=unpack_body(body))
        self._move(message, Event.APPEND)
        self.counts["accepted"] += 1
        entity.messages[uid] = message
        if at_head:
            entity.log.appendleft(uid)
        else:
            entity.log.append(uid)
        entity.waiting += 1
        if at_head or entity.waiting == 1:
            self.index(entity)
        return message

    def dispatch(
        self, entity: Entity, messages: tuple[Message, ...], claim: str, stamp: InterruptionRules
    ) -> Running:
        """Make messages that are off the log already the entity's next turn."""
        for message in messages:
            self._move(message, Event.TAKE)
            message.attempts += 1
        self._fewer_waiting(entity, len(messages))
        entity.turn += 1
        running = Running(
            turn=entity.turn, claim=claim, messages=messages, stamp=stamp, recovering=messages[0].recovering
        )
        entity.running = running
        self.running[entity.name] = entity
        self.ready.pop(entity.name, None)
        return running

    def _fewer_waiting(self, entity: Entity, number: int) -> None:
        entity.waiting -= number
        if not entity.waiting:
            # Only tombstones are left.
            entity.log.clear()

    def put_back(self, entity: Entity, messages: list[Message], event: Event) -> None:
        """Put dispatched messages back at the head, in order."""
        for message in reversed(messages):
            self._move(message, event)
            entity.log.appendleft(message.uid)
        entity.waiting += len(messages)

    def take_out(self, entity: Entity, message: Message) -> None:
        """Make a waiting message a dispatched one where it stands; its id stays in the log as a tombstone."""
        self._move(message, Event.TAKE)
        self._fewer_waiting(entity, 1)

    def finalise(self, entity: Entity, message: Message, event: Event, reply: bytes, now_ms: int) -> None:
        """Bring a message to its end and keep its outcome."""
        refused = event is Event.REFUSE
        self._move(message, event)
        self.counts["refused"] += refused
        if event in (Event.WITHDRAW, Event.EXPIRE):
            self._fewer_waiting(entity, 1)
            self._free_key(entity.name, message)
        del entity.messages[message.uid]
        word = "refused" if refused else message.state.value
        where = (entity.name, message.uid)
        ttl_ms = self.settings.result_ttl_ms
        ends_ms = now_ms + ttl_ms if ttl_ms else NEVER_MS
        self.outcomes[where] = (ends_ms, word.encode() + b"\n" + reply)
        if ttl_ms:
            self._outcome_ends.append((ends_ms, where))

    def bury(
        self,
        entity: Entity,
        message: Message,
        reason: Literal["failed", "interrupted", "expired"],
        error: bytes,
        now_ms: int,
    ) -> None:
        """Write a dead letter."""
        message_id = message_id_of(entity.name, message.uid)
        self.letters[message_id] = StoredLetter(
            message_id=message_id,
            reason=reason,
            attempts=message.attempts,
            interruptions=message.interruptions,
            died_ms=now_ms,
            replayed_as="",
            error=error,
            body=message.body,
        )

    def mark_replayed(self, letter: StoredLetter, uid: str) -> None:
        """Write into a letter what it was replayed as."""
        self.letters[letter.message_id] = replace(letter, replayed_as=uid)

    def end_turn(self, entity: Entity, last: FinishedTurn | SettledTurn) -> None:
        """Nothing of the entity runs any more."""
        entity.running = None
        entity.last = last
        del self.running[entity.name]

    def index(self, entity: Entity, at_least_ms: int = 0) -> None:
        """Bring the entity's place in the index of ready entities up to date."""
        head = None if entity.parked or entity.running is not None else entity.head()
        if head is None:
            self.ready.pop(entity.name, None)
        else:
            self.ready[entity.name] = max(head.not_before_ms, at_least_ms)

    # Keys, streams and the ends of lives.

    def use_key(self, entity: str, key: str, uid: str, digest: str, now_ms: int) -> None:
        """Remember that a key was used."""
        ttl_ms = self.settings.dedupe_ttl_ms
        ends_ms = now_ms + ttl_ms if ttl_ms else NEVER_MS
        self.keys[entity, key] = (ends_ms, uid, digest)
        if ttl_ms:
            self._key_ends.append((ends_ms, (entity, key)))

    def _free_key(self, entity: str, message: Message) -> None:
        # The message never ran, so the key may be used again; but not if it is another message's by now.
        where = (entity, message.head.key)
        kept = self.keys.get(where)
        if kept is not None and kept[1] == message.uid:
            del self.keys[where]

    def send(self, target: Target, entity: str, uid: str, body: bytes) -> None:
        """Give a message the next number of the stream to another partition."""
        number = self.numbers_out[target] = self.numbers_out.get(target, 0) + 1
        entry = RelayEntry(number, entity, uid, body)
        self.streams.setdefault(target, deque()).append((self.incarnation, entry))

    def begin_incarnation(self, now_ms: int) -> None:
        """Number the streams anew; what waits in them keeps its numbers, for it may have arrived already."""
        self.incarnation = max(self.incarnation + 1, now_ms)
        self.numbers_out.clear()

    def purge_letters(self, now_ms: int) -> None:
        """Forget the dead letters whose time to live is over."""
        ttl_ms = self.settings.dead_letter_ttl_ms
        while ttl_ms and self.letters:
            oldest = next(iter(self.letters.values()))
            if now_ms < oldest.died_ms + ttl_ms:
                break
            del self.letters[oldest.message_id]

    def purge(self, now_ms: int) -> None:
        """Forget some of the outcomes and keys that have expired: the oldest ones, a bounded number."""
        for _ in range(PURGED_PER_CALL):
            if not self._outcome_ends or now_ms < self._outcome_ends[0][0]:
                break
            ends_ms, where = self._outcome_ends.popleft()
            kept = self.outcomes.get(where)
            if kept is not None and kept[0] == ends_ms:
                del self.outcomes[where]
        for _ in range(PURGED_PER_CALL):
            if not self._key_ends or now_ms < self._key_ends[0][0]:
                break
            ends_ms, where = self._key_ends.popleft()
            key = self.keys.get(where)
            if key is not None and key[0] == ends_ms:
                del self.keys[where]


@lru_cache(maxsize=1024)
def read_policy(policy: str) -> dict[str, InterruptionRules]:
    """The stamps of a policy by wire name.

    Raises:
        ValueError: a line is not of the form `name=stamp`.
    """
    stamps: dict[str, InterruptionRules] = {}
    for line in policy.split("\n"):
        if line:
            name, equals, stamp = line.rpartition("=")
            if not equals:
                raise ValueError(f"policy: {line!r} is not of the form name=stamp")
            stamps[name] = InterruptionRules.decode(stamp)
    return stamps


def stamp_of(stamps: dict[str, InterruptionRules], name: str) -> InterruptionRules:
    """The stamp of a handler, else that of `*`, else the default one."""
    return stamps.get(name) or stamps.get("*", DEFAULT_STAMP)
