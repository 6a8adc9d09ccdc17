"""Where a message goes, and how its answer comes back.

A sender's message always goes to the store first. If this node owns the entity's partition, the same
step takes it and the activation gets it at once; otherwise the store rings the partition's doorbell, the
owner takes it, and the answer comes back over the asker's reply channel or, if that is lost, by a look
at the store. Either way the answer ends in the same place: the *pending ask* that waits for the
message's unique id.

Nothing here starts a task or a timer for a message. `tick` is called by the node's sweeper: it ends asks
whose time is up and looks after those whose answer is late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, Protocol

import anyio
from attrs import define, field

from atomic_actors.base._errors import (
    AcceptanceUnknown,
    AtomicActorsError,
    OutcomeUnknown,
    StoreUnavailable,
    SystemFailed,
    error_from_code,
)
from atomic_actors.base._oneshot import Cell
from atomic_actors.base._random_ids import _RandomPool
from atomic_actors.base._telemetry import logger
from atomic_actors.base._timer_wheel import TimerWheel
from atomic_actors.codec._envelope import make_unique
from atomic_actors.contracts._outcomes import (
    RefusalDecoder,
    Waiting,
    read_outcome,
    refusal_of_append,
    silence_error,
    unknown_error,
)
from atomic_actors.contracts._waiting import (
    POLL_FIRST_REMOTE_S,
    POLL_FIRST_S,
    POLL_LATER_S,
    POLL_MAX_S,
    WITHDRAW_LIMIT_S,
)
from atomic_actors.journal._protocol import (
    NOTHING,
    Append,
    Appended,
    JournalUnavailable,
    Offer,
    OutcomeRead,
    ReadOutcome,
    Rejected,
    Result,
    Withdraw,
    WithdrawAnswer,
    split_outcome,
)
from atomic_actors.journal.commit._commit_queue import CommitQueue
from atomic_actors.journal.commit._store_clock import StoreClock

__all__ = ("Admission", "Pending", "Router")

#: Why no answer can come while the system lives.
WAY_CLOSED: Final = "the way to its service was closed"

Decode = Callable[[bytes], Any]


class Admission(Protocol):
    """The owner's side of an append: what a step needs to take the message at once."""

    claim: str
    policy: str

    @property
    def version(self) -> int:
        """The version of the state in the owner's memory; -1 for none."""
        ...

    def offered(self, offer: Offer) -> None:
        """The append is answered; called exactly once for each admission."""
        ...


class Remote(Protocol):
    """Pushes answers to other nodes; a lost push costs the asker a poll."""

    @property
    def is_heard(self) -> bool:
        """Whether what others push to this node arrives now."""
        ...

    def packed(self, node_id: str, entity: str, unique: str, outcome: bytes) -> tuple[bytes, bytes] | None:
        """An answer for a node as channel and payload, for the commit to publish; None where it may not."""
        ...

    def push(self, node_id: str, frame: Sequence[Any]) -> None:
        """Queue a frame for a node."""
        ...


class Pending:
    """Somebody who waits for a message: an ask or a result for its outcome, a tell for its acceptance.

    Invariant: `cell` is set exactly once; `done` says so. What it is set to is an outcome (bytes), an
    `Appended`, or the exception to raise.
    """

    __slots__ = (
        "accepted",
        "admission",
        "cell",
        "decode",
        "done",
        "entity",
        "is_joined",
        "journal",
        "key",
        "on_accepted",
        "partition",
        "poll_delay_s",
        "router",
        "unique",
        "waiting",
    )

    def __init__(
        self,
        router: Router,
        waiting: Waiting,
        partition: int,
        entity: str,
        unique: str,
        decode: Decode,
        admission: Admission | None,
        journal: CommitQueue | None = None,
    ) -> None:
        self.router = router
        #: Where its message lives: the node's own journal, or that of another service.
        self.journal = router.journal if journal is None else journal
        self.waiting: Waiting = waiting
        self.partition = partition
        self.entity = entity
        self.unique = unique
        self.decode = decode
        self.admission = admission
        self.cell: Cell[Any] = router.new_cell()
        self.done = False
        self.accepted = False
        #: The idempotency key that its append carries, or "".
        self.key = ""
        #: Somebody else relies on its message: cancelling the ask must not withdraw that.
        self.is_joined = False
        #: Called once if the message was accepted now; set only where somebody listens.
        self.on_accepted: Callable[[], None] | None = None
        self.poll_delay_s = router.first_poll_s(pending_here=admission is not None)

    @property
    def full_message_id(self) -> str:
        """`kind/id/<uuid7>`."""
        return f"{self.entity}/{self.unique}"

    def resolve(self, value: object) -> None:
        """Hand over what is known; later answers are dropped."""
        if not self.done:
            self.done = True
            if self.key:
                self.router.forget_key(self)
            self.cell.set(value)

    def left(self, why: str) -> AtomicActorsError:
        """What to tell whoever waits where no answer can come any more; the message may still run."""
        message_id = self.full_message_id
        text = f"{why} before an answer to {message_id} came; ask again with result(message_id)"
        unknown = AcceptanceUnknown if self.waiting == "tell" else OutcomeUnknown
        return unknown(text, message_id=message_id)

    def on_appended(self, result: Result | JournalUnavailable) -> None:
        """The group commit's callback for the append."""
        admission = self.admission
        if type(result) is Appended:
            self.accepted = True
            if self.on_accepted is not None and not result.duplicate:
                self.on_accepted()
            if admission is not None:
                admission.offered(result.offer)
            if self.waiting == "tell":
                if result.unique != self.unique:
                    self.router.keep(result.unique)
                self.resolve(result)
            elif result.duplicate:
                self.router.attach_to_duplicate(self, result)
            return
        if admission is not None:
            admission.offered(NOTHING)
        if isinstance(result, JournalUnavailable):
            if not result.sent:
                self.resolve(StoreUnavailable(f"nothing was sent: {result}", message_id=self.full_message_id))
            elif self.journal.is_left:
                self.resolve(self.left(WAY_CLOSED))
            return
        self.resolve(refusal_of_append(result, self.entity, self.full_message_id))


