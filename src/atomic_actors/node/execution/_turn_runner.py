"""Runs the handlers of one entity: message in, verdict out.

Everything a turn touches is here (the actor, its state, its outbox, its children); nothing of this
talks to the store. What a handler did is *staged*, and counts only when the turn's commit is answered.
"""

from __future__ import annotations

from typing import Any, Final, cast

import anyio
import msgspec
from attrs import define, field, frozen

from atomic_actors.actors._declarations import Outbox
from atomic_actors.actors._kinds import BoundKind
from atomic_actors.actors._messages import Message, RawMessage
from atomic_actors.base._config import Config
from atomic_actors.base._errors import (
    InvalidPayload,
    InvalidReply,
    PayloadTooLarge,
    QueryChangedState,
    Refused,
)
from atomic_actors.base._lifecycle import Event
from atomic_actors.base._oneshot import Backend
from atomic_actors.base._records import Completed, EntityRef, Park, Retry
from atomic_actors.base._telemetry import logger
from atomic_actors.codec._codec import Codec
from atomic_actors.codec._envelope import Failure, decode_envelope, derive_uid, encode_plain
from atomic_actors.journal._protocol import Dispatch, Dispatched, Outgoing, Verdict, pack_body, unpack_body
from atomic_actors.journal.commit._commit_queue import CommitQueue
from atomic_actors.journal.commit._store_clock import StoreClock
from atomic_actors.node.execution._deferred import DeferredEntities
from atomic_actors.node.execution._entity_state import EntityState
from atomic_actors.node.execution._events import Events
from atomic_actors.node.execution._owned_partition import OwnedPartition
from atomic_actors.node.execution._parking import Parking
from atomic_actors.node.execution._schedule import Schedule
from atomic_actors.node.execution._settlements import Settlements
from atomic_actors.node.execution._turn import (
    COMPLETE,
    Member,
    Turn,
    TurnContext,
    failure_of,
    failure_verdict,
    refusal_verdict,
)
from atomic_actors.node.execution._turn_scope import Children, TurnScope
from atomic_actors.node.routing._destinations import CallChecker
from atomic_actors.node.routing._router import Router

__all__ = ("NodeParts", "Stateless", "TurnRunner", "Unhandled")

#: How long an `on_passivate` hook may take.
PASSIVATE_LIMIT_S: Final = 5.0


