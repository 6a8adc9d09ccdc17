"""The sender's side of volatile messages to other nodes: who owns the partition, and in which order to send.

A *route* leads to the owner of one partition. It is looked up in the store once, and again where the owner
says that the partition has moved, where the owner's channel has no listener, or where an answer is late. While
it is known, a message costs no look-up; while it is not, messages wait in their order, each to the end of
its own time.

At most once: what was handed over is sent again only where it is certain that it did not run and will not.
A route numbers its frames in streams, of which the owner takes nothing but the beginning (`_host`).
So where one frame was refused or not received, all that follow it in the stream did not run either, and
all of them go out again in a new stream, in order. Where it is not known whether a frame arrived, it stays
with its asker to say that it timed out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from attrs import define, field

from atomic_actors.base._errors import (
    AcceptanceUnknown,
    AskTimeout,
    AtomicActorsError,
    HandlerFailed,
    Interrupted,
    OutcomeUnknown,
    OwnerUnavailable,
    QueueDepthExceeded,
    StoreUnavailable,
    SystemNotRunning,
    error_from_code,
)
from atomic_actors.base._oneshot import Backend, OneShot
from atomic_actors.base._telemetry import logger
from atomic_actors.base._timer_wheel import TimerWheel
from atomic_actors.codec._frames import AskFrame, ForgetFrame, MessageFrame, ReportFrame, TellFrame
from atomic_actors.contracts._outcomes import Refusals
from atomic_actors.journal._protocol import JournalUnavailable, LeaseState, ReadLease, Result
from atomic_actors.journal.commit._commit_queue import CommitQueue
from atomic_actors.node.ownership._identity import NodeIdentity
from atomic_actors.node.routing._node_messenger import NodeMessenger

__all__ = ("VolatileRoutes",)

#: Between two look-ups of one partition that find no owner, growing.
LOOK_UP_FIRST_S: Final = 0.01
LOOK_UP_MAX_S: Final = 0.25
#: An owner that has not answered so long is looked up: it may not be the owner any more.
WATCH_S: Final = 0.5
#: How long a tell is kept, in case the owner refuses it.
KEEP_TELLS_S: Final = 2.0
#: Messages that may wait for the owner of one partition.
WAITING_MAX: Final = 10_000


class _Outgoing:
    """A message on its way to an owner.

    Invariant: `oneshot` is set at most once; `done` says that nothing more is to be done for it. It is in its
    route's `waiting`, or in its `frames` (then `stream` is not 0), or in neither.
    """

    __slots__ = (
        "claim",
        "deadline_s",
        "done",
        "entity",
        "is_asked",
        "is_doubtful",
        "name",
        "number",
        "oneshot",
        "order",
        "path",
        "payload",
        "route",
        "sent_s",
        "stream",
    )

    def __init__(
        self,
        route: _Route,
        *,
        order: int,
        entity: str,
        name: str,
        payload: bytes,
        deadline_s: float,
        path: tuple[str, ...],
        oneshot: OneShot[Any],
        is_asked: bool,
    ) -> None:
        self.route = route
        self.order = order
        self.entity = entity
        self.name = name
        self.payload = payload
        self.deadline_s = deadline_s
        self.path = path
        self.oneshot = oneshot
        self.is_asked = is_asked
        self.done = False
        self.claim = ""
        self.stream = 0
        self.number = 0
        self.sent_s = 0.0
        #: The partition was seen with another claim since it was sent.
        self.is_doubtful = False

    @property
    def place(self) -> tuple[int, int]:
        return self.stream, self.number


@define(eq=False, kw_only=True)
class _Route:
    """The way to the owner of one partition."""

    journal: CommitQueue
    partition: int
    #: The owner, as the last look-up found it; "" while it has to be looked up.
    node_id: str = ""
    claim: str = ""
    #: The stream that frames go out in; 0 where the next frame begins one.
    stream: int = 0
    number: int = 0
    waiting: deque[_Outgoing] = field(factory=deque[_Outgoing])
    #: What was sent and may still have to be sent again, or waits for its answer; in the order of sending.
    frames: dict[tuple[int, int], _Outgoing] = field(factory=dict[tuple[int, int], _Outgoing])
    #: How many of those are asks.
    asks: int = 0
    #: The others, as they were sent.
    tells: deque[_Outgoing] = field(factory=deque[_Outgoing])
    is_polling: bool = False
    next_poll_s: float = 0.0
    delay_s: float = LOOK_UP_FIRST_S
    heard_s: float = 0.0
    #: Why nothing goes out, for errors of messages that waited in vain.
    trouble: str = "its owner was not found in time"


@define(eq=False, kw_only=True)
class VolatileRoutes:
    """Sends volatile messages to the owners of their partitions.

    Args:
        messenger: how frames go out.
        node_id: this node.
        refusals: makes the asker's exception of a refusal.
        accept_timeout_s: how long a tell may wait for an owner.
    """

    messenger: NodeMessenger
    node_id: str
    backend: Backend
    refusals: Refusals
    accept_timeout_s: float
    #: By service and partition.
    _routes: dict[tuple[str, int], _Route] = field(factory=dict[tuple[str, int], _Route], init=False)
    _frames: dict[tuple[int, int], _Outgoing] = field(factory=dict[tuple[int, int], _Outgoing], init=False)
    _ends: TimerWheel[_Outgoing] = field(factory=TimerWheel[_Outgoing], init=False)
    _orders: int = field(default=0, init=False)
    _streams: int = field(default=0, init=False)
    #: How many look-ups there were.
    looked_up: int = field(default=0, init=False)

    # Sending.

    async def ask(
        self,
        journal: CommitQueue,
        partition: int,
        *,
        entity: str,
        name: str,
        payload: bytes,
        timeout_s: float,
        path: tuple[str, ...],
    ) -> bytes:
        """Send a message to the owner of its entity and wait for the encoded reply.

        Args:
            journal: of the service that has the partition.
            partition: the entity's.
            entity: `kind/id`.
            name: the message's wire name.
            payload: its content, encoded.
            timeout_s: how long to wait; 0 without end.
            path: the entities that wait for this ask.

        Raises:
            NotExecuted: it never ran: `OwnerUnavailable`, `StoreUnavailable`, `QueueDepthExceeded`, ...
            AskTimeout, Interrupted: it may have run.
            Refused, HandlerFailed: it ran.
            UsageError: the owner does not know the kind or the message, or cannot send the reply.
        """
        outgoing = self._send(
            journal,
            partition,
            entity=entity,
            name=name,
            payload=payload,
            timeout_s=timeout_s,
            path=path,
            is_asked=True,
        )
        try:
            value = await outgoing.oneshot
        except BaseException:
            self._abandon(outgoing)
            raise
        if isinstance(value, BaseException):
            raise value
        assert isinstance(value, bytes)
        return value

    def tell(
        self, journal: CommitQueue, partition: int, entity: str, name: str, payload: bytes
    ) -> OneShot[AtomicActorsError | int]:
        """Send a message whose sender does not wait for the reply.

        Returns:
            A one-shot that gets the error where the message did not go out, or else a number that no other
            message of this node has. It is set once the store has passed the message on to the owner.

        Raises:
            QueueDepthExceeded: too many wait for the owner of this partition already.
        """
        outgoing = self._send(
            journal,
            partition,
            entity=entity,
            name=name,
            payload=payload,
            timeout_s=self.accept_timeout_s,
            path=(),
            is_asked=False,
        )
        return outgoing.oneshot

    def waits_for(self, journal: CommitQueue, partition: int) -> bool:
        """Whether messages wait for the partition's owner: what comes after them must not overtake them."""
        route = self._routes.get((journal.settings.service, partition))
        return route is not None and bool(route.waiting)

    def _send(
        self,
        journal: CommitQueue,
        partition: int,
        *,
        entity: str,
        name: str,
        payload: bytes,
        timeout_s: float,
        path: tuple[str, ...],
        is_asked: bool,
    ) -> _Outgoing:
        key = (journal.settings.service, partition)
        route = self._routes.get(key)
        if route is None:
            route = self._routes[key] = _Route(journal=journal, partition=partition)
        elif route.journal is not journal:
            # The way to another service was closed, and nodes asked there do not answer any more.
            route.journal, route.is_polling = journal, False
        if len(route.waiting) >= WAITING_MAX:
            raise QueueDepthExceeded(
                f"{entity}: {WAITING_MAX} messages are already waiting for the owner of partition {partition}"
            )
        self._orders += 1
        deadline_s = self.backend.clock() + timeout_s if timeout_s else float("inf")
        outgoing = _Outgoing(
            route,
            order=self._orders,
            entity=entity,
            name=name,
            payload=payload,
            deadline_s=deadline_s,
            path=path,
            oneshot=self.backend.new_oneshot(),
            is_asked=is_asked,
        )
        if timeout_s:
            self._ends.add(deadline_s, outgoing)
        route.waiting.append(outgoing)
        self._flush(route)
        return outgoing

    def _flush(self, route: _Route) -> None:
        """Send what waits, where it is known whereto; else have that looked up."""
        if not self.messenger.is_heard:
            route.trouble = "this node's channel is not heard now, so no answer could come"
            return
        waiting = route.waiting
        while waiting and route.node_id:
            outgoing = waiting.popleft()
            if not outgoing.done:
                self._push(route, outgoing)
        if waiting and not route.is_polling and route.next_poll_s <= self.backend.clock():
            self._look_up_owner(route)

    def _push(self, route: _Route, outgoing: _Outgoing) -> None:
        if not route.stream:
            self._streams += 1
            route.stream, route.number = self._streams, 0
        route.number += 1
        outgoing.claim, outgoing.stream, outgoing.number = route.claim, route.stream, route.number
        outgoing.sent_s, outgoing.is_doubtful = self.backend.clock(), False
        place = outgoing.place
        if not route.frames:
            route.heard_s = outgoing.sent_s
        route.frames[place] = self._frames[place] = outgoing
        frame: MessageFrame
        if outgoing.is_asked:
            route.asks += 1
            left_s = outgoing.deadline_s - outgoing.sent_s
            frame = AskFrame(
                partition=route.partition,
                claim=route.claim,
                entity_key=outgoing.entity,
                name=outgoing.name,
                payload=outgoing.payload,
                sender=self.node_id,
                stream=route.stream,
                number=route.number,
                left_ms=0 if left_s == float("inf") else max(int(left_s * 1000), 1),
                path=outgoing.path,
            )
        else:
            route.tells.append(outgoing)
            frame = TellFrame(
                partition=route.partition,
                claim=route.claim,
                entity_key=outgoing.entity,
                name=outgoing.name,
                payload=outgoing.payload,
                sender=self.node_id,
                stream=route.stream,
                number=route.number,
            )
        self.messenger.push(route.node_id, frame, lambda heard: self._on_sent(outgoing, place, heard))

    def _forget(self, outgoing: _Outgoing) -> None:
        route, place = outgoing.route, outgoing.place
        if self._frames.pop(place, None) is not None:
            del route.frames[place]
            route.asks -= outgoing.is_asked

    def _resolve(self, outgoing: _Outgoing, value: object) -> None:
        """Nothing more is to be done for a message."""
        self._forget(outgoing)
        if not outgoing.done:
            outgoing.done = True
            if outgoing.is_asked or not outgoing.oneshot.is_set():
                outgoing.oneshot.set(value)
            elif isinstance(value, AtomicActorsError):
                logger.warning("a tell to the volatile %s was lost: %s", outgoing.entity, value)

    def _abandon(self, outgoing: _Outgoing) -> None:
        """The ask was cancelled: what has not begun need not run."""
        outgoing.done = True
        if self._frames.get(outgoing.place) is outgoing:
            self._forget(outgoing)
            frame = ForgetFrame(self.node_id, outgoing.stream, outgoing.number)
            self.messenger.push(outgoing.route.node_id, frame)

    # What becomes of frames.

    def _on_sent(self, outgoing: _Outgoing, place: tuple[int, int], heard: int | None) -> None:
        if self._frames.get(place) is not outgoing:
            return
        route = outgoing.route
        if heard == 0:
            route.trouble = f"no listener on the channel of its owner, node {route.node_id or 'unknown'}"
            self._refused(route, place)
        elif heard is None:
            # It may have arrived: the next frames are the beginning of another stream.
            if route.stream == outgoing.stream:
                route.stream = 0
            if not outgoing.is_asked:
                text = f"{outgoing.entity}: it is unknown whether the store passed the message on"
                self._resolve(outgoing, AcceptanceUnknown(text))
        elif not outgoing.is_asked and not outgoing.oneshot.is_set():
            outgoing.oneshot.set(outgoing.order)

    def on_report(self, report: ReportFrame) -> None:
        """What became of a message that this node sent."""
        place = (report.stream, report.number)
        outgoing = self._frames.get(place)
        if outgoing is None:
            return
        route = outgoing.route
        route.heard_s = self.backend.clock()
        if report.word == "moved":
            route.trouble = f"node {route.node_id or 'unknown'} does not own its partition"
            self._refused(route, place)
            return
        if report.word == "dropped":
            self._again(route, [outgoing])
            return
        route.delay_s = LOOK_UP_FIRST_S
        self._resolve(outgoing, self._read_report(report))

    def _read_report(self, report: ReportFrame) -> bytes | AtomicActorsError:
        """The encoded reply, or the error that the owner reports."""
        match report.word, report.data:
            case "completed", bytes(reply):
                return reply
            case "refused", bytes(refusal):
                return self.refusals.read_refusal(refusal)
            case "failed", [str(error_type), str(text)]:
                return HandlerFailed(text, error_type=error_type)
            case "error", [str(code), str(text)]:
                return error_from_code(code, text)
            case _:
                return OutcomeUnknown("it ran, or was refused: the owner's answer cannot be decoded")

    def _refused(self, route: _Route, place: tuple[int, int]) -> None:
        """A frame was not taken: nothing behind it in its stream was or will be."""
        stream, number = place
        back = [each for each in route.frames.values() if each.stream == stream and each.number >= number]
        if stream == route.stream:
            route.stream = 0
        self._again(route, back)

    def _again(self, route: _Route, back: Sequence[_Outgoing]) -> None:
        """Send messages again that certainly did not run, when it is known whereto."""
        for outgoing in back:
            self._forget(outgoing)
        everything = (*route.waiting, *(outgoing for outgoing in back if not outgoing.done))
        route.waiting = deque(sorted(everything, key=lambda outgoing: outgoing.order))
        route.node_id, route.stream = "", 0
        # Not at once: others that were sent with these may be on their way back, and belong before what is new.
        route.next_poll_s = max(route.next_poll_s, self.backend.clock() + LOOK_UP_FIRST_S)

    # Looking up who owns a partition.

    def _look_up_owner(self, route: _Route) -> None:
        route.is_polling = True
        route.waiting = deque(outgoing for outgoing in route.waiting if not outgoing.done)
        route.next_poll_s = self.backend.clock() + route.delay_s
        route.delay_s = min(route.delay_s * 2, LOOK_UP_MAX_S)
        self.looked_up += 1

        def on_lease(result: Result | JournalUnavailable) -> None:
            route.is_polling = False
            self._on_lease(route, result)

        try:
            route.journal.submit(ReadLease(route.partition), on_lease)
        except JournalUnavailable as error:
            route.is_polling = False
            unavailable, waiting = str(error), route.waiting
            route.waiting = deque()
            for outgoing in waiting:
                self._resolve(outgoing, StoreUnavailable(f"nothing was sent: {unavailable}"))

    def _on_lease(self, route: _Route, result: Result | JournalUnavailable) -> None:
        if isinstance(result, LeaseState) and result.claim:
            node_id, claim = NodeIdentity.id_in(result.node), result.claim
            if not node_id:
                route.trouble = "the owner in its lease cannot be decoded"
        elif isinstance(result, LeaseState):
            node_id = claim = ""
            route.trouble = "its partition has no owner"
        else:
            route.trouble = f"its owner could not be looked up: {result}"
            return
        if claim != route.claim:
            route.stream = 0
            if claim:
                route.delay_s = LOOK_UP_FIRST_S
        route.node_id, route.claim = node_id, claim
        route.heard_s = self.backend.clock()
        self._doubt(route)
        self._flush(route)

    def _doubt(self, route: _Route) -> None:
        """End what was sent to an owner that is gone: but it may have answered, so only at the second look."""
        for outgoing in list(route.frames.values()):
            if outgoing.claim == route.claim:
                continue
            if outgoing.is_doubtful and outgoing.is_asked:
                text = (
                    f"the node that owned {outgoing.entity} does not own it any more: {outgoing.name} may have run "
                    "wholly, partly or not at all; a volatile kind has no dead letters"
                )
                self._resolve(outgoing, Interrupted(text))
            outgoing.is_doubtful = True

    # What the sweeper does.

    def heard(self) -> None:
        """This node's channel is heard (again): answers can come."""
        for route in self._routes.values():
            self._flush(route)

    def tick(self, now_s: float) -> None:
        """End messages whose time is up; look up owners that are unknown, or silent for long."""
        for outgoing in self._ends.due(now_s):
            if not outgoing.done:
                self._time_out(outgoing)
        for route in self._routes.values():
            tells = route.tells
            while tells and (tells[0].done or tells[0].sent_s + KEEP_TELLS_S <= now_s):
                self._settle_tell(tells.popleft())
            if route.waiting:
                self._flush(route)
            elif route.asks and not route.is_polling and route.heard_s + WATCH_S <= now_s:
                self._look_up_owner(route)

    def _settle_tell(self, outgoing: _Outgoing) -> None:
        """The owner would have refused it by now."""
        if self._frames.get(outgoing.place) is outgoing and outgoing.oneshot.is_set():
            self._forget(outgoing)
            outgoing.done = True

    def _time_out(self, outgoing: _Outgoing) -> None:
        is_sent = self._frames.get(outgoing.place) is outgoing
        if not is_sent:
            text = f"{outgoing.entity}: {outgoing.route.trouble}; the message was not handed over"
            self._resolve(outgoing, OwnerUnavailable(text))
        elif outgoing.is_asked:
            self._resolve(outgoing, AskTimeout("no reply in time; a volatile kind keeps no result"))
        elif outgoing.oneshot.is_set():
            self._settle_tell(outgoing)
        else:
            text = f"{outgoing.entity}: the store did not confirm in time that it passed the message on"
            self._resolve(outgoing, AcceptanceUnknown(text))

    def abandon_all(self) -> None:
        """The system is left: nothing more comes or goes."""
        for route in self._routes.values():
            for outgoing in (*route.waiting, *route.frames.values()):
                if self._frames.get(outgoing.place) is not outgoing:
                    error: AtomicActorsError = SystemNotRunning(
                        "the actor system was shut down; nothing was sent"
                    )
                else:
                    error = OutcomeUnknown("the actor system was shut down before an answer came")
                if outgoing.is_asked or not outgoing.oneshot.is_set():
                    self._resolve(outgoing, error)
            route.waiting.clear()
