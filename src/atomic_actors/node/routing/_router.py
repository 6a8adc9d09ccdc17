"""Where a message goes, and how its answer comes back.

A sender's message always goes to the store first. If this node owns the entity's partition, the same
step takes it and the activation gets it at once; otherwise the store rings the partition's doorbell, the
owner takes it, and the answer comes back over the asker's reply channel or, if that is lost, by a look
at the store. Either way the answer ends in the same place: the *pending ask* that waits for the
message's unique id. The router makes it, knows it and lets go of it; no other code holds one.

Nothing here starts a task or a timer for a message. `tick` is called by the node's sweeper: it ends asks
whose time is up and looks after those whose answer is late.
"""

from __future__ import annotations

from math import inf
from typing import Any, Final, Literal, Protocol

from attrs import define, field

from atomic_actors.actors._kinds import BoundKind
from atomic_actors.base._errors import (
    AcceptanceUnknown,
    AtomicActorsError,
    OutcomeUnknown,
    StoreUnavailable,
)
from atomic_actors.base._oneshot import Backend, OneShot
from atomic_actors.base._telemetry import LifecycleEvent, Listeners, logger
from atomic_actors.base._timer_wheel import TimerWheel
from atomic_actors.codec._codec import Coder
from atomic_actors.codec._envelope import Headers, digest_of, encode_envelope
from atomic_actors.codec._frames import ReplyFrame
from atomic_actors.codec._uids import UidMaker
from atomic_actors.contracts._outcomes import (
    Refusals,
    Waiting,
    missing_message_error,
    read_outcome,
    refusal_of_append,
    timeout_error,
)
from atomic_actors.contracts._waiting import (
    POLL_FIRST_REMOTE_S,
    POLL_FIRST_S,
    POLL_LATER_S,
    POLL_MAX_S,
)
from atomic_actors.journal._protocol import (
    NOTHING,
    Append,
    Appended,
    JournalUnavailable,
    Offer,
    OutcomeRead,
    ReadOutcome,
    Result,
    Withdraw,
    pack_body,
    split_outcome,
)
from atomic_actors.journal.commit._commit_queue import CommitQueue
from atomic_actors.journal.commit._store_clock import StoreClock
from atomic_actors.node.routing._destinations import CheckedCall
from atomic_actors.node.routing._node_messenger import NodeMessenger
from atomic_actors.node.routing._withdrawals import withdraw_cancelled, withdraw_soon

__all__ = ("LocalTake", "Pending", "Router", "SentMessage", "append_of")

#: Why no answer can come while the system lives.
WAY_CLOSED: Final = "the connection to its service was closed"


class _Claimed(Protocol):
    @property
    def claim(self) -> str: ...


class _Versioned(Protocol):
    @property
    def version(self) -> int: ...


class LocalTake(Protocol):
    """The owner's side of an append: what a step needs to take the message at once, and who gets it."""

    @property
    def partition(self) -> _Claimed:
        """With the claim under which the message is taken."""
        ...

    @property
    def kind(self) -> BoundKind:
        """Says by which rules."""
        ...

    @property
    def state(self) -> _Versioned:
        """With the version of what the owner has in memory; -1 for nothing."""
        ...

    def offered(self, offer: Offer) -> None:
        """The append is answered; called exactly once for each admission."""
        ...


@define(eq=False, slots=True, kw_only=True)
class SentMessage:
    """A message that was sent before: where it is, and how its reply is read."""

    entity: str
    partition: int
    journal: CommitQueue
    reply_coder: Coder