@define(eq=False)
class Router:
    """Sends messages and hands answers to those who wait.

    Args:
        journal: where messages go, unless they are for another service.
        node_id: this node's name on reply channels.
        new_cell: the backend's one-shot cell.
        clock: the backend's clock, in seconds.
        store_clock: the store's time, for message ids.
        decode_refusal: makes the asker's exception of a stored refusal.
        remote: pushes answers to other nodes, where there can be any.
    """

    journal: CommitQueue
    node_id: str
    new_cell: Callable[[], Cell[Any]]
    #: Seconds, the same clock as `anyio.current_time()`.
    clock: Callable[[], float]
    store_clock: StoreClock
    decode_refusal: RefusalDecoder
    remote: Remote | None = None
    _pending: dict[str, list[Pending]] = field(factory=dict[str, list[Pending]], init=False)
    #: Those who sent a key and have no answer yet, by entity and key: they may share one message.
    _by_key: dict[tuple[str, str], list[Pending]] = field(
        factory=dict[tuple[str, str], list[Pending]], init=False
    )
    #: By when their time ends, and by when to look them up.
    _ends: TimerWheel[Pending] = field(factory=TimerWheel[Pending], init=False)
    _polls: TimerWheel[Pending] = field(factory=TimerWheel[Pending], init=False)
    _random: _RandomPool = field(factory=_RandomPool, init=False)

    def first_poll_s(self, *, pending_here: bool) -> float:
        """How soon the store is first asked for an outcome: soon where its push could not arrive."""
        if pending_here or (self.remote is not None and self.remote.is_heard):
            return POLL_FIRST_S
        return min(POLL_FIRST_REMOTE_S + POLL_LATER_S * len(self._pending), POLL_FIRST_S)

    def new_unique(self) -> str:
        """A new unique id, born now on the store's clock."""
        return make_unique(self.store_clock.now_ms(), self._random.take_bits())

    # Sending.

    def send(self, pending: Pending, step: Append, timeout_s: float) -> None:
        """Queue an append on behalf of `pending`.

        Raises:
            StoreUnavailable: nothing was sent.
        """
        if pending.waiting != "tell":
            self._register(pending)
            self._poll_later(pending)
        if step.key:
            pending.key = step.key
            self._by_key.setdefault((pending.entity, step.key), []).append(pending)
        self.end_at(pending, timeout_s)
        try:
            pending.journal.submit(step, pending.on_appended)
        except JournalUnavailable as error:
            pending.on_appended(error)

    def attach(self, pending: Pending, timeout_s: float) -> None:
        """Wait for the outcome of a message that was sent before; looks it up at once."""
        self._register(pending)
        self.end_at(pending, timeout_s)
        pending.poll_delay_s = POLL_FIRST_REMOTE_S
        self._look_up(pending)

    async def wait(
        self, pending: Pending, on_cancel: Literal["withdraw", "detach"], key: str, *, in_turn: bool = False
    ) -> bytes:
        """Wait for a pending ask's outcome bytes.

        Args:
            pending: the ask.
            on_cancel: what becomes of its message if this is cancelled.
            key: its idempotency key.
            in_turn: a turn waits. Cancelled, it has to end at once, since its lease may be about to: the store is
                not waited for.

        Raises:
            AtomicActorsError: what the outcome, or the lack of one, says.
        """
        try:
            value = await pending.cell
        except BaseException:
            pending.done = True
            self._unregister(pending)
            if pending.key:
                self.forget_key(pending)
            if on_cancel == "detach":
                self.keep(pending.unique)
            elif pending.waiting != "ask" or self._is_shared(pending):
                pass
            elif in_turn:
                self._withdraw_soon(
                    pending.journal, Withdraw(pending.partition, pending.entity, pending.unique, key)
                )
            else:
                await self._withdraw_cancelled(pending, key)
            raise
        self._unregister(pending)
        if isinstance(value, BaseException):
            raise value
        assert isinstance(value, bytes)
        return value

    def value_of(self, pending: Pending, outcome: bytes) -> Any:
        """The reply in a completed outcome; otherwise the exception that the outcome stands for.

        Raises:
            AtomicActorsError: the message was refused, failed, was interrupted, withdrawn or expired.
        """
        return read_outcome(outcome, pending.full_message_id, pending.decode, self.decode_refusal)

    async def _withdraw_cancelled(self, pending: Pending, key: str) -> None:
        """Withdraw the message of an ask that is cancelled; that it cannot be must not hide the cancellation."""
        with anyio.move_on_after(WITHDRAW_LIMIT_S, shield=True):
            try:
                await self.withdraw(pending.journal, pending.partition, pending.entity, pending.unique, key)
            except AtomicActorsError as error:
                logger.warning("%s could not be withdrawn: %s", pending.full_message_id, error)

    def _withdraw_soon(self, journal: CommitQueue, step: Withdraw) -> None:
        def on_result(answer: Result | JournalUnavailable) -> None:
            if not isinstance(answer, WithdrawAnswer):
                logger.info("%s/%s could not be withdrawn: %s", step.entity, step.unique, answer)
            elif answer.state == "needs_key":
                self._withdraw_soon(journal, Withdraw(step.partition, step.entity, step.unique, answer.key))
            elif answer.state == "withdrawn":
                self.answered(step.entity, step.unique, b"withdrawn\n")

        try:
            journal.submit(step, on_result)
        except JournalUnavailable as error:
            on_result(error)

    async def withdraw(
        self, journal: CommitQueue, partition: int, entity: str, unique: str, key: str
    ) -> WithdrawAnswer | None:
        """Withdraw a message; None where the store gave no answer.

        Raises:
            AtomicActorsError: the store cannot read what it has of the message.
        """
        try:
            answer = await journal.request(Withdraw(partition, entity, unique, key))
            if isinstance(answer, WithdrawAnswer) and answer.state == "needs_key":
                answer = await journal.request(Withdraw(partition, entity, unique, answer.key))
        except JournalUnavailable as error:
            logger.info("%s/%s could not be withdrawn: %s", entity, unique, error)
            return None
        if isinstance(answer, Rejected):
            raise error_from_code(answer.code, answer.text, message_id=f"{entity}/{unique}")
        if not isinstance(answer, WithdrawAnswer):
            raise SystemFailed(f"the journal answered a withdrawal with {answer!r}")
        if answer.state == "withdrawn":
            self.answered(entity, unique, b"withdrawn\n")
        return answer

    # Answers.

    def answered(self, entity: str, unique: str, outcome: bytes) -> bool:
        """Hand an outcome to everybody here who waits for it; returns whether anybody did."""
        waiting = self._pending.get(unique)
        if waiting is None:
            return False
        # A message id that somebody made up may carry the unique part of another entity's message.
        meant = [pending for pending in waiting if pending.entity == entity]
        for pending in meant:
            pending.resolve(outcome)
        return bool(meant)

    def pushed(self, entity: object, unique: object, outcome: object, *_: object) -> None:
        """A frame `reply`: hand an outcome that another node tells of to whoever waits for it.

        Raises:
            ValueError: it is none. Whoever waits asks the store, which has the true one.
        """
        if not (isinstance(entity, str) and isinstance(unique, str) and isinstance(outcome, bytes)):
            raise ValueError("not a pushed outcome")
        split_outcome(outcome)
        self.answered(entity, unique, outcome)

    def reply(self, sender: str, entity: str, unique: str, outcome: bytes) -> None:
        """Tell a message's sender how it ended: here, or over the sender's reply channel."""
        if self.answered(entity, unique, outcome) or not sender or sender == self.node_id:
            return
        if self.remote is not None:
            self.remote.push(sender, ("reply", entity, unique, outcome))

    def packed_reply(
        self, sender: str, entity: str, unique: str, word: bytes, reply: bytes
    ) -> tuple[bytes, bytes] | None:
        """What the commit is to publish, so that a sender on another node hears of it; None for nothing."""
        if not sender or sender == self.node_id or self.remote is None:
            return None
        return self.remote.packed(sender, entity, unique, word + reply)

    def attach_to_duplicate(self, pending: Pending, result: Appended) -> None:
        """The message was accepted before: wait for the first one's outcome instead."""
        if result.unique != pending.unique:
            self._unregister(pending)
            pending.unique = result.unique
            # Where an ask of this node sent it, whoever cancels last withdraws it. Otherwise nobody here may.
            others = self._pending.get(result.unique, ())
            pending.is_joined = all(other.is_joined or other.waiting != "ask" for other in others)
            self._register(pending)
        if result.outcome is not None:
            self.answered(pending.entity, pending.unique, result.outcome)
        else:
            pending.poll_delay_s = POLL_FIRST_REMOTE_S  # its answer may be pushed to whoever sent it first
            self._look_up(pending)

    def _register(self, pending: Pending) -> None:
        self._pending.setdefault(pending.unique, []).append(pending)

    def _unregister(self, pending: Pending) -> None:
        waiting = self._pending.get(pending.unique)
        if waiting is not None and pending in waiting:
            waiting.remove(pending)
            if not waiting:
                del self._pending[pending.unique]

    def forget_key(self, pending: Pending) -> None:
        """`pending` has its answer, or does not wait for one any more."""
        place = (pending.entity, pending.key)
        waiting = self._by_key.get(place)
        if waiting is not None and pending in waiting:
            waiting.remove(pending)
            if not waiting:
                del self._by_key[place]

    def keep(self, unique: str) -> None:
        """Somebody who does not wait relies on a message: no cancelled ask here may withdraw it any more."""
        for pending in self._pending.get(unique, ()):
            pending.is_joined = True

    def _is_shared(self, pending: Pending) -> bool:
        """Whether a cancelled ask leaves its message to others.

        Those are in view once their append is answered; one that is still under way, with the same key,
        may turn out to be for this message.
        """
        if pending.is_joined or (pending.key and (pending.entity, pending.key) in self._by_key):
            return True
        return any(other.entity == pending.entity for other in self._pending.get(pending.unique, ()))

    # What the sweeper does for those who wait.

    def end_at(self, pending: Pending, timeout_s: float) -> None:
        """Resolve `pending` as timed out after `timeout_s` (0: never)."""
        if timeout_s > 0:
            self._ends.add(self.clock() + timeout_s, pending)

    def _poll_later(self, pending: Pending) -> None:
        self._polls.add(self.clock() + pending.poll_delay_s, pending)

    def tick(self, now_s: float) -> None:
        """End asks whose time is up, and look up answers that are late."""
        for pending in self._ends.due(now_s):
            if not pending.done:
                pending.resolve(silence_error(pending.waiting, pending.full_message_id))
        for pending in self._polls.due(now_s):
            if not pending.done:
                self._look_up(pending)

    def _look_up(self, pending: Pending) -> None:
        """Ask the store for the outcome now, and again later, ever more rarely."""
        if pending.journal.is_left:
            pending.resolve(pending.left(WAY_CLOSED))
            return
        pending.poll_delay_s = min(pending.poll_delay_s * 2, POLL_MAX_S)
        self._poll_later(pending)
        unique = pending.unique
        # "Unknown" counts only if the message was there when the question was asked: a re-sent append may
        # overtake it.
        was_sent_before = pending.accepted or pending.waiting == "result"

        def on_result(result: Result | JournalUnavailable) -> None:
            # The key was used before, and it waits for another message since: then this says nothing.
            if pending.done or pending.unique != unique or not isinstance(result, OutcomeRead):
                return
            if result.state == "finished" and result.outcome is not None:
                self.answered(pending.entity, pending.unique, result.outcome)
            elif result.state == "unknown" and was_sent_before:
                now_ms, ttl_ms = self.store_clock.now_ms(), pending.journal.settings.result_ttl_ms
                pending.resolve(
                    unknown_error(pending.full_message_id, now_ms, ttl_ms, accepted=pending.accepted)
                )

        try:
            pending.journal.submit(ReadOutcome(pending.partition, pending.entity, pending.unique), on_result)
        except JournalUnavailable as error:
            logger.debug("cannot look %s up: %s", pending.full_message_id, error)

    def abandon_all(self) -> None:
        """Resolve everybody who still waits, because the system is left: their messages may still run."""
        everybody = [pending for waiting in self._pending.values() for pending in waiting]
        everybody += self._ends
        for pending in everybody:
            if not pending.done:
                pending.resolve(pending.left("the actor system was left"))
        self._pending.clear()
        self._ends.clear()
