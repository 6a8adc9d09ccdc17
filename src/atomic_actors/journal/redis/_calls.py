"""What a call of `aa1_commit` is put together from: the names of keys, and values as bytes."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from atomic_actors.journal._protocol import JournalSettings, Step, Target

__all__ = (
    "FLAGS",
    "Call",
    "EntityKeys",
    "KeyNames",
    "PartitionKeys",
    "number_bytes",
    "policy_bytes",
    "target_bytes",
)

#: Entities whose keys are kept; all are forgotten when there are more.
CACHED_ENTITIES_MAX: Final = 20_000

#: The bytes of False and True.
FLAGS: Final = (b"0", b"1")
#: The bytes of the numbers that nearly every step holds.
_NUMBERS: Final = {value: b"%d" % value for value in range(-1, 1024)}

#: An entity's name, its record, its log, and what its outcomes' and used keys' names begin with.
EntityKeys = tuple[bytes, bytes, bytes, bytes, bytes]


class PartitionKeys:
    """The names of one partition's keys."""

    __slots__ = ("entities", "heads", "inbound", "index", "letters", "outbound", "prefix", "streams")

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix
        self.heads = (prefix + b":L", prefix + b":C", prefix + b":run", prefix + b":ready")
        self.streams = prefix + b":w"
        self.inbound = prefix + b":i"
        self.letters = prefix + b":dl"
        self.index = prefix + b":dlx"
        self.outbound = prefix + b":x:"
        self.entities: dict[str, EntityKeys] = {}


class Call(Struct, eq=False, kw_only=True):
    """One `aa1_commit` while it is put together."""

    keys: list[bytes]
    arguments: list[bytes]
    #: Position of each partition in the call, and their order.
    partitions: dict[int, bytes]
    policies: dict[str, bytes]
    steps: list[Step]


class KeyNames:
    """The names of the keys of one namespace and service.

    Args:
        settings: which namespace and which service.
    """

    def __init__(self, settings: JournalSettings) -> None:
        self.settings = settings
        self._partitions: dict[int, PartitionKeys] = {}
        self._cached = 0

    def prefix(self, partition: int) -> str:
        """What the names of a partition's keys begin with; the braces keep them in one hash slot."""
        return f"{{{self.settings.namespace}:{self.settings.service}:{partition}}}"

    def lease_key(self, partition: int) -> bytes:
        """The key of a partition's lease, for `aa1_renew`."""
        return self.partition(partition).heads[0]

    def partition(self, number: int) -> PartitionKeys:
        """The names of a partition's keys."""
        keys = self._partitions.get(number)
        if keys is None:
            keys = self._partitions[number] = PartitionKeys(self.prefix(number).encode())
        return keys

    def entity(self, partition: PartitionKeys, entity: str) -> EntityKeys:
        """The names of an entity's keys."""
        keys = partition.entities.get(entity)
        if keys is None:
            if self._cached >= CACHED_ENTITIES_MAX:
                self._cached = 0
                for other in self._partitions.values():
                    other.entities.clear()
            self._cached += 1
            name = entity.encode()
            prefix = partition.prefix
            keys = partition.entities[entity] = (
                name,
                b"%b:e:%b" % (prefix, name),
                b"%b:q:%b" % (prefix, name),
                b"%b:o:%b/" % (prefix, name),
                b"%b:k:%b:" % (prefix, name),
            )
        return keys


# Values.


def number_bytes(value: int) -> bytes:
    """A whole number."""
    return _NUMBERS.get(value) or b"%d" % value


def policy_bytes(call: Call, text: str) -> bytes:
    """A policy, as its position among those of the call."""
    policies = call.policies
    index = policies.get(text)
    if index is None:
        index = policies[text] = number_bytes(len(policies) + 1)
    return index


def target_bytes(stream: Target) -> bytes:
    """The other end of a stream."""
    return number_bytes(stream) if isinstance(stream, int) else stream.encode()
