"""The in-memory journal: the reference model that every other journal is compared with.

One process, plain Python, no I/O: a call executes its steps synchronously and then yields once to the
event loop. What is kept of a partition, and the moves of a message, are in `_counters`; turns are in
`_turns`; here are the senders' steps, the streams between partitions, and the lease.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import anyio.lowlevel

from atomic_actors.base._lifecycle import Event, State, may_leave_unrun
from atomic_actors.base._records import message_id_of
from atomic_actors.journal._protocol import (
    NOTHING,
    Append,
    Appended,
    Audit,
    Audited,
    BatchResult,
    Claimed,
    ClaimPartition,
    CountKind,
    DeadLetterPage,
    Defer,
    Deferred,
    EntityStatus,
    Expire,
    Finish,
    Inspect,
    Interrupt,
    JournalSettings,
    JournalUnavailable,
    KindCount,
    LeaseHeld,
    ListDeadLetters,
    Offer,
    OutcomeRead,
    Park,
    Parked,
    Purge,
    Purged,
    ReadLease,
    ReadOutcome,
    Rejected,
    RelayAck,
    RelayAcked,
    Relayed,
    RelayIn,
    RelayPage,
    RelayRead,
    Release,
    Released,
    Renew,
    Renewed,
    Replay,
    Replayed,
    Result,
    Resume,
    Settled,
    SettleLost,
    Stale,
    Step,
    Sweep,
    Swept,
    Take,
    Taken,
    Withdraw,
    WithdrawAnswer,
    pack_body,
    split_outcome,
    unpack_body,
)
from atomic_actors.journal.memory._counters import Entity, Lease, Partition, read_policy
from atomic_actors.journal.memory._directory import MemoryDirectory
from atomic_actors.journal.memory._turns import (
    bad_step,
    describe,
    expire,
    finish,
    interrupt,
    settle_lost,
    sweep,
    take,
)

__all__ = ("MemoryJournal",)


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class MemoryJournal:
    """A journal that keeps everything in this process and loses it with the process.

    It may be entered more than once at the same time (several nodes of a simulation can share one); what
    it holds stays while the object lives.

    Args:
        settings: what to keep, for how long, and how much of it.
        now_ms: a clock in whole milliseconds since 1970; the wall clock by default. Where it goes back,
            the journal's time does not advance.
        on_bell: called with a partition and an entity wherever a doorbell is rung, after the steps of
            the call have been executed. It must not raise.

    Raises:
        ValueError: a setting cannot work; the text names it.
    """

    def __init__(
        self,
        settings: JournalSettings,
        *,
        now_ms: Callable[[], int] | None = None,
        on_bell: Callable[[int, str], None] | None = None,
    ) -> None:
        if settings.partitions < 1:
            raise ValueError(f"partitions: must be at least 1, not {settings.partitions}")
        self.on_bell = on_bell
        self._settings = settings
        self._clock_ms = now_ms if now_ms is not None else _wall_clock_ms
        self._highest_ms = self._entered = 0
        self._partitions: dict[int, Partition] = {}
        self._bells: list[tuple[int, str]] = []
        #: The nodes that use this store.
        self.directory = MemoryDirectory()
        self._owner_wrote: set[int] = set()
        self._purged = -1
        self._steps: dict[type[Any], Callable[[Partition, Any, int], Result]] = {
            Append: self._append,
            Take: self._take,
            Finish: self._finish,
            Interrupt: self._interrupt,
            SettleLost: self._settle_lost,
            Defer: self._defer,
            Expire: self._expire,
            Withdraw: self._withdraw,
            ReadOutcome: self._read_outcome,
            Replay: self._replay,
            Purge: self._purge,
            ListDeadLetters: self._list_dead_letters,
            Park: self._park,
            Resume: self._resume,
            Inspect: self._inspect,
            CountKind: self._count_kind,
            Audit: self._audit,
            Sweep: self._sweep,
            RelayRead: self._relay_read,
            RelayIn: self._relay_in,
            RelayAck: self._relay_ack,
            ClaimPartition: self._claim,
            Renew: self._renew,
            Release: self._release,
            ReadLease: lambda partition, _step, _now_ms: partition.lease.shown(),
        }

    def __repr__(self) -> str:
        accepted = sum(partition.counts["accepted"] for partition in self._partitions.values())
        return f"<MemoryJournal {len(self._partitions)} partitions in use, {accepted} messages accepted>"

    @property
    def settings(self) -> JournalSettings:
        """The settings it was made with."""
        return self._settings

    async def __aenter__(self) -> Self:
        self._entered += 1
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered -= 1

    async def execute(self, steps: Sequence[Step]) -> BatchResult:
        """Execute steps, in order.

        Raises:
            JournalUnavailable: the journal is not entered; nothing happened.
        """
        if not self._entered:
            raise JournalUnavailable("the journal is not open: enter it with `async with` first", sent=False)
        result = self._execute(steps)
        await anyio.lowlevel.checkpoint()
        return result

    def _execute(self, steps: Sequence[Step]) -> BatchResult:
        now_ms = self._highest_ms = max(self._highest_ms, self._clock_ms())
        self._owner_wrote.clear()
        results = [self._execute_one(step, now_ms) for step in steps]
        for number in self._owner_wrote:
            self._partitions[number].commit += 1
        for number in {step.partition for step in steps}.union(self._next_to_purge()):
            if number in self._partitions:
                self._partitions[number].purge(now_ms)
        bells, self._bells = self._bells, []
        if self.on_bell is not None:
            for number, entity in bells:
                self.on_bell(number, entity)
        return BatchResult(results, now_ms)

    def _next_to_purge(self) -> tuple[int]:
        # One further partition a call, so that those no longer in use are purged too.
        self._purged = (self._purged + 1) % self._settings.partitions
        return (self._purged,)

    def _execute_one(self, step: Step, now_ms: int) -> Result:
        number = step.partition
        if not 0 <= number < self._settings.partitions:
            return bad_step(f"partition: there is no {number}")
        partition = self._partitions.get(number)
        if partition is None:
            partition = self._partitions[number] = Partition(settings=self._settings)
        return self._steps[type(step)](partition, step, now_ms)

    # A sender's steps.

    def _append(self, partition: Partition, step: Append, now_ms: int) -> Appended | Rejected:
        try:
            head = unpack_body(step.body)
            birth_ms = int(step.uid[:12], 16)
            stamps = read_policy(step.policy)
        except ValueError as error:
            return bad_step(f"append: {error}")
        if head.key != step.key:
            return bad_step("key: differs from the body's")
        earlier = self._find_earlier(partition, step, now_ms)
        if earlier is not None:
            return earlier
        if (now_ms - birth_ms) * 2 > self._settings.result_ttl_ms > 0:
            return Rejected("unknown_message", "the id is too old to tell whether it ran already")
        entity = partition.entities.get(step.entity)
        if step.depth_limit and entity is not None and entity.waiting >= step.depth_limit:
            return Rejected("queue_depth_exceeded", f"the entity has {entity.waiting} messages waiting")
        limit = self._settings.partition_depth_limit
        if limit and partition.counts[State.ENQUEUED.value] >= limit:
            return Rejected("queue_depth_exceeded", f"the partition has {limit} messages waiting")
        entity = partition.entity(step.entity)
        was_idle = entity.running is None and not entity.waiting
        partition.accept(entity, step.uid, step.body)
        if step.key:
            partition.use_key(step.entity, step.key, step.uid, step.digest, now_ms)
        if not partition.owned_by(step.claim):
            self._ring_unless_running(partition, entity, step)
            return Appended(step.uid, duplicate=False, outcome=None, offer=NOTHING)
        if not was_idle:
            offer = self._peek(partition, step, step.uid, now_ms)
            return Appended(step.uid, duplicate=False, outcome=None, offer=offer)
        offer = take(
            partition,
            entity,
            step.claim,
            stamps=stamps,
            held_version=step.held_version,
            run_limit=1,
            now_ms=now_ms,
        )
        if offer.dispatch is not None:
            self._owner_wrote.add(step.partition)
        return Appended(step.uid, duplicate=False, outcome=None, offer=offer)

    def _find_earlier(self, partition: Partition, step: Append, now_ms: int) -> Appended | Rejected | None:
        """The answer to a message that was accepted before, by its id or by its key."""
        entity = partition.entities.get(step.entity)
        outcome = partition.outcome(step.entity, step.uid, now_ms)
        uid = step.uid
        if outcome is None and (entity is None or uid not in entity.messages):
            used = partition.key_used(step.entity, step.key, now_ms) if step.key else None
            if used is None:
                return None
            uid, digest = used
            if digest != step.digest:
                return Rejected("key_reused", f"the key was used with other content by {uid}")
        if not partition.owned_by(step.claim):
            self._ring_unless_running(partition, entity, step)
        offer = self._peek(partition, step, step.uid, now_ms)
        return Appended(uid, duplicate=True, outcome=outcome, offer=offer)

    def _ring_unless_running(self, partition: Partition, entity: Entity | None, step: Append) -> None:
        """The commit of a turn of the present owner takes what is next; it needs no doorbell."""
        running = entity.running if entity is not None else None
        if running is None or not partition.owned_by(running.claim):
            self._bells.append((step.partition, step.entity))

    def _peek(self, partition: Partition, step: Append | Replay, uid: str, now_ms: int) -> Offer:
        """What the entity has to do next, for an owner that sent `uid` to it; takes nothing."""
        entity = partition.entities.get(step.entity)
        if entity is None or not partition.owned_by(step.claim):
            return NOTHING
        running = entity.running
        if running is not None and running.claim == step.claim:
            # Only the sending that took the message gets its dispatch (again, if its answer was lost).
            if uid in running.uids:
                return describe(entity, running, step.held_version)
            return Offer(more=True)
        return take(partition, entity, step.claim, stamps={}, held_version=-1, run_limit=0, now_ms=now_ms)

    def _withdraw(self, partition: Partition, step: Withdraw, now_ms: int) -> WithdrawAnswer:
        entity = partition.entities.get(step.entity)
        message = entity.messages.get(step.uid) if entity is not None else None
        if entity is None or message is None:
            outcome = partition.outcome(step.entity, step.uid, now_ms)
            if outcome is None:
                return WithdrawAnswer("unknown")
            if split_outcome(outcome)[0] == State.WITHDRAWN.value:
                return WithdrawAnswer("withdrawn")
            return WithdrawAnswer("finished", outcome)
        if message.state is State.DISPATCHED:
            return WithdrawAnswer("dispatched")
        if not may_leave_unrun(message.attempts):
            return WithdrawAnswer("enqueued")
        if step.key != message.head.key:
            return WithdrawAnswer("needs_key", key=message.head.key)
        partition.finalise(entity, message, Event.WITHDRAW, b"", now_ms)
        partition.index(entity)
        return WithdrawAnswer("withdrawn")

    def _read_outcome(self, partition: Partition, step: ReadOutcome, now_ms: int) -> OutcomeRead:
        entity = partition.entities.get(step.entity)
        message = entity.messages.get(step.uid) if entity is not None else None
        if message is not None:
            return OutcomeRead("enqueued" if message.state is State.ENQUEUED else "dispatched")
        outcome = partition.outcome(step.entity, step.uid, now_ms)
        return OutcomeRead("unknown") if outcome is None else OutcomeRead("finished", outcome)

    # Dead letters, and what people do to an entity.

    def _replay(self, partition: Partition, step: Replay, now_ms: int) -> Replayed | Rejected:
        try:
            stamps = read_policy(step.policy)
        except ValueError as error:
            return bad_step(f"replay: {error}")
        partition.purge_letters(now_ms)
        letter = partition.letters.get(message_id_of(step.entity, step.uid))
        if letter is None:
            return Rejected("unknown_message", "there is no such dead letter")
        if letter.replayed_as:
            offer = self._peek(partition, step, letter.replayed_as, now_ms)
            return Replayed(letter.replayed_as, again=True, offer=offer)
        entity = partition.entity(step.entity)
        known = step.new_uid in entity.messages
        if known or partition.outcome(step.entity, step.new_uid, now_ms) is not None:
            return bad_step("new_uid: there is a message of that id")
        head = unpack_body(letter.body)
        # The deadline has long passed, the sender no longer waits, and the key was the first message's.
        body = pack_body(name=head.name, deadline_ms=0, waited_for=False, key="", envelope=head.envelope)
        was_idle = entity.running is None and not entity.waiting
        partition.accept(entity, step.new_uid, body, at_head=step.at_head)
        partition.mark_replayed(letter, step.new_uid)
        if not partition.owned_by(step.claim):
            self._bells.append((step.partition, step.entity))
            return Replayed(step.new_uid, again=False)
        if not was_idle:
            return Replayed(step.new_uid, False, self._peek(partition, step, step.new_uid, now_ms))
        offer = take(
            partition,
            entity,
            step.claim,
            stamps=stamps,
            held_version=step.held_version,
            run_limit=1,
            now_ms=now_ms,
        )
        if offer.dispatch is not None:
            self._owner_wrote.add(step.partition)
        return Replayed(step.new_uid, again=False, offer=offer)

    def _purge(self, partition: Partition, step: Purge, now_ms: int) -> Purged:
        partition.purge_letters(now_ms)
        gone = [partition.letters.pop(message_id, None) for message_id in step.message_ids]
        return Purged(sum(letter is not None for letter in gone))

    def _list_dead_letters(
        self, partition: Partition, step: ListDeadLetters, now_ms: int
    ) -> DeadLetterPage | Rejected:
        if step.limit < 1:
            return bad_step("limit: must be at least 1")
        partition.purge_letters(now_ms)
        if step.message_id:
            letter = partition.letters.get(step.message_id)
            return DeadLetterPage(() if letter is None else (letter,), complete=True)
        after = (step.after_ms, step.after_id.encode())
        prefix = f"{step.kind}/" if step.kind else ""
        ordered = sorted(
            ((letter.died_ms, letter.message_id.encode()), letter)
            for letter in partition.letters.values()
            if letter.message_id.startswith(prefix)
        )
        letters = [letter for place, letter in ordered if place > after]
        return DeadLetterPage(tuple(letters[: step.limit]), complete=len(letters) <= step.limit)

    def _park(self, partition: Partition, step: Park, now_ms: int) -> Parked:
        return self._set_parked(partition, partition.entity(step.entity), parked=True)

    def _resume(self, partition: Partition, step: Resume, now_ms: int) -> Parked:
        self._bells.append((step.partition, step.entity))
        entity = partition.entities.get(step.entity)
        return Parked(False) if entity is None else self._set_parked(partition, entity, parked=False)

    def _set_parked(self, partition: Partition, entity: Entity, *, parked: bool) -> Parked:
        was_parked, entity.parked = entity.parked, parked
        partition.index(entity)
        return Parked(was_parked)

    # Looking.

    def _inspect(self, partition: Partition, step: Inspect, now_ms: int) -> EntityStatus:
        entity = partition.entities.get(step.entity, Entity(name=step.entity))
        head = entity.head()
        not_before_ms = head.not_before_ms if head is not None else 0
        return EntityStatus(
            waiting=entity.waiting,
            dispatched=len(entity.running.messages) if entity.running is not None else 0,
            parked=entity.parked,
            version=entity.version,
            turn=entity.turn,
            not_before_ms=not_before_ms if not_before_ms > now_ms else 0,
        )

    def _count_kind(self, partition: Partition, step: CountKind, now_ms: int) -> KindCount:
        partition.purge_letters(now_ms)
        prefix = f"{step.kind}/"
        return KindCount(
            dispatched=sum(name.startswith(prefix) for name in partition.running),
            ready=sum(name.startswith(prefix) for name in partition.ready),
            dead_letters=sum(message_id.startswith(prefix) for message_id in partition.letters),
        )

    def _audit(self, partition: Partition, step: Audit, now_ms: int) -> Audited:
        partition.purge_letters(now_ms)
        return Audited(
            counts=dict(partition.counts),
            indexed_dispatched=sum(
                len(entity.running.messages)
                for entity in partition.running.values()
                if entity.running is not None
            ),
            indexed_ready=len(partition.ready),
            dead_letters=len(partition.letters),
            outbound=sum(len(stream) for stream in partition.streams.values()),
            commit=partition.commit,
            incarnation=partition.incarnation,
        )

    # An owner's steps.

    def _take(self, partition: Partition, step: Take, now_ms: int) -> Taken | Stale | Rejected:
        if not partition.owned_by(step.claim):
            return Stale("claim")
        try:
            stamps = read_policy(step.policy)
        except ValueError as error:
            return bad_step(str(error))
        entity = partition.entities.get(step.entity)
        if entity is None:
            return Taken(NOTHING)
        turn = entity.turn
        offer = take(
            partition,
            entity,
            step.claim,
            stamps=stamps,
            held_version=step.held_version,
            run_limit=step.run_limit,
            now_ms=now_ms,
        )
        if entity.turn != turn:
            self._owner_wrote.add(step.partition)
        return Taken(offer)

    def _finish(self, partition: Partition, step: Finish, now_ms: int) -> Result:
        entity = partition.entities.get(step.entity)
        running = entity.running if entity is not None else None
        answer = finish(partition, step, now_ms)
        if entity is not None and entity.running is not running:
            self._owner_wrote.add(step.partition)
        return answer

    def _interrupt(self, partition: Partition, step: Interrupt, now_ms: int) -> Settled | Stale | Rejected:
        entity = partition.entities.get(step.entity)
        running = entity.running if entity is not None else None
        answer = interrupt(partition, step, now_ms)
        if entity is not None and entity.running is not running:
            self._owner_wrote.add(step.partition)
        return answer

    def _settle_lost(self, partition: Partition, step: SettleLost, now_ms: int) -> Result:
        answer, changed = settle_lost(partition, step, now_ms)
        if changed:
            self._owner_wrote.add(step.partition)
        return answer

    def _defer(self, partition: Partition, step: Defer, now_ms: int) -> Deferred | Stale | Rejected:
        if step.delay_ms < 0:
            return bad_step("delay_ms: must not be negative")
        if not partition.owned_by(step.claim):
            return Stale("claim")
        waits = step.entity in partition.ready
        if waits:
            partition.index(partition.entities[step.entity], now_ms + step.delay_ms)
        return Deferred(waits)

    def _expire(self, partition: Partition, step: Expire, now_ms: int) -> Result:
        return expire(partition, step, now_ms)

    def _sweep(self, partition: Partition, step: Sweep, now_ms: int) -> Swept | Stale | Rejected:
        return sweep(partition, step, now_ms)

    # Streams between partitions.

    def _relay_read(self, partition: Partition, step: RelayRead, now_ms: int) -> RelayPage | Stale | Rejected:
        if not partition.owned_by(step.claim):
            return Stale("claim")
        if step.limit < 1:
            return bad_step("limit: must be at least 1")
        stream = partition.streams.get(step.target)
        if not stream:
            return RelayPage(partition.incarnation, ())
        oldest = stream[0][0]
        entries = [entry for incarnation, entry in stream if incarnation == oldest]
        return RelayPage(oldest, tuple(entries[: step.limit]))

    def _relay_in(self, partition: Partition, step: RelayIn, now_ms: int) -> Relayed | Rejected:
        stream = (step.source, step.incarnation)
        last = reached = partition.numbers_in.get(stream, 0)
        if step.after_loss and step.entries:
            last = reached = max(last, step.entries[0].number - 1)
        for entry in step.entries:
            if entry.number > reached + 1:
                return Rejected("stream_gap", f"{entry.number} came where {reached + 1} was next")
            reached = max(reached, entry.number)
            try:
                unpack_body(entry.body)
            except ValueError as error:
                return bad_step(f"entries: {error}")
        entities: dict[str, None] = {}
        for entry in step.entries:
            if entry.number > last:
                last = entry.number
                entity = partition.entity(entry.entity)
                if entry.uid not in entity.messages:
                    partition.accept(entity, entry.uid, entry.body)
                entities[entry.entity] = None
        if entities:
            partition.numbers_in[stream] = last
        self._bells.extend((step.partition, entity) for entity in entities)
        return Relayed(last, tuple(entities))

    def _relay_ack(self, partition: Partition, step: RelayAck, now_ms: int) -> RelayAcked | Stale:
        if not partition.owned_by(step.claim):
            return Stale("claim")
        stream = partition.streams.get(step.target)
        acknowledged = step.incarnation or (stream[0][0] if stream else 0)
        while stream and stream[0][0] == acknowledged and stream[0][1].number <= step.last:
            stream.popleft()
            self._owner_wrote.add(step.partition)
        return RelayAcked(len(stream or ()))

    # The lease.

    def _claim(
        self, partition: Partition, step: ClaimPartition, now_ms: int
    ) -> Claimed | LeaseHeld | Rejected:
        lease = partition.lease
        if not step.claim:
            return bad_step("claim: must not be empty")
        if lease.claim != step.claim:
            expected = (step.expected_claim, step.expected_renewals)
            if lease.claim and (lease.claim, lease.renewals) != expected:
                return LeaseHeld(lease.node, lease.epoch, lease.claim, lease.renewals)
            epoch = max(lease.epoch, step.epoch_above) if step.new_incarnation else lease.epoch
            partition.lease = lease = Lease(step.node, epoch + 1, step.claim)
            if step.new_incarnation:
                partition.begin_incarnation(now_ms)
            partition.incarnation = partition.incarnation or max(1, now_ms)
        return Claimed(lease.epoch, partition.incarnation, partition.commit)

    def _renew(self, partition: Partition, step: Renew, now_ms: int) -> Renewed | Stale:
        if not partition.owned_by(step.claim):
            return Stale("claim")
        partition.lease.renewals += 1
        return Renewed(partition.lease.renewals)

    def _release(self, partition: Partition, step: Release, now_ms: int) -> Released | Stale | Rejected:
        if partition.owned_by(step.claim):
            if partition.running:
                return Rejected("dispatched", f"{len(partition.running)} entities have a turn to settle")
            partition.lease = Lease(epoch=partition.lease.epoch)
        elif partition.lease.claim:
            return Stale("claim")
        return Released()