class Pending:
    """A waiter for a message: an ask or a result for its outcome, a tell for its acceptance.

    Invariant: `oneshot` is set exactly once; then `done` is true. What it is set to is an outcome (bytes), an
    `Appended`, or the exception to raise.
    """

    __slots__ = (
        "accepted",
        "call",
        "done",
        "end_s",
        "is_joined",
        "key",
        "local_take",
        "oneshot",
        "poll_delay_s",
        "router",
        "uid",
        "waiting",
        "watched_until_s",
    )

    def __init__(
        self,
        router: Router,
        waiting: Waiting,
        call: CheckedCall | SentMessage,
        *,
        uid: str,
        oneshot: OneShot[Any],
        local_take: LocalTake | None = None,
        key: str = "",
    ) -> None:
        self.router = router
        self.waiting: Waiting = waiting
        self.call = call
        self.uid = uid
        self.oneshot = oneshot
        self.local_take = local_take
        #: The idempotency key that its append carries, or "".
        self.key = key
        self.done = False
        self.accepted = False
        #: Another caller relies on its message: cancelling the ask must not withdraw it.
        self.is_joined = False
        #: When its time is up.
        self.end_s = inf
        #: How long after the last look the store is asked for the outcome; never for an acceptance.
        self.poll_delay_s = inf
        #: When the sweeper looks at it; never while it does not.
        self.watched_until_s = inf

    @property
    def entity(self) -> str:
        """`kind/id`."""
        return self.call.entity

    @property
    def journal(self) -> CommitQueue:
        """Where its message lives: the node's own journal, or that of another service."""
        journal = self.call.journal
        assert journal is not None
        return journal

    @property
    def full_message_id(self) -> str:
        """`kind/id/<uuid7>`."""
        return f"{self.call.entity}/{self.uid}"

    def resolve(self, value: object) -> None:
        """Hand over what is known; later answers are dropped."""
        if not self.done:
            self.done = True
            if self.key:
                self.router.forget_key(self)
            self.oneshot.set(value)

    def release(self) -> None:
        """Drop what only a waiter needs, once the message is accepted and its waiter has what it waited for.

        The wheel keeps this until its time comes. With all that hangs on it, four objects of each message would
        live for half a second, and the garbage collector would walk over all of them.
        """
        if self.accepted and self.done:
            del self.call, self.oneshot, self.local_take

    def left(self, why: str) -> AtomicActorsError:
        """The error for a waiter where no answer can come any more; the message may still run."""
        message_id = self.full_message_id
        text = f"{why} before an answer to {message_id} came; ask again with result(message_id)"
        unknown = AcceptanceUnknown if self.waiting == "tell" else OutcomeUnknown
        return unknown(text, message_id=message_id)

    def on_appended(self, result: Result | JournalUnavailable) -> None:
        """The group commit's callback for the append."""
        local_take = self.local_take
        if type(result) is Appended:
            self.accepted = True
            if self.router.listeners.active and not result.duplicate:
                self.router.emit_accepted(self)
            if local_take is not None:
                local_take.offered(result.offer)
            if self.waiting == "tell":
                if result.uid != self.uid:
                    self.router.mark_shared(result.uid)
                self.resolve(result)
                self.release()
            elif result.duplicate:
                self.router.attach_to_duplicate(self, result)
            return
        if local_take is not None:
            local_take.offered(NOTHING)
        if isinstance(result, JournalUnavailable):
            if not result.sent:
                self.resolve(StoreUnavailable(f"nothing was sent: {result}", message_id=self.full_message_id))
            elif self.journal.is_left:
                self.resolve(self.left(WAY_CLOSED))
            return
        self.resolve(refusal_of_append(result, self.call.entity, self.full_message_id))