class Unhandled(Exception):
    """The kind has no handler here for the name of a message: another release's, most likely."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Stateless(Exception):
    """A dispatch came without the state that is needed: it was taken for granted, and is gone."""


@frozen(eq=False, kw_only=True)
class NodeParts:
    """The parts of the node that its activations work with; the same for all of them.

    Args:
        commits: where turns are committed.
        replies: tells askers.
        store_clock: the store's time.
        call_checker: where messages of an outbox go.
    """

    config: Config
    backend: Backend
    codec: Codec
    commits: CommitQueue
    replies: Router
    store_clock: StoreClock
    call_checker: CallChecker
    events: Events
    schedule: Schedule
    settlements: Settlements
    parking: Parking
    deferred: DeferredEntities


@define(eq=False, kw_only=True)
class TurnRunner:
    """The actor of one entity, while it is in memory.

    Args:
        turn_scope: gets the deadline of the message that runs.
    """

    node: NodeParts
    kind: BoundKind
    entity: str
    partition: OwnedPartition
    context: TurnContext
    outbox: Outbox
    state: EntityState
    turn_scope: TurnScope
    children: Children = field(init=False)
    _instance: Any = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.children = Children(self.node.backend, self.turn_scope)

    @property
    def is_alive(self) -> bool:
        """Whether the actor was made."""
        return self._instance is not None

    def forget(self) -> None:
        """Make the actor anew for the next message: its constructor or `on_activate` raised."""
        self._instance = None

    async def adopt(self, dispatch: Dispatch) -> None:
        """Bring state and actor up to the version that the store has.

        Raises:
            Stateless: the dispatch came without the state.
            Unreadable: the state does not decode.
            Exception: what the actor's constructor or `on_activate` raises.
        """
        kind, state = self.kind, self.state
        if dispatch.version != state.version:
            if dispatch.state is None and dispatch.version != 0:
                raise Stateless
            state.load(dispatch.version, dispatch.state or b"")
        if self._instance is None:
            state.holder = None
            state.roll_back(state.committed)
            self._instance = self.context if kind.free else kind.spec.make_instance()
            if not kind.free:
                self._instance.outbox = self.outbox
                self._instance.context = self.context
                state.hold_in(self._instance)
            self.context.fencing_token = self.partition.epoch
            if kind.spec.on_activate is not None:
                await kind.spec.on_activate(self._instance)

    async def run(self, turn: Turn, item: Dispatched) -> Verdict:
        """Run one message to its verdict.

        Raises:
            Unhandled: there is no handler for it here; nothing was begun.
        """
        events = self.node.events
        before = self.state.staged
        try:
            member = self._read(item)
        except (InvalidPayload, ValueError, msgspec.DecodeError) as error:
            turn.members.append(None)
            return failure_verdict(self.kind, item, failure_of(error), 1)
        turn.members.append(member)
        self._prepare(member)
        if events.listeners.active:
            events.begun(self.context.entity, member)
        turn.began = True
        try:
            verdict = await self._call(turn, member, before)
        except Refused as refusal:
            verdict = refusal_verdict(self.node.codec, item, refusal)
        except Exception as error:
            verdict = self.failed(turn, member, failure_of(error))
        self.turn_scope.deadline_s = 0.0
        if self.children.count:
            await self.children.end()
        if verdict.event != COMPLETE:
            self.outbox.clear()
            self.state.roll_back(before)
        return verdict

    def failed(self, turn: Turn, member: Member, failure: Failure) -> Verdict:
        """A handler failed: again, or a dead letter.

        An `on_interrupted` method that fails is final: it did not return `Retry`.
        """
        spec, item = member.handler.spec, member.item
        if turn.dispatch.recovering and spec.recover is not None:
            return Verdict(uid=item.uid, event=Event.INTERRUPT.value, reply=b"", error=encode_plain(failure))
        return failure_verdict(self.kind, item, failure, spec.max_attempts)

    def _read(self, item: Dispatched) -> Member:
        body = unpack_body(item.body)
        handler = self.kind.by_name.get(body.name, self.kind.fallback)
        if handler is None:
            raise Unhandled(body.name)
        envelope = decode_envelope(body.envelope)
        payload = handler.payload_coder.decode(bytes(envelope.payload))
        message = RawMessage(body.name, payload) if handler.spec.raw else payload
        return Member(item=item, body=body, envelope=envelope, handler=handler, message=message)

    def _prepare(self, member: Member) -> None:
        node, body, spec = self.node, member.body, member.handler.spec
        deadline_s = float("inf")
        now_s = node.backend.clock()
        if body.deadline_ms:
            deadline_s = now_s + (body.deadline_ms - node.store_clock.now_ms()) / 1000
        limit_s = self.kind.settings.turn_timeout_s
        if limit_s and now_s + limit_s < deadline_s:
            deadline_s = now_s + limit_s
        self.context.begin(
            f"{self.entity}/{member.item.uid}",
            member.item.attempt,
            deadline_s,
            member.envelope.headers.path,
            transactional=spec.transactional,
        )
        if deadline_s != float("inf"):
            self.turn_scope.deadline_s = deadline_s
            node.schedule.watch(self.turn_scope)

    async def _call(self, turn: Turn, member: Member, before: bytes) -> Verdict:
        """Call the handler, and stage what it did."""
        handler = member.handler
        spec = handler.spec
        if turn.dispatch.recovering and spec.recover is not None:
            answer: Any = await spec.recover(self._instance, member.message)
            if not isinstance(answer, Completed):
                return self._recovered(turn, member, answer)
            reply = cast("Completed[object]", answer).reply
        else:
            reply = await spec.function(self._instance, member.message)
        if self.children.count:
            await self.children.wait()
        added = len(self.outbox)
        if added:
            looking_up = self.node.call_checker.look_up_outbox(self.outbox)
            if looking_up is not None:
                await looking_up
        self.turn_scope.deadline_s = 0.0
        return self._stage(turn, member, before, reply, added)

    def _stage(self, turn: Turn, member: Member, before: bytes, reply: Any, added: int) -> Verdict:
        """Encode what a handler did; `added` is the number of its outbox messages."""
        handler, limit = member.handler, self.node.config.max_payload_bytes
        after = self.state.encode(handler.spec.location)
        try:
            encoded_reply = handler.reply_coder.encode(reply)
        except InvalidPayload as error:
            raise InvalidReply(
                f"{handler.spec.location}: the reply does not fit its type: {error}"
            ) from error
        if limit and len(encoded_reply) > limit:
            raise PayloadTooLarge(
                f"{handler.spec.location}: the reply has {len(encoded_reply)} bytes (max_payload_bytes)"
            )
        if handler.spec.query and (after != before or added):
            raise QueryChangedState(
                f"{handler.spec.location} handles a query but changed the state or added to the outbox; "
                "make its message a Command"
            )
        if added:
            # All of them or none: a bad entry fails the turn, and the good ones before it must not leave.
            first = len(turn.outbox) + 1
            turn.outbox += [
                self._outgoing(ordinal, entity, message)
                for ordinal, (entity, message) in enumerate(self.outbox, first)
            ]
            self.outbox.clear()
        self.state.staged = after
        return Verdict(uid=member.item.uid, event=COMPLETE, reply=encoded_reply)

    def _outgoing(self, ordinal: int, entity: EntityRef, message: Message[Any]) -> Outgoing:
        """An outbox entry: its id derives from the turn's message, attempt and the entry's ordinal."""
        node, context = self.node, self.context
        sent = node.call_checker.encode(entity, message)
        uid = derive_uid(node.store_clock.now_ms(), context.message_id, context.attempt, "outbox", ordinal)
        body = pack_body(name=sent.name, deadline_ms=0, waited_for=False, key="", envelope=sent.envelope)
        return Outgoing(
            partition=sent.partition, entity=sent.entity, uid=uid, body=body, service=sent.service
        )

    def _recovered(self, turn: Turn, member: Member, answer: object) -> Verdict:
        uid = member.item.uid
        if isinstance(answer, Retry):
            return Verdict(uid=uid, event=Event.RETRY.value)
        if isinstance(answer, Park):
            turn.park = True
            failure = Failure("Park", "the on_interrupted method parked it")
            return Verdict(uid=uid, event=Event.INTERRUPT.value, reply=b"", error=encode_plain(failure))
        raise InvalidReply(
            f"{member.handler.spec.location}: on_interrupted returned {answer!r}; it must return "
            "Completed(reply), Retry() or Park()"
        )

    def cut(self, turn: Turn, failure: Failure) -> Verdict:
        """The verdict of a message whose handler was cut off; what it did is undone."""
        item = turn.dispatch.messages[turn.position]
        if len(turn.members) == turn.position:
            turn.members.append(None)
        member = turn.members[turn.position]
        # What is staged moves only when a handler ends well: it still is what the cut one began with.
        self.outbox.clear()
        self.state.roll_back(self.state.staged)
        if member is None:
            return failure_verdict(self.kind, item, failure, 1)
        return self.failed(turn, member, failure)

    async def passivate(self) -> None:
        """Run the `on_passivate` hook, for a bounded time."""
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
