"""The contract of a kind: what its service publishes for senders.

It is JSON, so that tools and other languages can read it: the wire names of the messages with JSON Schemas
of what they carry and of their replies, how deep an entity's log may be, and the limits that hold for every
message of the service. Readers skip what they do not know; a newer release may say more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from attrs import frozen
from msgspec import UNSET, Struct, UnsetType

from atomic_actors.actors._kinds import BoundKind
from atomic_actors.actors._specs import HandlerSpec
from atomic_actors.base._errors import UsageError
from atomic_actors.codec._codec import Codec
from atomic_actors.journal._kind_registry import KindRecord
from atomic_actors.journal._protocol import JournalSettings

__all__ = ("RemoteKind", "contract_of", "read_record")

CONTRACT_VERSION: Final = 1


class _MessageContract(Struct, frozen=True):
    """One message of a kind."""

    query: bool
    #: Left out where the types have no schema.
    payload: dict[str, Any] | UnsetType = UNSET
    reply: dict[str, Any] | UnsetType = UNSET


class _Limits(Struct, frozen=True, kw_only=True):
    """What a sender's steps carry on behalf of the service."""

    result_ttl_ms: int
    dedupe_ttl_ms: int
    partition_depth_limit: int
    partition_dead_letter_limit: int
    dead_letter_ttl_ms: int


class _Contract(Struct, frozen=True, kw_only=True):
    """A kind, as its service describes it."""

    contract: int
    durable: bool
    max_depth: int
    #: The kind has a handler for every other name.
    fallback: bool
    messages: dict[str, _MessageContract]
    limits: _Limits


_encoder: Final = msgspec.json.Encoder(order="sorted")
_decoder: Final = msgspec.json.Decoder(_Contract)


@frozen(eq=False, kw_only=True)
class RemoteKind:
    """A kind that this node has no handlers for, as its service describes it."""

    name: str
    service: str
    partitions: int
    durable: bool
    #: Waiting messages of one entity; 0 means unbounded.
    max_depth: int
    #: The wire names that some release of it takes; None where it takes any.
    messages: frozenset[str] | None
    #: The settings that its journal needs.
    limits: dict[str, int]

    def takes(self, name: str) -> bool:
        """Whether it has a handler for a message of this name."""
        return self.messages is None or name in self.messages

    def journal_settings(self, namespace: str) -> JournalSettings:
        """The settings that a journal of its service needs."""
        return JournalSettings(
            namespace=namespace, service=self.service, partitions=self.partitions, **self.limits
        )


def contract_of(kind: BoundKind, codec: Codec, settings: JournalSettings) -> bytes:
    """The contract of a kind; the same bytes for the same kind."""
    return _encoder.encode(
        _Contract(
            contract=CONTRACT_VERSION,
            durable=kind.durable,
            max_depth=kind.settings.max_depth,
            fallback=kind.fallback is not None,
            messages={name: _message(handler.spec, codec) for name, handler in kind.by_name.items()},
            limits=_Limits(
                result_ttl_ms=settings.result_ttl_ms,
                dedupe_ttl_ms=settings.dedupe_ttl_ms,
                partition_depth_limit=settings.partition_depth_limit,
                partition_dead_letter_limit=settings.partition_dead_letter_limit,
                dead_letter_ttl_ms=settings.dead_letter_ttl_ms,
            ),
        )
    )


def _message(spec: HandlerSpec, codec: Codec) -> _MessageContract:
    return _MessageContract(
        spec.query,
        _schema(codec.json_schema, spec.payload_type),
        _schema(codec.json_schema, spec.reply_type),
    )


def _schema(json_schema: Callable[[Any], dict[str, Any]], type_: Any) -> dict[str, Any] | UnsetType:
    try:
        return json_schema(type_)
    except UsageError:
        return UNSET  # what cannot be described can still be sent


def read_record(name: str, record: KindRecord) -> RemoteKind:
    """What the contracts of a kind say: the newest one, and the names of the release before it.

    Raises:
        ValueError: a contract is not of a form that this release understands.
    """
    contracts = [_read(name, contract) for contract in record.contracts]
    newest = contracts[0]
    return RemoteKind(
        name=name,
        service=record.service,
        partitions=record.partitions,
        durable=newest.durable,
        max_depth=newest.max_depth,
        messages=_names(contracts),
        limits=msgspec.structs.asdict(newest.limits),
    )


def _names(contracts: Sequence[_Contract]) -> frozenset[str] | None:
    if any(contract.fallback for contract in contracts):
        return None
    return frozenset(name for contract in contracts for name in contract.messages)


def _read(name: str, contract: bytes) -> _Contract:
    try:
        return _decoder.decode(contract)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the contract of kind {name!r} cannot be read: {error}") from error