@define(eq=False, kw_only=True)
class Router:
    """Sends messages and hands answers to those who wait.

    Args:
        node_id: this node's name on reply channels.
        backend: makes one-shots.
        store_clock: the store's time, for message ids and deadlines.
        refusals: makes the asker's exception of a stored refusal.
        listeners: receive accepted messages.
        remote: pushes answers to other nodes, where there can be any.
    """

    node_id: str
    backend: Backend
    store_clock: StoreClock
    refusals: Refusals
    listeners: Listeners
    remote: NodeMessenger | None = None
    #: How many asks have an outcome, and how many tells a receipt.
    accepted: int = field(default=0, init=False)
    _pending: dict[str, list[Pending]] = field(factory=dict[str, list[Pending]], init=False)
    #: Those who sent a key and have no answer yet, by entity and key: they may share one message.
    _by_key: dict[tuple[str, str], list[Pending]] = field(
        factory=dict[tuple[str, str], list[Pending]], init=False
    )
    #: By when their time ends or their outcome is to be looked up, whichever is sooner.
    _wheel: TimerWheel[Pending] = field(factory=TimerWheel[Pending], init=False)
    _uids: UidMaker = field(factory=UidMaker, init=False)

    # Sending.

    async def ask(
        self,
        call: CheckedCall,
        local_take: LocalTake | None,
        headers: Headers,
        *,
        uid: str,
        key: str,
        timeout_s: float,
        on_cancel: Literal["withdraw", "detach"],
        in_turn: bool,
    ) -> Any:
        """Send a message and wait for its reply.

        Args:
            call: where it goes.
            local_take: the owner's side, if this node is to take it with its append.
            headers: what it carries beside its content.
            uid: its unique id; "" for a new one.
            key: its idempotency key, or "".
            timeout_s: how long to wait; 0 without end.
            on_cancel: what becomes of the message if this is cancelled.
            in_turn: a turn waits. Cancelled, it has to end at once, since its lease may be about to: the store is
                not waited for.

        Raises:
            AtomicActorsError: nothing was sent, or what the outcome, or the lack of one, says.
        """
        now_ms = self.store_clock.now_ms()
        uid = uid or self._uids.make(now_ms)
        body = pack_body(
            name=call.name,
            deadline_ms=now_ms + int(timeout_s * 1000) if timeout_s else 0,
            waited_for=True,
            key=key,
            envelope=encode_envelope(headers, call.payload),
        )
        oneshot = self.backend.new_oneshot()
        pending = Pending(self, "ask", call, uid=uid, oneshot=oneshot, local_take=local_take, key=key)
        pending.poll_delay_s = self._first_poll_s(pending_here=local_take is not None)
        self._register(pending)
        self._send(pending, append_of(call, pending, body), timeout_s)
        outcome = await self._wait(pending, on_cancel, in_turn=in_turn)
        self.accepted += 1
        message_id = pending.full_message_id
        pending.release()
        return read_outcome(outcome, message_id, call.reply_coder, self.refusals)

    def tell(
        self,
        call: CheckedCall,
        local_take: LocalTake | None,
        headers: Headers,
        *,
        key: str,
        expires_in_s: float | None,
        timeout_s: float,
    ) -> OneShot[Any]:
        """Send a message; what comes out of the one-shot goes to `receipt_of`.

        Args:
            call: where it goes.
            local_take: the owner's side, if this node is to take it with its append.
            headers: what it carries beside its content.
            key: its idempotency key, or "".
            expires_in_s: how long the message may wait for its turn; None without end.
            timeout_s: how long its acceptance may take.
        """
        now_ms = self.store_clock.now_ms()
        uid = self._uids.make(now_ms)
        body = pack_body(
            name=call.name,
            deadline_ms=now_ms + int(expires_in_s * 1000) if expires_in_s is not None else 0,
            waited_for=False,
            key=key,
            envelope=encode_envelope(headers, call.payload),
        )
        oneshot = self.backend.new_oneshot()
        pending = Pending(self, "tell", call, uid=uid, oneshot=oneshot, local_take=local_take, key=key)
        self._send(pending, append_of(call, pending, body), timeout_s)
        return oneshot

    def receipt_of(self, answer: object) -> str:
        """The unique id under which a message was accepted, from what the one-shot of `tell` brought.

        Raises:
            AtomicActorsError: it was not accepted.
        """
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, Appended)
        self.accepted += 1
        return answer.uid

    def _send(self, pending: Pending, step: Append, timeout_s: float) -> None:
        if step.key:
            self._by_key.setdefault((step.entity, step.key), []).append(pending)
        now_s = self.store_clock.clock()
        if timeout_s > 0:
            pending.end_s = now_s + timeout_s
        self._watch(pending, now_s)
        journal = pending.call.journal
        assert journal is not None
        try:
            journal.submit(step, pending.on_appended)
        except JournalUnavailable as error:
            pending.on_appended(error)

    def _first_poll_s(self, *, pending_here: bool) -> float:
        """How soon the store is first asked for an outcome: soon where its push could not arrive."""
        if pending_here or (self.remote is not None and self.remote.is_heard):
            return POLL_FIRST_S
        return min(POLL_FIRST_REMOTE_S + POLL_LATER_S * len(self._pending), POLL_FIRST_S)

    def emit_accepted(self, pending: Pending) -> None:
        """Report that a message was accepted."""
        call = pending.call
        assert isinstance(call, CheckedCall)
        self.listeners.emit(
            LifecycleEvent(
                event="accepted", message_id=pending.full_message_id, entity=call.ref, name=call.name
            )
        )

    async def result(self, sent: SentMessage, uid: str, timeout_s: float) -> Any:
        """Wait for the outcome of a message that was sent before; looks it up at once.

        Raises:
            AtomicActorsError: what the outcome, or the lack of one, says.
        """
        pending = Pending(self, "result", sent, uid=uid, oneshot=self.backend.new_oneshot())
        self._register(pending)
        if timeout_s > 0:
            pending.end_s = self.store_clock.clock() + timeout_s
        pending.poll_delay_s = POLL_FIRST_REMOTE_S
        self._look_up(pending)
        outcome = await self._wait(pending, "detach", in_turn=False)
        return read_outcome(outcome, pending.full_message_id, sent.reply_coder, self.refusals)

    async def _wait(
        self, pending: Pending, on_cancel: Literal["withdraw", "detach"], *, in_turn: bool
    ) -> bytes:
        """Wait for the outcome's bytes."""
        try:
            value = await pending.oneshot
        except BaseException:
            pending.done = True
            self._unregister(pending)
            if pending.key:
                self.forget_key(pending)
            if on_cancel == "detach":
                self.mark_shared(pending.uid)
            elif not self._is_shared(pending):
                call = pending.call
                step = Withdraw(call.partition, call.entity, pending.uid, pending.key)
                if in_turn:
                    withdraw_soon(self, pending.journal, step)
                else:
                    await withdraw_cancelled(self, pending.journal, step)
            raise
        self._unregister(pending)
        if isinstance(value, BaseException):
            raise value
        assert isinstance(value, bytes)
        return value

    # Answers.

    def answered(self, entity: str, uid: str, outcome: bytes) -> bool:
        """Hand an outcome to every waiter here; returns whether there was one."""
        waiting = self._pending.get(uid)
        if waiting is None:
            return False
        # A made-up message id may carry the unique part of another entity's message.
        meant = [pending for pending in waiting if pending.call.entity == entity]
        for pending in meant:
            pending.resolve(outcome)
        return bool(meant)

    def pushed(self, frame: ReplyFrame) -> None:
        """Hand the outcome that another node reports to its waiters.

        Raises:
            ValueError: it is not an outcome. Waiters ask the store, which has the true one.
        """
        split_outcome(frame.outcome)
        self.answered(frame.entity_key, frame.uid, frame.outcome)

    def reply(self, sender: str, entity: str, uid: str, outcome: bytes) -> None:
        """Tell a message's sender how it ended: here, or over the sender's reply channel."""
        if self.answered(entity, uid, outcome) or not sender or sender == self.node_id:
            return
        if self.remote is not None:
            self.remote.push(sender, ReplyFrame(entity, uid, outcome))

    def packed_reply(
        self, sender: str, entity: str, uid: str, word: bytes, reply: bytes
    ) -> tuple[bytes, bytes] | None:
        """What the commit is to publish, so that a sender on another node is notified; None for nothing."""
        if not sender or sender == self.node_id or self.remote is None:
            return None
        return self.remote.packed(sender, entity, uid, word + reply)

    def attach_to_duplicate(self, pending: Pending, result: Appended) -> None:
        """The message was accepted before: wait for the first one's outcome instead."""
        if result.uid != pending.uid:
            self._unregister(pending)
            pending.uid = result.uid
            # Where an ask of this node sent it, the last one to cancel withdraws it. Otherwise it is never withdrawn here.
            others = self._pending.get(result.uid, ())
            pending.is_joined = all(other.is_joined or other.waiting != "ask" for other in others)
            self._register(pending)
        if result.outcome is not None:
            self.answered(pending.entity, pending.uid, result.outcome)
        else:
            pending.poll_delay_s = POLL_FIRST_REMOTE_S  # its answer may be pushed to its first sender
            self._look_up(pending)

    def _register(self, pending: Pending) -> None:
        self._pending.setdefault(pending.uid, []).append(pending)

    def _unregister(self, pending: Pending) -> None:
        waiting = self._pending.get(pending.uid)
        if waiting is not None and pending in waiting:
            waiting.remove(pending)
            if not waiting:
                del self._pending[pending.uid]

    def forget_key(self, pending: Pending) -> None:
        """`pending` has its answer, or does not wait for one any more."""
        place = (pending.entity, pending.key)
        waiting = self._by_key.get(place)
        if waiting is not None and pending in waiting:
            waiting.remove(pending)
            if not waiting:
                del self._by_key[place]

    def mark_shared(self, uid: str) -> None:
        """A caller that does not wait relies on a message: no cancelled ask here may withdraw it any more."""
        for pending in self._pending.get(uid, ()):
            pending.is_joined = True

    def _is_shared(self, pending: Pending) -> bool:
        """Whether a cancelled ask leaves its message to others.

        Those are in view once their append is answered; one that is still under way, with the same key,
        may turn out to be for this message.
        """
        if pending.is_joined or (pending.key and (pending.entity, pending.key) in self._by_key):
            return True
        return any(other.entity == pending.entity for other in self._pending.get(pending.uid, ()))

    # What the sweeper does for those who wait.

    def _watch(self, pending: Pending, now_s: float) -> None:
        """Look at `pending` again when its time is up, or its outcome is to be looked up."""
        at_s = min(pending.end_s, now_s + pending.poll_delay_s)
        if at_s < pending.watched_until_s:
            pending.watched_until_s = at_s
            self._wheel.add(at_s, pending)

    def tick(self, now_s: float) -> None:
        """End asks whose time is up, and look up answers that are late."""
        for pending in self._wheel.due(now_s):
            if pending.done or pending.watched_until_s > now_s:
                continue  # or it has a place further ahead since
            pending.watched_until_s = inf
            if pending.end_s <= now_s:
                pending.resolve(timeout_error(pending.waiting, pending.full_message_id))
            else:
                self._look_up(pending)

    def _look_up(self, pending: Pending) -> None:
        """Ask the store for the outcome now, and again later, ever more rarely."""
        if pending.journal.is_left:
            pending.resolve(pending.left(WAY_CLOSED))
            return
        pending.poll_delay_s = min(pending.poll_delay_s * 2, POLL_MAX_S)
        self._watch(pending, self.store_clock.clock())
        partition, entity, uid = pending.call.partition, pending.call.entity, pending.uid
        # "Unknown" counts only if the message was there when the question was asked: a re-sent append may
        # overtake it.
        was_sent_before = pending.accepted or pending.waiting == "result"

        def on_result(result: Result | JournalUnavailable) -> None:
            # The key was used before, and it waits for another message since: then this says nothing.
            if pending.done or pending.uid != uid or not isinstance(result, OutcomeRead):
                return
            if result.state == "finished" and result.outcome is not None:
                self.answered(entity, uid, result.outcome)
            elif result.state == "unknown" and was_sent_before:
                now_ms, ttl_ms = self.store_clock.now_ms(), pending.journal.settings.result_ttl_ms
                pending.resolve(
                    missing_message_error(pending.full_message_id, now_ms, ttl_ms, accepted=pending.accepted)
                )

        try:
            pending.journal.submit(ReadOutcome(partition, entity, uid), on_result)
        except JournalUnavailable as error:
            logger.debug("cannot look %s up: %s", pending.full_message_id, error)

    def abandon_all(self) -> None:
        """Resolve all waiters because the system shuts down: their messages may still run."""
        remaining = [pending for waiting in self._pending.values() for pending in waiting]
        remaining += self._wheel
        for pending in remaining:
            if not pending.done:
                pending.resolve(pending.left("the actor system was shut down"))
        self._pending.clear()
        self._wheel.clear()


def append_of(call: CheckedCall, pending: Pending, body: bytes) -> Append:
    """The step that sends a message."""
    key, local_take = pending.key, pending.local_take
    return Append(
        partition=call.partition,
        entity=call.entity,
        uid=pending.uid,
        body=body,
        key=key,
        digest=digest_of(call.name, call.payload) if key else "",
        depth_limit=call.max_depth,
        claim=local_take.partition.claim if local_take is not None else "",
        policy=local_take.kind.policy if local_take is not None else "",
        held_version=local_take.state.version if local_take is not None else -1,
    )
