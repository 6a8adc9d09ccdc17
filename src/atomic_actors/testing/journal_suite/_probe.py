"""How the conformance suite talks to a journal: it sends every step the hard way and checks the books.

A `Probe` sends steps to one journal in one of the `MODES`, and reads the partition's books after each of
them, so that a scenario that passes has also shown that no message was lost or counted twice.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from typing import Any, Final, TypeVar

import anyio
import pytest
from attrs import Factory, define, frozen
from msgspec.structs import replace

from atomic_actors.base._lifecycle import State
from atomic_actors.journal._protocol import (
    Append,
    Appended,
    Audit,
    Audited,
    Claimed,
    ClaimPartition,
    Dispatch,
    EntityStatus,
    Expire,
    Expired,
    Finish,
    Finished,
    Inspect,
    Interrupt,
    Journal,
    JournalSettings,
    Offer,
    OutcomeRead,
    Parked,
    Purged,
    ReadOutcome,
    Rejected,
    RelayAck,
    Relayed,
    RelayIn,
    Renewed,
    Replay,
    Replayed,
    Result,
    Settled,
    Stale,
    Step,
    Sweep,
    Swept,
    Take,
    Taken,
    Verdict,
    Withdraw,
    WithdrawAnswer,
    pack_body,
    split_outcome,
)

__all__ = ("MODES", "OpenProbe", "Probe", "Subject", "check_counters", "expect", "same_answer", "sweep")

#: How every step of a scenario is sent. `once`: plainly. `twice`: two times in one call. `lost`: two
#: times, and the first answer is dropped. `late`: once, and steps that were answered before come again
#: behind it, as a network may deliver them.
MODES: Final = ("once", "twice", "lost", "late")

#: The longest time that is waited for in earnest where the journal's clock cannot be moved.
REAL_WAIT_LIMIT_MS: Final = 500

#: Steps that have to be harmless however late they are delivered again.
_LATE_KINDS: Final = (Append, Finish, Interrupt, Expire, Withdraw, Replay, RelayIn, RelayAck)
_LATE_MEMORY: Final = 3
#: Answers after which the same step may rightly do something later.
_NOT_YET: Final = (Expired(False), WithdrawAnswer("unknown"), WithdrawAnswer("enqueued"), Settled("gone"))

#: A policy in which a message named after a stamp has that stamp.
POLICY: Final = (
    "".join(
        f"\n{nature}{policy}{then}{limit}={nature}{policy}{then}{limit}"
        for nature in "te"
        for policy in "drm"
        for then in "cp"
        for limit in (0, 1, 3)
    )
    + "\n*=edc3\n"
)

T = TypeVar("T")


@frozen
class Subject:
    """A journal to put to the test.

    Args:
        open_journal: makes a journal of these settings; entering what it returns opens it. Settings of
            another namespace must see nothing of this one.
        pass_time_ms: moves the journal's clock on by so many milliseconds, where it can be moved. Without
            it, short times are waited for, and tests of long times are skipped.
    """

    open_journal: Callable[[JournalSettings], AbstractAsyncContextManager[Journal]]
    pass_time_ms: Callable[[int], None] | None = None


OpenProbe = Callable[..., AbstractAsyncContextManager["Probe"]]


def expect(kind: type[T], result: object) -> T:
    """`result`, which must be of this kind."""
    assert isinstance(result, kind), f"expected {kind.__name__}, got {result!r}"
    return result


def check_counters(audited: Audited) -> None:
    """Check that every accepted message is in exactly one state, and that the indexes agree."""
    counts = audited.counts
    states = {state.value: counts[state.value] for state in State if state is not State.ABSENT}
    assert counts["accepted"] == sum(states.values()), f"the books do not add up: {counts}"
    assert all(number >= 0 for number in counts.values()), f"a negative count: {counts}"
    assert counts["refused"] <= counts["completed"], f"more refused than completed: {counts}"
    assert audited.indexed_dispatched == counts["dispatched"], f"lost from the index: {audited}"
    assert audited.indexed_ready <= counts["enqueued"], f"ready without a message: {audited}"


def same_answer(first: Result, second: Result) -> bool:
    """Whether the answer to a step's second sending says the same as the first one did.

    What may differ is what says that it is the second one, and what steps do that are not an operation on a
    message (each renewal counts).
    """
    if isinstance(first, Appended):
        return replace(first, duplicate=True) == second
    if isinstance(first, Expired):
        return isinstance(second, Expired) and first.expired == second.expired
    if isinstance(first, Relayed):
        return isinstance(second, Relayed) and first.last == second.last
    if isinstance(first, Replayed):
        return isinstance(second, Replayed) and first.uid == second.uid
    if isinstance(first, Parked | Purged | Renewed) or (isinstance(first, Taken) and first.offer.more):
        return type(first) is type(second)
    if isinstance(first, Audited) and isinstance(second, Audited):
        return replace(first, commit=second.commit) == second
    return first == second


@define(eq=False, kw_only=True)
class Probe:
    """Sends steps to one journal.

    Attributes:
        now_ms: the store's time at the last answer.
    """

    journal: Journal
    mode: str
    subject: Subject
    now_ms: int = 0
    _numbers: count[int] = Factory(lambda: count(1))
    _counters_by_partition: dict[int, Audited] = Factory(dict[int, Audited])
    _recent: deque[Step] = Factory(lambda: deque[Step](maxlen=_LATE_MEMORY))

    # Sending.

    async def send(self, step: Step) -> Result:
        """Send a step as the mode says, check that the books balance, and return the answer."""
        if self.mode == "once":
            return await self.once(step)
        if self.mode == "late":
            return await self._send_late(step)
        if self.mode == "twice":
            first, second, books = await self._execute(step, step, Audit(step.partition))
        else:
            (first,) = await self._execute(step)
            second, books = await self._execute(step, Audit(step.partition))
        assert same_answer(first, second), f"{step!r}\nfirst  {first!r}\nsecond {second!r}"
        self._check_progress(step.partition, books)
        return first if self.mode == "twice" else second

    async def once(self, step: Step) -> Result:
        """Send a step exactly once, whatever the mode, and check that the books balance."""
        answer, books = await self._execute(step, Audit(step.partition))
        self._check_progress(step.partition, books)
        return answer

    async def batch(self, *steps: Step) -> list[Result]:
        """Send steps once, in one call."""
        *answers, books = await self._execute(*steps, Audit(steps[-1].partition))
        self._check_progress(steps[-1].partition, books)
        return answers

    async def _send_late(self, step: Step) -> Result:
        late = [earlier for earlier in self._recent if earlier.partition == step.partition]
        answer, *_, books = await self._execute(step, *late, Audit(step.partition))
        self._check_progress(step.partition, books)
        said_no = isinstance(answer, Stale | Rejected) or answer in _NOT_YET
        if isinstance(step, _LATE_KINDS) and not said_no:
            self._recent.append(step)
        return answer

    async def _execute(self, *steps: Step) -> list[Result]:
        answer = await self.journal.execute(steps)
        assert len(answer.results) == len(steps), "one result a step"
        assert answer.now_ms >= self.now_ms, "the store's time went back"
        self.now_ms = answer.now_ms
        return list(answer.results)

    def _check_progress(self, partition: int, result: Result) -> None:
        audited = expect(Audited, result)
        check_counters(audited)
        before = self._counters_by_partition.get(partition)
        if before is not None:
            for name, number in before.counts.items():
                if name not in (State.ENQUEUED.value, State.DISPATCHED.value):
                    assert audited.counts[name] >= number, f"{name} went down: {before} then {audited}"
            assert audited.commit >= before.commit
        self._counters_by_partition[partition] = audited

    # Time.

    async def pass_ms(self, duration_ms: int) -> None:
        """Let time pass on the journal's clock; skips the test where that would take too long."""
        until_ms = (await self.journal.execute([Audit(0)])).now_ms + duration_ms
        if self.subject.pass_time_ms is not None:
            self.subject.pass_time_ms(duration_ms)
        elif duration_ms > REAL_WAIT_LIMIT_MS:
            pytest.skip(f"this journal's clock cannot be moved, and the test needs {duration_ms} ms")
        while True:
            self.now_ms = (await self.journal.execute([Audit(0)])).now_ms
            if self.now_ms >= until_ms:
                return
            await anyio.sleep((until_ms - self.now_ms) / 1000)

    # Making and sending what scenarios need most.

    def new_uid(self, *, age_ms: int = 0) -> str:
        """A unique id that was born `age_ms` ago."""
        return f"{self.now_ms - age_ms:012x}{next(self._numbers):020x}"

    def body(
        self, name: str = "edc3", *, deadline_ms: int = 0, waited_for: bool = False, key: str = ""
    ) -> bytes:
        """A stored message; by default an effectful one without a deadline."""
        return pack_body(
            name=name,
            deadline_ms=deadline_ms,
            waited_for=waited_for,
            key=key,
            envelope=b"\x00\xff\n\r\n %d" % next(self._numbers),
        )

    def message(self, entity: str = "account/a", name: str = "edc3", **fields: Any) -> Append:
        """An `Append` step of a new message.

        Args:
            entity: whose message it is.
            name: its wire name; by `POLICY`, also its stamp.
            **fields: of the body (`deadline_ms`, `waited_for`) or of the step.
        """
        head = {field: fields.pop(field) for field in ("deadline_ms", "waited_for") if field in fields}
        fields = {"partition": 0, "policy": POLICY, "uid": self.new_uid(), **fields}
        return Append(entity=entity, body=self.body(name, key=fields.get("key", ""), **head), **fields)

    async def own(self, claim: str = "claim-1", partition: int = 0, **expected: Any) -> Claimed:
        """Become the partition's owner."""
        return expect(
            Claimed,
            await self.send(ClaimPartition(partition=partition, claim=claim, node=b"node", **expected)),
        )

    async def take_over(self, claim: str, partition: int = 0) -> Claimed:
        """Become the owner in the place of the present one."""
        held = await self.once(ClaimPartition(partition=partition, claim=claim, node=b"node"))
        if isinstance(held, Claimed):
            return held
        expected: Any = held
        return await self.own(
            claim, partition, expected_claim=expected.claim, expected_renewals=expected.renewals
        )

    async def accept(self, step: Append) -> Offer:
        """Send a message that must be accepted; returns what the entity has to do next."""
        accepted = expect(Appended, await self.send(step))
        assert accepted.uid == step.uid
        return accepted.offer

    async def take(self, entity: str = "account/a", claim: str = "claim-1", **fields: Any) -> Offer:
        """Take; returns the offer."""
        fields = {"policy": POLICY, "partition": 0, **fields}
        return expect(Taken, await self.send(Take(entity=entity, claim=claim, **fields))).offer

    async def dispatch(self, entity: str = "account/a", claim: str = "claim-1", **fields: Any) -> Dispatch:
        """Take; there must be a dispatch."""
        return expect(Dispatch, (await self.take(entity, claim, **fields)).dispatch)

    def finish_step(
        self, dispatch: Dispatch, *events: str, entity: str = "account/a", **fields: Any
    ) -> Finish:
        """A `Finish` step that ends the dispatch's messages with these events, the last one repeated."""
        delay_ms = fields.pop("delay_ms", 0)
        verdicts = tuple(
            Verdict(
                uid=message.uid,
                event=events[min(position, len(events) - 1)],
                reply=b"reply\n\x00",
                error=b"error\n\xff",
                delay_ms=delay_ms,
            )
            for position, message in enumerate(dispatch.messages)
        )
        fields = {
            "partition": 0,
            "claim": "claim-1",
            "turn": dispatch.turn,
            "state": None,
            "expected_version": dispatch.version,
            "policy": POLICY,
            "verdicts": verdicts,
            **fields,
        }
        return Finish(entity=entity, **fields)

    async def finish(self, dispatch: Dispatch, *events: str, **fields: Any) -> Finished:
        """End a dispatch."""
        return expect(Finished, await self.send(self.finish_step(dispatch, *events, **fields)))

    async def taken(self, step: Append, claim: str = "claim-1") -> Dispatch:
        """Send a message to an idle entity as its owner: it must be dispatched at once."""
        return expect(Dispatch, (await self.accept(replace(step, claim=claim))).dispatch)

    async def state_of(self, step: Append) -> str:
        """Where a message is: `absent`, `enqueued`, `dispatched`, or the state word of its outcome."""
        read = expect(OutcomeRead, await self.once(ReadOutcome(step.partition, step.entity, step.uid)))
        if read.state == "finished":
            assert read.outcome is not None
            return split_outcome(read.outcome)[0]
        return "absent" if read.state == "unknown" else read.state

    async def inspect(self, entity: str = "account/a", partition: int = 0) -> EntityStatus:
        """The entity as the store sees it."""
        return expect(EntityStatus, await self.once(Inspect(partition, entity)))

    async def audit(self, partition: int = 0) -> Audited:
        """The partition's books."""
        return expect(Audited, await self.once(Audit(partition)))


def probe_opener(subject: Subject, mode: str) -> OpenProbe:
    """What the suite's tests open their journal with: settings as keywords, a namespace of its own."""

    @asynccontextmanager
    async def open_probe(**settings: Any) -> AsyncGenerator[Probe]:
        settings = {"namespace": f"conformance-{secrets.token_hex(8)}", "partitions": 4, **settings}
        async with subject.open_journal(JournalSettings(**settings)) as journal:
            probe = Probe(journal=journal, mode=mode, subject=subject)
            await probe.audit()
            yield probe

    return open_probe


async def sweep(
    probe: Probe,
    claim: str = "claim-1",
    *,
    limit: int = 100,
    ahead_ms: int = 0,
    own_from: str | None = None,
) -> Swept:
    """What there is to do in partition 0."""
    return expect(
        Swept,
        await probe.send(Sweep(partition=0, claim=claim, limit=limit, ahead_ms=ahead_ms, own_from=own_from)),
    )
