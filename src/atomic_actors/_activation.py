"""One entity, alive in memory: its state, and the task that runs its turns.

The store is the mailbox, so an activation's own mailbox is a single slot: the store never has more
than one dispatch out for an entity. The task loops over what the store offers:

    offer -> turn (handler, handler, ...) -> commit -> the answer brings the next offer

Most turns find their successor in the answer to their own commit, and a message for an idle entity is
taken by the very step that accepted it. No task, timer or cancel scope is made for a message: one
scope covers turn after turn and is replaced only after a turn was cut off by its deadline.

Who may end a turn, and what becomes of it:

* its deadline, or a child task that raised: the sweeper or the child cuts it; it failed;
* the partition's scope (lease about to end, shutdown): it is interrupted, and settled if the claim is
  still ours;
* the system's own errors: the same, and the system says so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, Protocol

import anyio
import msgspec
from anyio.abc import TaskGroup
from attrs import define, field

from atomic_actors._cells import Cell
from atomic_actors._declarations import Outbox
from atomic_actors._envelope import Failure, decode_envelope, encode_plain
from atomic_actors._errors import (
    InvalidPayload,
    InvalidReply,
    InvalidState,
    NotSupported,
    PayloadTooLarge,
    QueryChangedState,
    Refused,
    SystemFailed,
    UnknownMessageType,
)
from atomic_actors._kinds import Kind
from atomic_actors._messages import Message, RawMessage
from atomic_actors._records import Completed, EntityRef, Park, Retry
from atomic_actors._telemetry import logger
from atomic_actors._turn import (
    Member,
    Turn,
    TurnContext,
    current_activation,
    failure_of,
    failure_verdict,
    refusal_verdict,
)
from atomic_actors._wal import Event
from atomic_actors.journal._protocol import (
    NOTHING,
    Dispatched,
    Finish,
    Finished,
    Interrupt,
    JournalUnavailable,
    Offer,
    Outgoing,
    Result,
    Stale,
    Verdict,
    unpack_body,
)

__all__ = ("Activation", "Services")

Cut = Literal["deadline", "child"]

#: What the asker is told, by event; the other events leave the message where it can run again.
_OUTCOME_WORDS: Final = {
    Event.COMPLETE.value: b"completed\n",
    Event.REFUSE.value: b"refused\n",
    Event.FAIL.value: b"failed\n",
    Event.INTERRUPT.value: b"interrupted\n",
}

#: How long an `on_passivate` hook may take.
PASSIVATE_LIMIT_S: Final = 5.0


class Services(Protocol):
    """What an activation needs of the node around it."""

    new_cell: Callable[[], Cell[Any]]
    clock: Callable[[], float]
    max_payload_bytes: int
    max_outbox_messages: int

    @property
    def draining(self) -> bool: ...
    @property
    def listening(self) -> bool: ...
    def is_valid(self, partition: int) -> bool: ...
    def fencing_token(self, partition: int) -> int: ...
    def store_now_ms(self) -> int: ...
    def commit(self, step: Finish, on_result: Callable[[Result | JournalUnavailable], None]) -> None: ...
    def settle(self, step: Interrupt, then: Callable[[], None] | None = None) -> None: ...
    def reply(self, sender: str, entity: str, unique: str, outcome: bytes) -> None: ...
    def outgoing(
        self, origin: TurnContext, ordinal: int, entity: EntityRef, message: Message[Any]
    ) -> Outgoing: ...
    def committed(self, activation: Activation, step: Finish, result: Finished) -> None: ...
    def follow_up(self, activation: Activation, offer: Offer) -> None: ...
    def ring(self, activation: Activation) -> None: ...
    def went_idle(self) -> None: ...
    def lost(self, partition: int, why: str) -> None: ...
    def park(self, activation: Activation, why: str) -> None: ...
    def ended(self, activation: Activation, *, was_closing: bool) -> None: ...
    def watch_deadline(self, activation: Activation) -> None: ...
    def emit_begun(self, activation: Activation, member: Member) -> None: ...
    def emit_ended(self, activation: Activation, member: Member | None, verdict: Verdict) -> None: ...
    def encode_refusal(self, refusal: Refused) -> tuple[str, Any]: ...
    async def ask_from_turn(
        self, context: TurnContext, entity: EntityRef, message: Message[Any], ordinal: int
    ) -> Any: ...


class Unreadable(Exception):
    """A stored state that does not decode: the entity parks, its messages wait."""


@define(eq=False)
class Activation:
    """An entity in memory. `status` goes only forward: reserved, active, closing, ended."""

    services: Services
    kind: Kind
    ref: EntityRef
    entity: str
    partition: int
    claim: str
    #: The committed state's version and bytes; -1 and b"" until they were read.
    version: int = -1
    state_bytes: bytes = b""
    #: The state as the running turn sees it.
    state: Any = None
    status: Literal["reserved", "active", "closing", "ended"] = "reserved"
    #: Appends whose answer may bring a dispatch; while there are any it does not go to sleep.
    admitted: int = 0
    #: When it last began or ended a turn, on the backend's clock.
    used_at_s: float = 0.0
    #: When the handler that runs now is cut off; 0 while none runs.
    deadline_s: float = 0.0
    #: The doorbell rang while it was busy: what it said may not be in the next answer.
    rung: bool = False
    policy: str = field(init=False)
    #: What the store has: `state_bytes` runs ahead of it within a turn.
    _committed_bytes: bytes = field(default=b"", init=False)
    _offer: Offer | None = field(default=None, init=False)
    _waiting: Cell[None] | None = field(default=None, init=False)
    _turn: Turn | None = field(default=None, init=False)
    _finished: Result | JournalUnavailable | None = field(default=None, init=False)
    _instance: Any = field(default=None, init=False)
    _context: TurnContext = field(init=False)
    _outbox: Outbox = field(init=False)
    _scope: anyio.CancelScope | None = field(default=None, init=False)
    _cut: Cut | None = field(default=None, init=False)
    _task_group: TaskGroup | None = field(default=None, init=False)
    _children: int = field(default=0, init=False)
    _child_scopes: set[anyio.CancelScope] = field(factory=set, init=False)
    _child_error: Exception | None = field(default=None, init=False)
    _children_done: Cell[None] | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.policy = self.kind.policy
        self._outbox = Outbox(self.services.max_outbox_messages)
        self._context = TurnContext(self, self._outbox)

    def __repr__(self) -> str:
        return f"<Activation {self.entity} {self.status}{' busy' if self.is_busy else ''} v{self.version}>"

    # What the node does with it.

    @property
    def context(self) -> TurnContext:
        """What the running handler sees."""
        return self._context

    @property
    def is_busy(self) -> bool:
        """Whether a turn runs, or something waits to become one."""
        # A turn whose commit is answered is over, though the task may not have run since.
        runs = self._turn is not None and self._finished is None
        return runs or self._offer is not None or self.admitted > 0

    @property
    def is_running(self) -> bool:
        """Whether a turn is in a handler or on its way to the store."""
        return self._turn is not None

    def offered(self, offer: Offer) -> None:
        """An append that was admitted here is answered (`Admission`)."""
        self.admitted -= 1
        self.accept(offer)
        if not self.admitted and self._is_closing():
            self._wake()  # it stayed only for this answer
        self._heed_bell()

    def accept(self, offer: Offer) -> None:
        """Take what the store offers; a dispatch that is known already is dropped."""
        dispatch = offer.dispatch
        if dispatch is None:
            if offer.more and (self._turn is not None or self._offer is not None):
                return  # the commit of what runs will take it
            if offer is not NOTHING and self._offer is None:
                self.services.follow_up(self, offer)
            elif self.status == "reserved" and not self.admitted:
                self.status = "ended"
                self.services.ended(self, was_closing=False)
            return
        if self._turn is not None and dispatch.turn <= self._turn.dispatch.turn:
            return
        held = self._offer.dispatch if self._offer is not None else None
        if held is not None and dispatch.turn <= held.turn:
            return
        self._offer = offer
        if self.status != "active":
            self.services.follow_up(self, offer)
        self._wake()

    def _heed_bell(self) -> None:
        """Ask the store once more, if the doorbell rang while an older answer was on its way."""
        if self.rung and not self.is_busy and self.status in ("active", "closing"):
            self.services.ring(self)

    def _wake(self) -> None:
        waiting = self._waiting
        if waiting is not None:
            self._waiting = None
            waiting.set(None)

    def inherit(self, other: Activation) -> None:
        """Take over the memory of the activation before, so that its state need not be read again."""
        self.version = other.version
        self.state_bytes = self._committed_bytes = other._committed_bytes

    def take_offer(self) -> Offer | None:
        """Give up what it has not begun, for its successor."""
        offer, self._offer = self._offer, None
        return offer

    def close(self) -> None:
        """Ask it to passivate as soon as nothing runs."""
        if self.status == "active":
            self.status = "closing"
            self._wake()

    def cut_if_late(self, now_s: float) -> None:
        """Cut the running handler if its deadline has passed; called by the sweeper."""
        if 0 < self.deadline_s <= now_s:
            self._cut_turn("deadline")

    def _cut_turn(self, why: Cut) -> None:
        if self._cut is None and self._scope is not None:
            self._cut = why
            self.deadline_s = 0.0
            self._scope.cancel()

    # Its task.

    async def run(self) -> None:
        """Live until passivated or cancelled. The partition's task group runs it."""
        self.status = "active"
        self.used_at_s = self.services.clock()
        current_activation.set(self)
        try:
            async with anyio.create_task_group() as self._task_group:
                await self._serve()
        finally:
            was_closing = self._is_closing()
            self.status = "ended"
            self._leave_turn()
            self.services.ended(self, was_closing=was_closing)

    def _is_closing(self) -> bool:
        return self.status == "closing"

    def _leave_turn(self) -> None:
        """The task ends while a turn is on: if it is not on its way to the store, settle it."""
        turn = self._turn
        if turn is None or turn.committing:
            return
        self._turn = None
        uniques = tuple(item.unique for item in turn.dispatch.messages)
        self.services.settle(
            Interrupt(self.partition, self.entity, self.claim, turn.dispatch.turn, uniques, turn.began)
        )

    async def _serve(self) -> None:
        while True:
            with anyio.CancelScope() as scope:
                self._scope = scope
                await self._work()
                return
            # Only a cut turn comes here: the partition's own cancel passes through the scope.
            self._scope = None
            await self._end_children()
            self._after_cut()

    async def _work(self) -> None:
        while True:
            turn = self._turn
            if turn is None:
                offer = await self._next_offer()
                if offer is None:
                    await self._passivate()
                    return
                turn = await self._begin(offer)
                if turn is None:
                    continue
            messages = turn.dispatch.messages
            while turn.position < len(messages) and not turn.ended:
                await self._run_member(turn, messages[turn.position])
            await self._commit(turn)

    async def _next_offer(self) -> Offer | None:
        while self._offer is None:
            if self._is_closing() and not self.admitted:
                return None
            cell = self._waiting = self.services.new_cell()
            self.services.went_idle()  # may close this very activation, and set the cell
            await cell
        return self.take_offer()

    async def _begin(self, offer: Offer) -> Turn | None:
        """Make an offer the running turn; None if it is not to be run here."""
        dispatch = offer.dispatch
        if dispatch is None:
            self.services.follow_up(self, offer)
            return None
        turn = Turn(dispatch)
        self._turn = turn
        self.used_at_s = self.services.clock()
        if not self.services.is_valid(self.partition):
            self._turn = None
            self.services.lost(self.partition, "its lease had run out before a turn")
            return None
        try:
            await self._adopt(turn)
        except Unreadable as error:
            self._leave_turn()
            self.services.park(self, str(error))
            return None
        except Exception as error:
            # The constructor or `on_activate` raised: the first message pays for it, as for its handler.
            self._instance = None
            item = dispatch.messages[0]
            turn.members.append(None)
            failure = failure_of(error)
            self._conclude(turn, failure_verdict(self.kind, item, failure, self.kind.settings.max_attempts))
            turn.ended = True
        return turn

    async def _adopt(self, turn: Turn) -> None:
        """Bring state and instance up to the version that the store has."""
        dispatch, kind = turn.dispatch, self.kind
        if dispatch.version != self.version:
            if dispatch.state is None and dispatch.version != 0:
                raise Unreadable(f"the store gave no state of version {dispatch.version}")
            self.state_bytes = self._committed_bytes = dispatch.state or b""
            self.version = dispatch.version
            if self._instance is not None:
                self._restore(self.state_bytes)
        if self._instance is None:
            self._restore(self.state_bytes)
            self._instance = self._context if kind.free else kind.spec.make_instance()
            if not kind.free:
                self._instance.outbox = self._outbox
                self._instance.context = self._context
                self.set_state(self.state)
            self._context.fencing_token = self.services.fencing_token(self.partition)
            if kind.spec.on_activate is not None:
                await kind.spec.on_activate(self._instance)

    def _restore(self, data: bytes) -> None:
        """Set the state to what `data` holds: the committed one, or one of a run's prefix."""
        decode = self.kind.decode_state
        if decode is None:
            return
        try:
            state = decode(data) if data else self.kind.new_state()
        except (InvalidPayload, msgspec.DecodeError) as error:
            raise Unreadable(f"the stored state of {self.entity} does not decode: {error}") from error
        self.set_state(state)

    def set_state(self, state: Any) -> None:
        """Replace the state, here and on the instance."""
        self.state = state
        if self._instance is not None and self._instance is not self._context:
            self._instance.state = state

    def get_state(self) -> Any:
        """The state, wherever the handler's code put it."""
        if self._instance is not self._context and self.kind.decode_state is not None:
            return self._instance.state
        return self.state

    # One message.

    async def _run_member(self, turn: Turn, item: Dispatched) -> None:
        """Run one message to its verdict. A cut leaves `position` where it is."""
        services = self.services
        before = self.state_bytes
        try:
            member = self._read(item)
        except (UnknownMessageType, InvalidPayload, ValueError, msgspec.DecodeError) as error:
            turn.members.append(None)
            self._conclude(turn, failure_verdict(self.kind, item, failure_of(error), 1))
            return
        turn.members.append(member)
        self._prepare(member)
        if services.listening:
            services.emit_begun(self, member)
        turn.began = True
        try:
            verdict = await self._call(turn, member, before)
        except Refused as refusal:
            name, details = services.encode_refusal(refusal)
            verdict = refusal_verdict(item, refusal, name, details)
        except Exception as error:
            verdict = failure_verdict(self.kind, item, failure_of(error), member.handler.spec.max_attempts)
        self.deadline_s = 0.0
        if self._children:
            await self._end_children()
        if verdict.event != Event.COMPLETE.value:
            self._roll_back(before)
        self._conclude(turn, verdict)

    def _read(self, item: Dispatched) -> Member:
        body = unpack_body(item.body)
        handler = self.kind.handler_for(body.name)
        if handler is None:
            raise UnknownMessageType(
                f"kind {self.kind.name!r} has no handler for {body.name!r}; add one, or replay this letter later"
            )
        envelope = decode_envelope(body.envelope)
        payload = handler.decode_payload(bytes(envelope.payload))
        message = RawMessage(body.name, payload) if handler.spec.raw else payload
        return Member(item, body, envelope, handler, message)

    def _prepare(self, member: Member) -> None:
        services, body, spec = self.services, member.body, member.handler.spec
        deadline_s = float("inf")
        now_s = services.clock()
        if body.deadline_ms:
            deadline_s = now_s + (body.deadline_ms - services.store_now_ms()) / 1000
        limit_s = self.kind.settings.turn_timeout_s
        if limit_s and now_s + limit_s < deadline_s:
            deadline_s = now_s + limit_s
        path = member.envelope.headers.get("p", ())
        self._context.begin(
            f"{self.entity}/{member.item.unique}",
            member.item.attempt,
            deadline_s,
            tuple(path),
            transactional=spec.transactional,
        )
        if deadline_s != float("inf"):
            self.deadline_s = deadline_s
            services.watch_deadline(self)

    async def _call(self, turn: Turn, member: Member, before: bytes) -> Verdict:
        """Call the handler, and stage what it did."""
        handler = member.handler
        spec = handler.spec
        if turn.dispatch.recovering and spec.recover is not None:
            answer: Any = await spec.recover(self._instance, member.message)
            if not isinstance(answer, Completed):
                return self._recovered(turn, member, answer)
            reply = answer.reply
        else:
            reply = await spec.function(self._instance, member.message)
        if self._children:
            await self._wait_children()
        self.deadline_s = 0.0
        return self._stage(turn, member, before, reply)

    def _stage(self, turn: Turn, member: Member, before: bytes, reply: Any) -> Verdict:
        handler, limit = member.handler, self.services.max_payload_bytes
        try:
            told = handler.encode_reply(reply)
        except InvalidPayload as error:
            raise InvalidReply(
                f"{handler.spec.location}: the reply does not fit its type: {error}"
            ) from error
        if limit and len(told) > limit:
            raise PayloadTooLarge(
                f"{handler.spec.location}: the reply has {len(told)} bytes (max_payload_bytes)"
            )
        after = before
        encode = self.kind.encode_state
        if encode is not None:
            try:
                after = encode(self.get_state())
            except InvalidPayload as error:
                raise InvalidState(
                    f"{handler.spec.location}: the state does not fit its type: {error}"
                ) from error
            if limit and len(after) > limit:
                raise PayloadTooLarge(f"{self.entity}: the state has {len(after)} bytes (max_payload_bytes)")
            if not before and after == encode(self.kind.new_state()):
                after = before
        if handler.spec.query and (after != before or len(self._outbox)):
            raise QueryChangedState(
                f"{handler.spec.location} handles a query but changed the state or added to the outbox; "
                "make its message a Command"
            )
        if len(self._outbox):
            # All of them or none: a bad entry fails the turn, and the good ones before it must not leave.
            first = len(turn.outbox) + 1
            turn.outbox += [
                self.services.outgoing(self._context, ordinal, entity, message)
                for ordinal, (entity, message) in enumerate(self._outbox, first)
            ]
            self._outbox.clear()
        self.state_bytes = after
        return Verdict(member.item.unique, Event.COMPLETE.value, told)

    def _recovered(self, turn: Turn, member: Member, answer: object) -> Verdict:
        unique = member.item.unique
        if isinstance(answer, Retry):
            return Verdict(unique, Event.RETRY.value)
        if isinstance(answer, Park):
            turn.park = True
            failure = Failure("Park", "the on_interrupted method parked it")
            return Verdict(unique, Event.INTERRUPT.value, b"", encode_plain(failure))
        raise InvalidReply(
            f"{member.handler.spec.location}: on_interrupted answered {answer!r}; it must answer "
            "Completed(reply), Retry() or Park()"
        )

    def _roll_back(self, before: bytes) -> None:
        self._outbox.clear()
        self.state_bytes = before
        self._restore(before)

    def _conclude(self, turn: Turn, verdict: Verdict) -> None:
        turn.verdicts.append(verdict)
        turn.position += 1
        died = verdict.event in (Event.FAIL.value, Event.INTERRUPT.value)
        if died and self.kind.settings.on_dead == "park":
            turn.park = True
        if verdict.event == Event.RETRY.value or turn.park or died:
            # A dead letter ends the run too: if there is no room for it, nothing may follow it.
            turn.ended = True

    def _after_cut(self) -> None:
        """A deadline or a child cut the turn: unless it was past its handler already, it failed."""
        why, self._cut = self._cut, None
        turn = self._turn
        if turn is None or turn.committing or turn.position >= len(turn.dispatch.messages):
            return
        item = turn.dispatch.messages[turn.position]
        if len(turn.members) == turn.position:
            turn.members.append(None)
        member = turn.members[turn.position]
        max_attempts = member.handler.spec.max_attempts if member is not None else 1
        child_error, self._child_error = self._child_error, None
        if why == "child" and child_error is not None:
            failure = failure_of(child_error)
        else:
            failure = Failure("DeadlineExceeded", "the handler was still running at its deadline")
        # `state_bytes` moves only when a handler ended well: it still is what the cut one began with.
        self._roll_back(self.state_bytes)
        self._conclude(turn, failure_verdict(self.kind, item, failure, max_attempts))

    # The commit.

    async def _commit(self, turn: Turn) -> None:
        if not turn.committing:
            self._submit(turn)
        while self._finished is None:
            self._waiting = self.services.new_cell()
            await self._waiting
        result, self._finished = self._finished, None
        self._turn = None
        if isinstance(result, Finished):
            self._heed_bell()
            return
        if isinstance(result, JournalUnavailable):
            return
        if isinstance(result, Stale):
            self.services.lost(self.partition, f"another owner has it ({result.what} of {self.entity})")
            return
        raise SystemFailed(f"the commit of {self.entity} was answered with {result!r}")

    def _submit(self, turn: Turn) -> None:
        messages = turn.dispatch.messages
        verdicts = (
            *turn.verdicts,
            *(Verdict(item.unique, Event.REQUEUE.value) for item in messages[turn.position :]),
        )
        base = turn.dispatch.version
        changed = self.state_bytes != self._committed_bytes
        step = Finish(
            self.partition,
            self.entity,
            self.claim,
            turn.dispatch.turn,
            verdicts,
            self.state_bytes if changed else None,
            base,
            tuple(turn.outbox),
            turn.park,
            self.policy,
            0 if self.services.draining else self.kind.settings.max_run_length,
        )
        turn.committing = True
        self.services.commit(step, lambda result: self._on_committed(turn, step, result))

    def _on_committed(self, turn: Turn, step: Finish, result: Result | JournalUnavailable) -> None:
        """The store's answer, in the group commit's task: tell the askers first, then go on."""
        if isinstance(result, Finished):
            self.version = result.version
            self._committed_bytes = self.state_bytes
            for verdict, member in zip(turn.verdicts, turn.members, strict=True):
                word = _OUTCOME_WORDS.get(verdict.event)
                if word is not None and verdict.unique not in result.not_buried:
                    sender = member.sender if member is not None else ""
                    self.services.reply(sender, self.entity, verdict.unique, word + verdict.reply)
                if self.services.listening:
                    self.services.emit_ended(self, member, verdict)
            self.services.committed(self, step, result)
            if result.offer is not NOTHING:
                self.accept(result.offer)
        self.used_at_s = self.services.clock()
        self._finished = result
        self._wake()

    # Children of a turn, and the end.

    def start_child(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> None:
        """Run `function(*args)` beside the handler; the turn commits after it has ended.

        Raises:
            NotSupported: no handler runs now.
        """
        if self._turn is None or self._task_group is None or self._turn.committing:
            raise NotSupported("context.start_soon: only while the handler runs")
        self._children += 1
        # Made here and not in the task: a child that has not begun yet must be cancelled as well.
        scope = anyio.CancelScope()
        self._child_scopes.add(scope)
        self._task_group.start_soon(self._run_child, scope, function, args)

    async def _run_child(
        self, scope: anyio.CancelScope, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]
    ) -> None:
        with scope:
            try:
                await function(*args)
            except Exception as error:
                if self._child_error is None:
                    self._child_error = error
                self._cut_turn("child")
            finally:
                self._child_scopes.discard(scope)
                self._children -= 1
                if not self._children and self._children_done is not None:
                    self._children_done.set(None)

    async def _wait_children(self) -> None:
        while self._children:
            self._children_done = self.services.new_cell()
            await self._children_done

    async def _end_children(self) -> None:
        for scope in tuple(self._child_scopes):
            scope.cancel()
        await self._wait_children()

    async def _passivate(self) -> None:
        hook = self.kind.spec.on_passivate
        if hook is None or self._instance is None:
            return
        with anyio.move_on_after(PASSIVATE_LIMIT_S) as scope:
            try:
                await hook(self._instance)
            except Exception:
                logger.exception("on_passivate of %s raised", self.entity)
        if scope.cancelled_caught:
            logger.error("on_passivate of %s took longer than %.0f s", self.entity, PASSIVATE_LIMIT_S)
