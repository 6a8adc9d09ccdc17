"""The node: what activations need around them, put together from the parts.

It is the switchboard between the store's answers and everybody who has to hear of them: askers here
and on other nodes, listeners, the outbox relay, the supervisor. It decides nothing by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, Protocol, cast

import msgspec
from attrs import define, field

from atomic_actors.actors._messages import Message
from atomic_actors.base._errors import AtomicActorsError, InvalidPayload, Refused, SystemFailed
from atomic_actors.base._lifecycle import Event
from atomic_actors.base._oneshot import Cell
from atomic_actors.base._records import EntityRef, split_message_id
from atomic_actors.base._telemetry import EventName, HistoryLost, LifecycleEvent, Listeners, logger
from atomic_actors.codec._codec import Codec
from atomic_actors.codec._envelope import decode_envelope, derive_unique, plain_of
from atomic_actors.journal._history import HistoryLoss
from atomic_actors.journal._protocol import (
    NOTHING,
    Finish,
    Finished,
    Interrupt,
    JournalUnavailable,
    Offer,
    Outgoing,
    Park,
    Parked,
    Rejected,
    Result,
    Settled,
    Stale,
    Taken,
    Verdict,
    pack_body,
    unpack_body,
)
from atomic_actors.journal.commit._batches import OVERTAKEN_MAX
from atomic_actors.journal.commit._commit_queue import CommitQueue
from atomic_actors.node.execution._activation import Activation
from atomic_actors.node.execution._supervisor import Supervisor
from atomic_actors.node.execution._turn import Member, Turn, TurnContext
from atomic_actors.node.ownership._membership import Membership
from atomic_actors.node.routing._router import Router

__all__ = ("Node", "Statistics")

#: Entities that are remembered so that each is complained of once.
PARKED_MAX: Final = 1_000

AskFromTurn = Callable[[TurnContext, EntityRef, Message[Any], str], Any]
Outbox = Iterable[tuple[EntityRef, Message[Any]]]


class Encoded(Protocol):
    """What is known of an outbox message before it is sent."""

    @property
    def service(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def entity(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def envelope(self) -> bytes: ...


Encode = Callable[[EntityRef, Message[Any]], Encoded]

_EVENT_NAMES: dict[str, EventName] = {
    Event.COMPLETE.value: "completed",
    Event.REFUSE.value: "refused",
    Event.FAIL.value: "failed",
    Event.INTERRUPT.value: "interrupted",
    Event.RETRY.value: "failed",
}


@define(eq=False)
class Statistics:
    """Counters of this node since it started."""

    accepted: int = 0
    completed: int = 0
    refused: int = 0
    failed: int = 0
    retried: int = 0
    interrupted: int = 0
    dead_lettered: int = 0
    turns: int = 0
    histories_lost: int = 0


@define(eq=False)
class Node:
    """Implements what activations (`Services`) and the supervisor need.

    `encode` (an outbox message to its address, wire name and envelope), `look_up_with` (what has to be awaited
    before that, if anything), `ask_with` (an ask of a turn), `on_crash` and `supervisor` are set by the
    composition root, since they need the node themselves.
    """

    journal: CommitQueue
    router: Router
    membership: Membership
    codec: Codec
    listeners: Listeners
    new_cell: Callable[[], Cell[Any]]
    clock: Callable[[], float]
    max_payload_bytes: int
    max_outbox_messages: int
    encode: Encode = field(init=False)
    look_up_with: Callable[[Outbox], Coroutine[Any, Any, None] | None] = field(init=False)
    ask_with: AskFromTurn = field(init=False)
    on_crash: Callable[[BaseException], None] = field(init=False)
    supervisor: Supervisor = field(init=False)
    #: The turns that are being settled, by entity: an older answer may still offer them.
    settling: dict[str, int] = field(factory=dict[str, int], init=False)
    counts: Statistics = field(factory=Statistics, init=False)
    #: The entities whose turns the store refused to settle, with their partitions.
    _unsettled: dict[str, int] = field(factory=dict[str, int], init=False)
    #: The entities that are parked for being damaged, while the store has not said that they are.
    _parked: set[str] = field(factory=set[str], init=False)

    def is_leaving(self, partition: int, entity: str) -> bool:
        """See `Supervisor.is_leaving`."""
        return self.supervisor.is_leaving(partition, entity)

    @property
    def listening(self) -> bool:
        """Whether anybody listens to lifecycle events."""
        return self.listeners.active

    def is_valid(self, partition: int) -> bool:
        """Whether the partition's lease certainly still holds."""
        return self.membership.is_valid(partition)

    def fencing_token(self, partition: int) -> int:
        """The epoch of the partition's claim: it grows with every change of owner."""
        return self.membership.epochs[partition]

    def store_now_ms(self) -> int:
        """The store's time."""
        return self.router.store_clock.now_ms()

    # Turns.

    def commit(
        self, step: Finish, on_result: Callable[[Result | JournalUnavailable], None], backlog: int
    ) -> None:
        """Queue a commit: it must not be refused, and is kept until the store answers."""
        self.journal.enqueue(step, on_result, overtakes=backlog > OVERTAKEN_MAX)

    def settle(self, step: Interrupt, then: Callable[[], None] | None = None) -> None:
        """Settle a dispatch that was cut off, and tell its asker if that was final."""
        self.settling[step.entity] = step.turn

        def on_settled(result: Result | JournalUnavailable) -> None:
            if isinstance(result, Rejected):
                # It stays in `settling`: what began here must not begin once more under this claim.
                self._unsettled[step.entity] = step.partition
                logger.error("%s: its turn %d cannot be settled: %s", step.entity, step.turn, result.text)
            elif self.settling.get(step.entity) == step.turn:
                # Answers come in the order of the steps: no older one can offer this turn any more.
                del self.settling[step.entity]
            if isinstance(result, Settled) and result.settlement != "gone":
                self.supervisor.settled(step.partition, step.entity)
                self._settled(step.entity, step.uniques, result)
            if then is not None:
                then()

        self.journal.enqueue(step, on_settled)

    def partition_lost(self, partition: int) -> None:
        """A partition is not this node's any more: under another claim, what could not be settled may be."""
        for entity in [entity for entity, number in self._unsettled.items() if number == partition]:
            del self._unsettled[entity]
            self.settling.pop(entity, None)

    def _settled(self, entity: str, uniques: tuple[str, ...], result: Settled) -> None:
        if result.settlement != "interrupt":
            return
        self.counts.interrupted += len(uniques)
        self.counts.dead_lettered += len(uniques)
        for unique, body in zip(uniques, result.bodies, strict=False):
            self._tell(entity, unique, body, b"interrupted\n")
            self._emit(entity, unique, body, ("interrupted", "dead-lettered"))

    def history_lost(self, loss: HistoryLoss) -> None:
        """Report that the store went back in time."""
        logger.error(
            "the store has lost history of partition %d: it is at commit %d, and %d was acknowledged. What was "
            "committed in between is gone or will run again; turns that run now are settled as interrupted",
            loss.partition,
            loss.found,
            loss.acknowledged,
        )
        self.counts.histories_lost += 1
        if self.listeners.wants("history-lost"):
            self.listeners.emit(HistoryLost(loss.partition, loss.acknowledged, loss.found))

    def stream_lost(self, loss: HistoryLoss, source: int) -> None:
        """Report that a partition has lost outbox messages of another one, which that one has no more."""
        logger.error(
            "the store has lost history of partition %d: it had taken message %d of the outbox of partition %d, "
            "and knows of %d now. Those in between are gone, unless they had their turn before; the ones behind "
            "them go on",
            loss.partition,
            loss.acknowledged,
            source,
            loss.found,
        )
        self.counts.histories_lost += 1
        if self.listeners.wants("history-lost"):
            self.listeners.emit(HistoryLost(loss.partition, loss.acknowledged, loss.found, source=source))

    async def settle_lost(self, partition: int, claim: str) -> bool:
        """Settle what was under way here when a partition lost history; False if `claim` is not current.

        Raises:
            JournalUnavailable: the store gave no answer.
        """
        steps = self.supervisor.in_doubt(partition, claim)
        answer = await self.journal.execute(steps)
        for step, result in zip(steps, answer.results, strict=True):
            if isinstance(result, Settled):
                self.supervisor.settled(partition, step.entity)
                self._settled(step.entity, (step.unique,), result)
            elif isinstance(result, Stale):
                return False
            elif isinstance(result, Rejected):
                logger.error("%s/%s began, and cannot be settled: %s", step.entity, step.unique, result.text)
            else:
                raise SystemFailed(f"the journal answered {step!r} with {result!r}")
        return True

    def expired(self, entity: str, unique: str, body: bytes | None) -> None:
        """A message expired: tell its asker; one that nobody waits for is a dead letter now."""
        self._tell(entity, unique, body, b"expired\n")
        if body is not None and _is_tell(body):
            self.counts.dead_lettered += 1
            self._emit(entity, unique, body, ("dead-lettered",))

    def _tell(self, entity: str, unique: str, body: bytes | None, outcome: bytes) -> None:
        sender = ""
        if body is not None:
            try:
                found = decode_envelope(unpack_body(body).envelope).headers.get("s", "")
                sender = found if isinstance(found, str) else ""
            except (ValueError, msgspec.DecodeError) as error:
                logger.warning("the envelope of %s/%s does not decode: %s", entity, unique, error)
        self.router.reply(sender, entity, unique, outcome)

    def reply(self, sender: str, entity: str, unique: str, outcome: bytes) -> None:
        """Tell an asker how its message ended."""
        self.router.reply(sender, entity, unique, outcome)

    def packed_reply(
        self, sender: str, entity: str, unique: str, word: bytes, reply: bytes
    ) -> tuple[bytes, bytes] | None:
        """See `Router.packed_reply`."""
        return self.router.packed_reply(sender, entity, unique, word, reply)

    def outgoing(
        self, origin: TurnContext, ordinal: int, entity: EntityRef, message: Message[Any]
    ) -> Outgoing:
        """An outbox entry: its id derives from the turn's message, attempt and the entry's ordinal."""
        sent = self.encode(entity, message)
        unique = derive_unique(self.store_now_ms(), origin.message_id, origin.attempt, "outbox", ordinal)
        body = pack_body(name=sent.name, deadline_ms=0, waited_for=False, key="", envelope=sent.envelope)
        return Outgoing(sent.partition, sent.entity, unique, body, sent.service)

    def look_up(self, outbox: Outbox) -> Coroutine[Any, Any, None] | None:
        """What has to be awaited before `outgoing`: a kind of other nodes is not known yet."""
        return self.look_up_with(outbox)

    def committed(self, activation: Activation, step: Finish, result: Finished) -> None:
        """A turn is committed: wake whoever got something from its outbox, and count."""
        self.counts.turns += 1
        for verdict in step.verdicts:
            self._count(verdict.event)
        self.supervisor.used(activation)
        if self.supervisor.unhandled.entities:
            self.supervisor.unhandled.handled(activation.entity)
        for message in step.outbox:
            if self.listeners.active:
                self._emit(message.entity, message.unique, message.body, ("accepted",))
            target = message.target
            if target == activation.partition:
                self.supervisor.wake(message.partition, message.entity)
            else:
                self.supervisor.relay.kick(activation.partition, target)

    def _count(self, event: str) -> None:
        counts = self.counts
        if event == "complete":
            counts.completed += 1
        elif event == "refuse":
            counts.refused += 1
        elif event == "retry":
            counts.retried += 1
        elif event == "fail":
            counts.failed += 1
            counts.dead_lettered += 1
        elif event == "interrupt":
            counts.interrupted += 1
            counts.dead_lettered += 1

    def follow_up(self, activation: Activation, offer: Offer) -> None:
        """See `Supervisor.follow_up`."""
        self.supervisor.follow_up(activation, offer)

    def went_idle(self) -> None:
        """See `Supervisor.went_idle`."""
        self.supervisor.went_idle()

    def ring(self, activation: Activation) -> None:
        """Look for work that the doorbell announced."""
        self.supervisor.take(activation)

    def watch_deadline(self, activation: Activation) -> None:
        """See `Supervisor.watch_deadline`."""
        self.supervisor.watch_deadline(activation)

    def lost(self, partition: int, why: str) -> None:
        """The store, or the clock, says that a partition is not ours."""
        self.membership.lose(partition, why)

    def park(self, activation: Activation, why: str) -> None:
        """An entity cannot run: park it until a person has looked; what waits keeps waiting."""
        entity = activation.entity
        if entity not in self._parked:
            logger.error("%s is parked: %s", entity, why)
            if len(self._parked) >= PARKED_MAX:
                self._parked.clear()
            self._parked.add(entity)

        def on_parked(result: Result | JournalUnavailable) -> None:
            if isinstance(result, Parked):
                self._parked.discard(entity)  # if a person resumes it too soon, it is said again
            elif isinstance(result, JournalUnavailable):
                logger.error("%s could not be parked: %s", entity, result)

        self.journal.enqueue(Park(activation.partition, entity), on_parked)

    def taken(self, activation: Activation, result: Result | JournalUnavailable) -> None:
        """A take is answered. Where the store cannot read what is next, the entity waits for a person."""
        if isinstance(result, Rejected):
            self.park(activation, f"the store cannot read what is next: {result.text}")
        activation.offered(result.offer if isinstance(result, Taken) else NOTHING)

    def refused(self, activation: Activation, turn: Turn, why: str) -> None:
        """The store does not take a commit: what it has of the entity is damaged, or not what was read."""
        self.park(activation, f"the commit of turn {turn.dispatch.turn} was refused: {why}")
        uniques = tuple(item.unique for item in turn.dispatch.messages)
        self.settle(
            Interrupt(activation.partition, activation.entity, activation.claim, turn.dispatch.turn, uniques)
        )

    def leave_unhandled(self, activation: Activation, name: str) -> None:
        """The head of an entity was given back: this node has no handler for it. Look again later."""
        self.supervisor.unhandled.leave(activation.partition, activation.entity, activation.claim, name)

    def ended(self, activation: Activation, *, was_closing: bool) -> None:
        """See `Supervisor.ended`."""
        self.supervisor.ended(activation, was_closing=was_closing)

    def encode_refusal(self, refusal: Refused) -> tuple[str, Any]:
        """The wire name and the plain fields of a refusal; its text alone where they do not encode."""
        try:
            return self.codec.encode_refusal(refusal)
        except (InvalidPayload, AtomicActorsError) as error:
            logger.error("the fields of %s do not encode: %s", type(refusal).__name__, error)
            return type(refusal).__name__, None

    async def ask_from_turn(
        self, context: TurnContext, entity: EntityRef, message: Message[Any], ordinal: int
    ) -> Any:
        """Send an ask on behalf of a running turn; its id derives from message, attempt and ordinal."""
        unique = derive_unique(self.store_now_ms(), context.message_id, context.attempt, "ask", ordinal)
        return await self.ask_with(context, entity, message, unique)

    def crashed(self, error: BaseException) -> None:
        """A part of the node failed by its own fault: the system ends, with this as the cause."""
        while isinstance(error, BaseExceptionGroup):
            error = cast("BaseExceptionGroup[BaseException]", error)
            if len({type(each) for each in error.exceptions}) != 1:
                break  # else the first one says what the others do
            error = error.exceptions[0]
        self.on_crash(error)

    # Events.

    def emit_begun(self, entity: EntityRef, member: Member) -> None:
        """A handler is about to run."""
        if self.listeners.wants("dispatched"):
            self.listeners.emit(
                LifecycleEvent(
                    "dispatched",
                    f"{entity}/{member.item.unique}",
                    entity,
                    member.body.name,
                    member.item.attempt,
                )
            )

    def emit_ended(self, activation: Activation, member: Member | None, verdict: Verdict) -> None:
        """A message has its verdict, and it is committed."""
        name = _EVENT_NAMES.get(verdict.event)
        if name is None:
            return
        wire_name = member.body.name if member is not None else ""
        attempt = member.item.attempt if member is not None else 0
        error = ""
        if verdict.event == Event.FAIL.value:
            told = plain_of(verdict.reply)
            error = f"{told['error_type']}: {told['text']}"
        names: tuple[EventName, ...] = (name,)
        if verdict.event in (Event.FAIL.value, Event.INTERRUPT.value):
            names = (name, "dead-lettered")
        for each in names:
            if self.listeners.wants(each):
                self.listeners.emit(
                    LifecycleEvent(
                        each,
                        f"{activation.entity}/{verdict.unique}",
                        activation.ref,
                        wire_name,
                        attempt,
                        error,
                    )
                )

    def _emit(self, entity: str, unique: str, body: bytes, names: tuple[EventName, ...]) -> None:
        if not self.listeners.active:
            return
        try:
            ref, _ = split_message_id(f"{entity}/{unique}")
            wire_name = unpack_body(body).name if body else ""
        except ValueError as error:
            logger.warning("%s/%s is damaged, and nobody hears of it: %s", entity, unique, error)
            return
        for name in names:
            if self.listeners.wants(name):
                self.listeners.emit(LifecycleEvent(name, f"{entity}/{unique}", ref, wire_name))


def _is_tell(body: bytes) -> bool:
    try:
        return not unpack_body(body).waited_for
    except ValueError:
        return False
