"""Random steps, sent to two journals: a `World` turns drawn numbers into steps that are mostly sensible."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from random import Random
from typing import Any

from attrs import Factory, define
from hypothesis import strategies as st
from msgspec.structs import replace

from atomic_actors.base._lifecycle import State
from atomic_actors.journal._protocol import (
    Append,
    Appended,
    Audit,
    Audited,
    Claimed,
    ClaimPartition,
    CountKind,
    DeadLetterPage,
    Defer,
    Dispatch,
    Expire,
    Finish,
    Finished,
    Inspect,
    Interrupt,
    LeaseHeld,
    ListDeadLetters,
    Offer,
    Outgoing,
    Park,
    Purge,
    ReadLease,
    ReadOutcome,
    Rejected,
    RelayAck,
    Relayed,
    RelayEntry,
    RelayIn,
    RelayPage,
    RelayRead,
    Release,
    Renew,
    Replay,
    Replayed,
    Result,
    Resume,
    SettleLost,
    Step,
    Sweep,
    Swept,
    Take,
    Taken,
    Unsettled,
    Verdict,
    Withdraw,
    pack_body,
)
from atomic_actors.journal.memory._counters import Entity, Partition
from atomic_actors.journal.memory._journal import MemoryJournal

PARTITIONS = 2
ENTITIES = ("a/0", "a/1", "ab/2", "a/3")
NAMES = ("edc3", "erc2", "emc3", "edp3", "tdc3", "tdc2", "trp0")
POLICY = "".join(f"\n{name}={name}" for name in NAMES[:-1]) + "\n*=trp0\n"
FAR_MS = 3_600_000

#: What is drawn for one step: which kind, then numbers that the kind reads as it likes.
Drawn = tuple[str, tuple[int, int, int, int, int, int]]

KINDS = (
    ["append"] * 8
    + ["take"] * 5
    + ["finish"] * 8
    + ["interrupt", "withdraw", "expire", "again"] * 3
    + ["relay_read", "relay_in", "relay_ack", "replay", "claim", "resume", "settle_lost"] * 2
    + ["renew", "release", "sweep", "defer", "park", "purge", "letters", "inspect", "count", "read"]
)
NUMBERS = st.tuples(*[st.integers(0, 11)] * 6)
DRAWN: st.SearchStrategy[Drawn] = st.tuples(st.sampled_from(KINDS), NUMBERS)
BATCHES = st.lists(st.lists(DRAWN, min_size=1, max_size=3), min_size=1, max_size=40)


def walk(seed: int, batches: int) -> list[list[Drawn]]:
    """A long way that Hypothesis would rarely go: deep states need many steps."""
    draw = Random(seed)
    return [
        [(draw.choice(KINDS), drawn_numbers(draw)) for _ in range(draw.randint(1, 4))] for _ in range(batches)
    ]


def drawn_numbers(draw: Random) -> tuple[int, int, int, int, int, int]:
    a, b, c, d, e, f = (draw.randrange(12) for _ in range(6))
    return a, b, c, d, e, f


def partition_of(entity: str) -> int:
    return 1 if entity == ENTITIES[-1] else 0


def normalised(result: Result) -> Result:
    """Without what two journals may say differently: order within a sweep, texts, commit numbers."""
    match result:
        case Swept():
            unsettled = tuple(sorted(result.unsettled, key=lambda left: left.entity))
            own = tuple(sorted(result.own, key=lambda left: left.entity))
            return replace(result, due=tuple(sorted(result.due)), unsettled=unsettled, own=own)
        case Relayed():
            return replace(result, entities=tuple(sorted(result.entities)))
        case Audited() | Claimed():
            return replace(result, commit=0)
        case Rejected():
            return replace(result, text="")
        case _:
            return result


@define(eq=False)
class World:
    """What the drawn steps may refer to: learned from the answers of the journal under test."""

    now_ms: int = 0
    _numbers: count[int] = Factory(lambda: count(1))
    sent: list[Append] = Factory(list[Append])
    history: list[Step] = Factory(list[Step])
    dispatches: dict[str, tuple[Dispatch, str]] = Factory(dict[str, tuple[Dispatch, str]])
    unsettled: dict[str, Unsettled] = Factory(dict[str, Unsettled])
    claims: dict[int, list[str]] = Factory(lambda: {0: ["claim-0"], 1: ["claim-1"]})
    leases: dict[int, tuple[str, int]] = Factory(dict[int, tuple[str, int]])
    letters: list[str] = Factory(list[str])
    pages: dict[tuple[int, int], RelayPage] = Factory(dict[tuple[int, int], RelayPage])

    def uid(self) -> str:
        return f"{self.now_ms:012x}{next(self._numbers):020x}"

    def claim(self, partition: int, number: int) -> str:
        """Mostly the latest claim; now and then an older one."""
        claims = self.claims[partition]
        return claims[-1] if number else claims[max(0, len(claims) - 2)]

    def step(self, drawn: Drawn) -> Step:
        kind, numbers = drawn
        entity = ENTITIES[numbers[0] % len(ENTITIES)]
        step: Step = getattr(self, f"_{kind}")(partition_of(entity), entity, *numbers[1:])
        self.history.append(step)
        return step

    # One method for each kind: the partition, the entity, and five numbers.

    def _append(self, partition: int, entity: str, a: int, b: int, c: int, d: int, e: int) -> Step:
        key = ("", "", "", "k1", "k2")[b % 5]
        body = pack_body(
            name=NAMES[a % len(NAMES)],
            deadline_ms=(0, 0, 0, 1, self.now_ms + FAR_MS)[c % 5],
            waited_for=d % 2 == 0,
            key=key,
            envelope=b"%d" % next(self._numbers),
        )
        step = Append(
            partition=partition,
            entity=entity,
            uid=self.uid(),
            body=body,
            key=key,
            digest=f"digest-{e % 2}",
            depth_limit=(0, 0, 2, 3)[d % 4],
            claim="" if e % 3 == 0 else self.claim(partition, e),
            policy=POLICY,
            held_version=c % 3 - 1,
        )
        self.sent.append(step)
        return step

    def _again(self, partition: int, entity: str, a: int, b: int, *_: int) -> Step:
        if not self.history:
            return Audit(partition)
        return self.history[-1 - (a * 12 + b) % min(len(self.history), 30)]

    def _take(self, partition: int, entity: str, a: int, b: int, c: int, *_: int) -> Step:
        return Take(
            partition=partition,
            entity=entity,
            claim=self.claim(partition, a),
            policy=POLICY,
            held_version=b % 4 - 1,
            run_limit=c % 5,
        )

    def _finish(self, partition: int, entity: str, a: int, b: int, c: int, d: int, e: int) -> Step:
        known = self.dispatches.get(entity)
        if known is None:
            return self._take(partition, entity, 1, 0, 4)
        dispatch, claim = known
        ends = ("complete", "complete", "refuse", "fail", "retry", "requeue", "interrupt")
        last = ends[a % len(ends)]
        events = ["complete"] * (len(dispatch.messages) - 1) + [last]
        if b % 3 == 0 and len(events) > 1:
            events = ["refuse", last, *["requeue"] * len(events)][: len(events)]
        verdicts = tuple(
            Verdict(
                uid=message.uid, event=event, reply=b"reply", error=b"error", delay_ms=FAR_MS if b == 1 else 0
            )
            for message, event in zip(dispatch.messages, events, strict=True)
        )
        targets = ENTITIES[: c % 3] if d % 2 else ENTITIES[4 - c % 3 :]
        outbox = tuple(
            Outgoing(
                partition=partition_of(target),
                entity=target,
                uid=self.uid(),
                body=pack_body(name="tdc3", deadline_ms=0, waited_for=False, key="", envelope=b"out"),
                service="other" if e == 9 else "",
            )
            for target in targets
        )
        return Finish(
            partition=partition,
            entity=entity,
            claim=claim,
            turn=dispatch.turn,
            verdicts=verdicts,
            state=(None, b"state", b"%d" % d)[d % 3],
            expected_version=dispatch.version + (e == 11),
            outbox=outbox,
            park=e == 10,
            policy=POLICY,
            run_limit=e % 5,
        )

    def _interrupt(self, partition: int, entity: str, a: int, b: int, c: int, *_: int) -> Step:
        claim = self.claim(partition, a)
        left = self.unsettled.get(entity)
        known = self.dispatches.get(entity)
        if left is not None and b % 2:
            turn, uids = left.turn, left.uids
        elif known is not None:
            turn, uids = known[0].turn, tuple(message.uid for message in known[0].messages)
        else:
            turn, uids = 1, ()
        return Interrupt(
            partition=partition, entity=entity, claim=claim, turn=turn, uids=uids, began=c % 4 != 0
        )

    def _message(self, a: int, b: int) -> Append | None:
        return self.sent[-1 - (a * 12 + b) % len(self.sent)] if self.sent else None

    def _withdraw(self, partition: int, entity: str, a: int, b: int, c: int, *_: int) -> Step:
        message = self._message(a, b)
        if message is None:
            return Withdraw(partition, entity, self.uid())
        return Withdraw(message.partition, message.entity, message.uid, message.key if c % 4 else "wrong")

    def _expire(self, partition: int, entity: str, a: int, b: int, c: int, *_: int) -> Step:
        message = self._message(a, b)
        if message is None:
            return Expire(partition, entity, self.uid())
        return Expire(message.partition, message.entity, message.uid, message.key if c % 6 else "wrong")

    def _read(self, partition: int, entity: str, a: int, b: int, *_: int) -> Step:
        message = self._message(a, b)
        if message is None:
            return ReadOutcome(partition, entity, self.uid())
        return ReadOutcome(message.partition, message.entity, message.uid)

    def _replay(self, partition: int, entity: str, a: int, b: int, c: int, d: int, *_: int) -> Step:
        if not self.letters:
            return ListDeadLetters(partition=partition)
        entity, _, uid = self.letters[a % len(self.letters)].rpartition("/")
        partition = partition_of(entity)
        return Replay(
            partition=partition,
            entity=entity,
            uid=uid,
            new_uid=self.uid(),
            at_head=b % 2 == 0,
            claim="" if c % 3 == 0 else self.claim(partition, c),
            policy=POLICY,
            held_version=d % 4 - 1,
        )

    def _purge(self, partition: int, entity: str, a: int, b: int, *_: int) -> Step:
        return Purge(partition, tuple(self.letters[a : a + b % 3]))

    def _letters(self, partition: int, entity: str, a: int, b: int, *_: int) -> Step:
        return ListDeadLetters(partition=partition, kind=("", "a", "ab")[a % 3], limit=100)

    def _relay_read(self, partition: int, entity: str, a: int, b: int, *_: int) -> Step:
        return RelayRead(partition, self.claim(partition, a), 1 - partition, 1 + b % 3)

    def _relay_in(self, partition: int, entity: str, a: int, b: int, *_: int) -> Step:
        page = self.pages.get((1 - partition, partition))
        entries: Sequence[RelayEntry] = page.entries[a % 2 : 1 + b] if page is not None else ()
        incarnation = page.incarnation if page is not None else 7
        return RelayIn(
            partition=partition,
            source=1 - partition,
            incarnation=incarnation,
            entries=tuple(entries),
            after_loss=b % 4 == 3,
        )

    def _relay_ack(self, partition: int, entity: str, a: int, b: int, *_: int) -> Step:
        page = self.pages.get((partition, 1 - partition))
        incarnation = page.incarnation if page is not None and b % 2 else 0
        return RelayAck(
            partition=partition,
            claim=self.claim(partition, a),
            target=1 - partition,
            last=b,
            incarnation=incarnation,
        )

    def _defer(self, partition: int, entity: str, a: int, b: int, *_: int) -> Step:
        # With a delay, journals may differ in what brings the entity back before that: a sweep is a hint.
        return Defer(partition, entity, self.claim(partition, a), 0)

    def _settle_lost(self, partition: int, entity: str, a: int, b: int, c: int, *_: int) -> Step:
        message = self._message(a, b)
        if message is None:
            return Audit(partition)
        partition = message.partition
        claim = self.claim(partition, a)
        recovering = c % 5 == 0
        return SettleLost(
            partition=partition,
            entity=message.entity,
            claim=claim,
            uid=message.uid,
            policy=POLICY,
            attempt=c % 3,
            interruptions=b % 4,
            recovering=recovering,
        )

    def _claim(self, partition: int, entity: str, a: int, b: int, *_: int) -> Step:
        self.claims[partition].append(f"claim-{partition}-{next(self._numbers)}")
        expected_claim, expected_renewals = self.leases.get(partition, ("", 0))
        claim = self.claims[partition][-1]
        return ClaimPartition(
            partition=partition,
            claim=claim,
            node=b"node",
            expected_claim=expected_claim,
            expected_renewals=expected_renewals,
            new_incarnation=a % 3 == 0,
            epoch_above=b,
        )

    def _renew(self, partition: int, entity: str, a: int, *_: int) -> Step:
        return Renew(partition, self.claim(partition, a))

    def _release(self, partition: int, entity: str, a: int, *_: int) -> Step:
        return Release(partition, self.claim(partition, a))

    def _sweep(self, partition: int, entity: str, a: int, b: int, *_: int) -> Step:
        return Sweep(partition=partition, claim=self.claim(partition, a), own_from="" if b % 2 else None)

    def _park(self, partition: int, entity: str, *_: int) -> Step:
        return Park(partition, entity)

    def _resume(self, partition: int, entity: str, *_: int) -> Step:
        return Resume(partition, entity)

    def _inspect(self, partition: int, entity: str, a: int, *_: int) -> Step:
        return Inspect(partition, entity) if a % 2 else ReadLease(partition)

    def _count(self, partition: int, entity: str, a: int, *_: int) -> Step:
        return CountKind(partition, ("a", "ab", "none")[a % 3])

    # Learning.

    def learn(self, step: Any, result: Result) -> None:
        match result:
            case Appended(offer=offer) | Taken(offer=offer) | Finished(offer=offer) | Replayed(offer=offer):
                self._learn_offer(step, offer)
            case Swept(unsettled=left):
                self.unsettled.update({one.entity: one for one in left})
            case RelayPage():
                self.pages[step.partition, step.target] = result
            case DeadLetterPage():
                self.letters += [
                    letter.message_id for letter in result.letters if letter.message_id not in self.letters
                ]
            case LeaseHeld(claim=claim, renewals=renewals):
                self.leases[step.partition] = (claim, renewals)
            case Claimed():
                self.leases[step.partition] = (step.claim, 0)
            case _:
                pass

    def _learn_offer(self, step: Any, offer: Offer) -> None:
        if offer.dispatch is not None:
            self.dispatches[step.entity] = (offer.dispatch, step.claim)
        if offer.unsettled is not None:
            self.unsettled[step.entity] = offer.unsettled

    def last_look(self) -> list[Step]:
        """Steps that read everything there is."""
        steps: list[Step] = [Inspect(partition_of(entity), entity) for entity in ENTITIES]
        for partition in range(PARTITIONS):
            steps += [Audit(partition), ListDeadLetters(partition=partition), CountKind(partition, "a")]
            steps += [
                Sweep(partition=partition, claim=self.claim(partition, 1), own_from=""),
                RelayRead(partition, self.claim(partition, 1), 1 - partition),
                RelayRead(partition, self.claim(partition, 1), f"other/{partition}"),
            ]
        steps += [ReadOutcome(step.partition, step.entity, step.uid) for step in self.sent]
        return steps


def check_structures(journal: MemoryJournal) -> None:
    """The invariants of the in-memory books, which no step can see."""
    partitions: dict[int, Partition] = journal._partitions
    for partition in partitions.values():
        enqueued = dispatched = 0
        for entity in partition.entities.values():
            waiting, running = _check_entity(entity)
            enqueued += waiting
            dispatched += running
            assert (entity.name in partition.running) == (entity.running is not None)
            ready = waiting > 0 and not running and not entity.parked
            assert (entity.name in partition.ready) == ready
            if ready:
                head = entity.head()
                assert head is not None
                assert partition.ready[entity.name] >= head.not_before_ms
        assert partition.counts["enqueued"] == enqueued
        assert partition.counts["dispatched"] == dispatched


def _check_entity(entity: Entity) -> tuple[int, int]:
    states = [message.state for message in entity.messages.values()]
    assert set(states) <= {State.ENQUEUED, State.DISPATCHED}
    in_log = [uid for uid in entity.log if uid in entity.messages]
    assert len(in_log) == len(set(in_log)) == entity.waiting == states.count(State.ENQUEUED)
    running = entity.running.uids if entity.running is not None else ()
    assert len(running) == states.count(State.DISPATCHED)
    for uid in running:
        assert entity.messages[uid].state is State.DISPATCHED
    return len(in_log), len(running)
