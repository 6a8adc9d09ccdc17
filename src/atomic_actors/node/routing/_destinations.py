"""What a call is checked for before anything is sent: the kind, the message, its content, its size.

A kind that has no handlers here belongs to other nodes, of this service or of another one. It is looked up
once (`_remote_kinds`); what goes to another service goes over a journal of its own (`_other_services`). Where both are known,
a call is checked without waiting, as it is for a kind of this node.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import Any, Final, cast

import anyio
from attrs import define, field

from atomic_actors.actors._kinds import BoundKind
from atomic_actors.actors._messages import Message, RawMessage, target_of, wire_name_of
from atomic_actors.base._config import Config
from atomic_actors.base._errors import NotSupported, StoreUnavailable, UnknownKind, UnknownMessageType
from atomic_actors.base._records import EntityRef, partition_of
from atomic_actors.base._telemetry import logger
from atomic_actors.codec._codec import Codec, Coder
from atomic_actors.codec._envelope import NO_HEADERS, encode_envelope
from atomic_actors.contracts._call_checks import ForeignClass, ForeignMessages, check_size, resolve_target
from atomic_actors.contracts._contracts import RemoteKind
from atomic_actors.contracts._remote_kinds import RemoteKinds
from atomic_actors.journal.commit._commit_queue import CommitQueue
from atomic_actors.node.routing._other_services import ServiceJournals

__all__ = ("CallChecker", "CheckedCall", "Encoded")

#: How soon a turn that has to look a kind up tries again while the store is away.
LOOK_UP_AGAIN_S: Final = 0.2


@define(eq=False, slots=True, kw_only=True)
class CheckedCall:
    """A checked call: where it goes and what it carries."""

    ref: EntityRef
    entity: str
    #: Of another service, or "" for this node's.
    service: str
    partition: int
    #: None for what an outbox carries to another service.
    journal: CommitQueue | None
    max_depth: int
    #: None where this node has no handlers for it.
    kind: BoundKind | None
    name: str
    payload: bytes
    reply_coder: Coder
    reply_type: Any
    is_volatile: bool = False


@define(eq=False, kw_only=True)
class Encoded:
    """A message of an outbox: where it goes, and what it carries."""

    #: Of another service, or "" for this node's.
    service: str
    partition: int
    entity: str
    name: str
    envelope: bytes


@define(eq=False, kw_only=True)
class CallChecker:
    """Checks calls, and finds out where they go.

    Args:
        config: time limits and sizes.
        kinds: what this node has handlers for.
        journal: of this node's own service.
        known: the kinds of other nodes.
        service_journals: the ways to other services.
    """

    config: Config
    codec: Codec
    kinds: dict[str, BoundKind]
    journal: CommitQueue
    remote_kinds: RemoteKinds
    service_journals: ServiceJournals
    service: str = field(init=False)
    partitions: int = field(init=False)
    _foreign: ForeignMessages = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.service, self.partitions = self.config.service, self.config.partitions
        self._foreign = ForeignMessages(self.codec)

    def encode(self, entity: EntityRef, message: Message[Any]) -> Encoded:
        """Address, wire name and envelope of an outbox message, whose kind was looked up (`look_up`).

        Raises:
            UsageError: the kind, the message or its content is wrong.
        """
        call = self.check(entity, message, for_outbox=True)
        if call is None:
            raise UnknownKind(f"outbox: kind {entity.kind!r} is unknown")
        if call.is_volatile:
            raise NotSupported(f"outbox: kind {call.ref.kind!r} is volatile; an outbox is for durable kinds")
        return Encoded(
            service=call.service,
            partition=call.partition,
            entity=call.entity,
            name=call.name,
            envelope=encode_envelope(NO_HEADERS, call.payload),
        )

    def look_up_outbox(
        self, outbox: Iterable[tuple[EntityRef, Message[Any]]]
    ) -> Coroutine[Any, Any, None] | None:
        """What has to be awaited before the messages of an outbox can be encoded, if anything has to."""
        missing: list[tuple[EntityRef, Message[Any]]] = []
        for entity, message in outbox:
            if entity.kind not in self.kinds and self.remote_kinds.registry is not None:
                known = self.remote_kinds.get(entity.kind)
                if known is None or not known.takes(wire_name_of(message)):
                    missing.append((entity, message))
        return self._look_up_all(missing) if missing else None

    async def _look_up_all(self, missing: Iterable[tuple[EntityRef, Message[Any]]]) -> None:
        for entity, message in missing:
            while True:
                try:
                    await self.remote_kinds.find(entity.kind, wire_name_of(message))
                    break
                except StoreUnavailable as error:
                    # The handler has run. Its turn waits for the store, as its commit would.
                    logger.info("cannot look up kind %r now: %s", entity.kind, error)
                    await anyio.sleep(LOOK_UP_AGAIN_S)

    async def look_up(self, target: object, message: object, limit_s: float = 0.0) -> CheckedCall:
        """Check a call; look up what has to be known for that.

        Raises:
            UsageError: as `check`.
            StoreUnavailable: it had to be looked up, and the store gave no answer.
        """
        call = self.check(target, message)
        if call is not None:
            return call
        if message is None:
            message, target = target, target_of(cast("Message[Any]", target))
        entity = cast("EntityRef", target)
        if not self.journal.available:
            raise StoreUnavailable(
                f"nothing was sent: kind {entity.kind!r} is not known here, and the store cannot be reached"
            )
        limit_s = min(limit_s or self.config.accept_timeout_s, self.config.accept_timeout_s)
        try:
            with anyio.fail_after(limit_s):
                known = await self.remote_kinds.find(entity.kind, _name_of(message))
                if self._is_elsewhere(known):
                    await self.service_journals.open(known)
        except TimeoutError:
            raise StoreUnavailable(
                f"nothing was sent: kind {entity.kind!r} could not be looked up within {limit_s:g} s"
            ) from None
        call = self.check(entity, message)
        if call is None:
            raise StoreUnavailable(f"nothing was sent: the connection to service {known.service!r} was lost")
        return call

    def check(self, target: object, message: object, *, for_outbox: bool = False) -> CheckedCall | None:
        """Check a call; None where something has to be looked up or opened first.

        Raises:
            UsageError: the kind, the message or its content is wrong.
        """
        if message is None or type(target) is not EntityRef:
            target, message = resolve_target(target, message)
        kind, known = self.kinds.get(target.kind), None
        if kind is None and (self.remote_kinds.registry is not None or self.kinds):
            known = self.remote_kinds.get(target.kind)
            if known is None:
                self._check_can_be_known(target.kind)
                return None
            wanted = _name_of(message)
            if wanted and not known.takes(wanted):
                return None
        cls: type[Any] = type(message)
        if cls is RawMessage:
            name, payload, reply_coder, reply_type = self._check_raw(kind, cast("RawMessage", message))
        else:
            handler = kind.by_type.get(cls) if kind is not None else None
            if handler is not None:
                name, reply_type = handler.spec.name, handler.spec.reply_type
                payload, reply_coder = handler.payload_coder.encode(message), handler.reply_coder
            else:
                foreign = self._foreign_message(kind, message)
                name, reply_type = foreign.name, foreign.reply_type
                payload, reply_coder = foreign.coder.encode(message), foreign.reply_coder
        check_size(name, target, payload, self.config.max_payload_bytes)
        entity = str(target)
        service, partitions = "", self.partitions
        journal: CommitQueue | None = self.journal
        max_depth = self.config.max_depth if kind is None else kind.settings.max_depth
        if known is not None:
            max_depth = known.max_depth
            if self._is_elsewhere(known):
                service, partitions = known.service, known.partitions
                journal = None if for_outbox else self.service_journals.get(service)
                if journal is None and not for_outbox:
                    return None
        return CheckedCall(
            ref=target,
            entity=entity,
            service=service,
            partition=partition_of(entity, partitions),
            journal=journal,
            max_depth=max_depth,
            kind=kind,
            name=name,
            payload=payload,
            reply_coder=reply_coder,
            reply_type=reply_type,
            is_volatile=not (kind.durable if kind is not None else known is None or known.durable),
        )

    def _check_can_be_known(self, kind: str) -> None:
        """Nothing is known of a kind that has no handlers here: it has to be looked up, if that can be.

        Raises:
            UnknownKind: this node knows only its own kinds.
        """
        if self.remote_kinds.registry is None:
            raise UnknownKind(
                f"kind {kind!r} is not known here; Config(actors=[...]) has {', '.join(sorted(self.kinds))}"
            )

    def _is_elsewhere(self, known: RemoteKind) -> bool:
        """Whether a kind's messages go to another journal than this node's own.

        A node that only sends does not need to know how many partitions its service has.
        """
        return known.service != self.service or known.partitions != self.partitions

    def is_volatile(self, kind: str) -> bool:
        """Whether a kind is known to be volatile."""
        here, known = self.kinds.get(kind), self.remote_kinds.get(kind)
        return not here.durable if here is not None else known is not None and not known.durable

    def _check_raw(self, kind: BoundKind | None, message: RawMessage) -> tuple[str, bytes, Coder, Any]:
        if kind is not None and kind.handler_for(message.name) is None:
            raise self._no_handler(kind, message.name)
        coder = self.codec.coder(Any)
        return message.name, coder.encode(message.payload), coder, Any

    def _foreign_message(self, kind: BoundKind | None, message: object) -> ForeignClass:
        foreign = self._foreign.class_of(message)
        if kind is not None and kind.handler_for(foreign.name) is None:
            raise self._no_handler(kind, foreign.name)
        return foreign

    def _no_handler(self, kind: BoundKind, name: str) -> UnknownMessageType:
        names = ", ".join(sorted(kind.by_name)) or "none"
        return UnknownMessageType(
            f"kind {kind.name!r} has no handler for {name!r}; it has {names}. Add one with @handler"
        )

    async def place_of(self, ref: EntityRef) -> tuple[CommitQueue, int, str]:
        """The journal and the partition of an entity, and the other service that it is in, or "".

        Raises:
            UnknownKind: its kind is not known.
            StoreUnavailable: it had to be looked up, and the store gave no answer.
        """
        if ref.kind not in self.kinds and self.remote_kinds.registry is not None:
            known = self.remote_kinds.get(ref.kind) or await self.remote_kinds.find(ref.kind)
            if self._is_elsewhere(known):
                journal = self.service_journals.get(known.service) or await self.service_journals.open(known)
                return journal, partition_of(str(ref), known.partitions), known.service
        elif ref.kind not in self.kinds and self.kinds:
            self._check_can_be_known(ref.kind)
        return self.journal, partition_of(str(ref), self.partitions), ""


def _name_of(message: object) -> str:
    """The wire name of a message; "" for what is none."""
    if not issubclass(type(message), Message):
        return ""
    return wire_name_of(cast("Message[Any]", message))
