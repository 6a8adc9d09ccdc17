"""Steps to the keys and arguments of `aa1_commit`; its answers are read by `_answers`.

The other half is the Lua library in `lua/`. `_forms.py` declares the keys and arguments of each step; the
encoders of the steps of a fixed size, and the readers in Lua, are generated from it. This side runs once
or twice a message, so it appends ready-made bytes to two flat lists and keeps the keys of the entities
that it has seen lately.

A call is: the protocol version, seven settings, the policies that its steps name by position, the
partitions likewise, then the steps. Its keys are four a partition, then each step's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, cast

from msgspec import Struct

from atomic_actors.journal._protocol import (
    PROTOCOL_VERSION,
    Append,
    Audit,
    ClaimPartition,
    CountKind,
    Defer,
    Expire,
    Finish,
    Inspect,
    Interrupt,
    JournalSettings,
    ListDeadLetters,
    Outgoing,
    Park,
    Purge,
    ReadLease,
    ReadOutcome,
    RelayAck,
    RelayIn,
    RelayRead,
    Release,
    Renew,
    Replay,
    Resume,
    SettleLost,
    Step,
    Sweep,
    Take,
    Target,
    Withdraw,
)

__all__ = ("Call", "Wire")

#: A hundred years. A store refuses times to live that overflow, and a step may not fail on its last write.
TTL_MAX_MS: Final = 100 * 366 * 86_400_000

#: Messages of one entity that are appended together.
APPEND_RUN_MAX: Final = 512

#: Entities whose keys are kept; all are forgotten when there are more.
CACHED_ENTITIES_MAX: Final = 20_000

_FLAGS: Final = (b"0", b"1")
#: The bytes of the numbers that nearly every step holds.
_NUMBERS: Final = {number: b"%d" % number for number in range(-1, 1024)}
_DEAD: Final = frozenset(("fail", "interrupt"))

#: An entity's name, its record, its log, and what its outcomes' and used keys' names begin with.
EntityKeys = tuple[bytes, bytes, bytes, bytes, bytes]


def _number(value: int) -> bytes:
    return _NUMBERS.get(value) or b"%d" % value


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


class Call(Struct, eq=False):
    """One `aa1_commit` while it is put together."""

    keys: list[bytes]
    arguments: list[bytes]
    #: Position of each partition in the call, and their order.
    partitions: dict[int, bytes]
    policies: dict[str, bytes]
    steps: list[Step]


class Wire:
    """The names and the encoding of one namespace and service.

    Args:
        settings: what the library has to know goes along with every call.
    """

    def __init__(self, settings: JournalSettings) -> None:
        self.settings = settings
        self._partitions: dict[int, PartitionKeys] = {}
        self._cached = 0
        self._head = [
            b"%d" % number
            for number in (
                PROTOCOL_VERSION,
                min(settings.result_ttl_ms, TTL_MAX_MS),
                min(settings.dedupe_ttl_ms, TTL_MAX_MS),
                settings.partition_depth_limit,
                settings.partition_dead_letter_limit,
                settings.dead_letter_ttl_ms,
                settings.partitions,
            )
        ]

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

    # Calls.

    def encode(self, steps: Sequence[Step], others: Iterable[int] = ()) -> Call:
        """Put a call together: `FCALL aa1_commit <number of keys> <keys> <arguments>`.

        Args:
            steps: what to do.
            others: partitions whose commit numbers are wanted, too; steps may name them as well.
        """
        keys: list[bytes] = []
        arguments: list[bytes] = []
        partitions = {number: _number(index) for index, number in enumerate(others, 1)}
        call = Call(keys, arguments, partitions, {}, list(steps))
        position, count = 0, len(steps)
        while position < count:
            step = steps[position]
            number = step.partition
            index = partitions.get(number)
            if index is None:
                index = partitions[number] = _number(len(partitions) + 1)
            after = position + 1
            if type(step) is Append and after < count and _joins(step, steps[after]):
                while after < count and after - position < APPEND_RUN_MAX and _joins(step, steps[after]):
                    after += 1
                run = cast("Sequence[Append]", steps[position:after])
                _append_run(self, call, run, self.partition(number), index)
            else:
                _ENCODERS[type(step)](self, call, step, self.partition(number), index)
            position = after
        heads = [key for number in partitions for key in self.partition(number).heads]
        heads.extend(keys)
        call.keys = heads
        head = [*self._head, _number(len(partitions)), _number(len(call.policies))]
        head.extend(policy.encode() for policy in call.policies)
        head.extend([b"%d" % number for number in partitions])
        head.extend(arguments)
        call.arguments = head
        return call


def _policy(call: Call, policy: str) -> bytes:
    policies = call.policies
    index = policies.get(policy)
    if index is None:
        index = policies[policy] = _number(len(policies) + 1)
    return index


# Steps that come once or twice a message.


def _joins(first: Append, step: Step) -> bool:
    """Whether a step is one more message for the entity of the first, sent under the same conditions."""
    return (
        type(step) is Append
        and step.entity == first.entity
        and not step.key
        and not first.key
        and step.claim == first.claim
        and step.held_version == first.held_version
        and step.policy == first.policy
        and step.depth_limit == first.depth_limit
        and step.partition == first.partition
    )


def _append_run(wire: Wire, call: Call, steps: Sequence[Append], keys: PartitionKeys, index: bytes) -> None:
    first = steps[0]
    name, record, log, outcome, _ = keys.entities.get(first.entity) or wire.entity(keys, first.entity)
    own_keys = [record, log]
    own = [
        name,
        _number(first.depth_limit),
        first.claim.encode(),
        _policy(call, first.policy),
        _number(first.held_version),
    ]
    for step in steps:
        unique = step.unique.encode()
        own_keys.append(outcome + unique)
        own += (unique, step.body)
    _sized(call, b"append_run", index, own_keys, own)


def _finish(wire: Wire, call: Call, step: Finish, keys: PartitionKeys, index: bytes) -> None:
    name, record, log, outcome, _ = keys.entities.get(step.entity) or wire.entity(keys, step.entity)
    own_keys = [record, log]
    state = step.state
    own = [
        name,
        step.claim.encode(),
        _number(step.turn),
        _number(step.expected_version),
        b"0" if state is None else b"1",
        state or b"",
        _FLAGS[step.park],
        _policy(call, step.policy),
        _number(step.run_limit),
        _number(len(step.verdicts)),
        b"0",
        b"0",
        b"0",
    ]
    dead = False
    for verdict in step.verdicts:
        unique = verdict.unique.encode()
        event = verdict.event
        own_keys.append(outcome + unique)
        own += (unique, event.encode(), verdict.reply, verdict.error, _number(verdict.delay_ms))
        dead = dead or event in _DEAD
    if dead:
        own_keys += (keys.letters, keys.index)
        own[10] = b"1"
    if step.outbox:
        own[11], own[12] = _outbox(wire, step, keys, own_keys, own)
    call.keys += own_keys
    call.arguments += (b"finish", index, _number(len(own_keys)), _number(len(own)))
    call.arguments += own
    for channel, payload in step.pushes:
        call.arguments += (b"push", index, channel, payload)


def _target(target: Target) -> bytes:
    return _number(target) if isinstance(target, int) else target.encode()


def _outbox(
    wire: Wire, step: Finish, keys: PartitionKeys, own_keys: list[bytes], own: list[bytes]
) -> tuple[bytes, bytes]:
    local = 0
    remote: dict[Target, list[Outgoing]] = {}
    for message in step.outbox:
        target = message.target
        if target != step.partition:
            remote.setdefault(target, []).append(message)
            continue
        name, record, log, _, _ = wire.entity(keys, message.entity)
        own_keys += (record, log)
        own += (name, message.unique.encode(), message.body)
        local += 1
    if remote:
        own_keys.append(keys.streams)
    for target, messages in remote.items():
        number = _target(target)
        own_keys.append(keys.outbound + number)
        own += (number, _number(len(messages)))
        for message in messages:
            own += (message.entity.encode(), message.unique.encode(), message.body)
    return _number(local), _number(len(remote))


# The other steps.


def _sized(call: Call, opcode: bytes, index: bytes, keys: Sequence[bytes], own: Sequence[bytes]) -> None:
    call.keys += keys
    call.arguments += (opcode, index, _number(len(keys)), _number(len(own)))
    call.arguments += own


def _interrupt(wire: Wire, call: Call, step: Interrupt, keys: PartitionKeys, index: bytes) -> None:
    name, record, log, outcome, _ = wire.entity(keys, step.entity)
    uniques = [unique.encode() for unique in step.uniques]
    own = [name, step.claim.encode(), _number(step.turn), _FLAGS[step.began], *uniques]
    first = uniques[0] if uniques else b""
    _sized(call, b"interrupt", index, (record, log, keys.letters, keys.index, outcome + first), own)


def _purge(wire: Wire, call: Call, step: Purge, keys: PartitionKeys, index: bytes) -> None:
    ids = [message_id.encode() for message_id in step.message_ids]
    _sized(call, b"purge", index, (keys.letters, keys.index), ids)


def _audit(wire: Wire, call: Call, step: Audit, keys: PartitionKeys, index: bytes) -> None:
    targets = [keys.outbound + b"%d" % target for target in range(wire.settings.partitions)]
    _sized(call, b"audit", index, (keys.index, *targets, keys.streams), (b"w",))


def _relay_in(wire: Wire, call: Call, step: RelayIn, keys: PartitionKeys, index: bytes) -> None:
    own_keys = [keys.inbound]
    own = [_target(step.source), b"%d" % step.incarnation]
    for entry in step.entries:
        name, record, log, _, _ = wire.entity(keys, entry.entity)
        own_keys += (record, log)
        own += (_number(entry.number), name, entry.unique.encode(), entry.body)
    opcode = b"relay_in_after_loss" if step.after_loss else b"relay_in"
    _sized(call, opcode, index, own_keys, own)


# Steps of a fixed size.


# <generated: encoders>



def _append(wire: Wire, call: Call, step: Append, keys: PartitionKeys, index: bytes) -> None:
    name, record, log, outcome, used = keys.entities.get(step.entity) or wire.entity(keys, step.entity)
    unique = step.unique.encode()
    if step.key:
        key = step.key.encode()
        call.keys += (record, log, outcome + unique, used + key)
        call.arguments += (
            b"append_key",
            index,
            name,
            unique,
            step.body,
            step.digest.encode(),
            _number(step.depth_limit),
            step.claim.encode(),
            _policy(call, step.policy),
            _number(step.held_version),
            key,
        )
        return
    call.keys += (record, log, outcome + unique)
    call.arguments += (
        b"append",
        index,
        name,
        unique,
        step.body,
        step.digest.encode(),
        _number(step.depth_limit),
        step.claim.encode(),
        _policy(call, step.policy),
        _number(step.held_version),
    )


def _withdraw(wire: Wire, call: Call, step: Withdraw, keys: PartitionKeys, index: bytes) -> None:
    name, record, log, outcome, used = keys.entities.get(step.entity) or wire.entity(keys, step.entity)
    unique = step.unique.encode()
    key = step.key.encode()
    call.keys += (record, log, outcome + unique, used + key)
    call.arguments += (b"withdraw", index, name, unique, key)


def _outcome(wire: Wire, call: Call, step: ReadOutcome, keys: PartitionKeys, index: bytes) -> None:
    name, record, _, outcome, _ = keys.entities.get(step.entity) or wire.entity(keys, step.entity)
    unique = step.unique.encode()
    call.keys += (record, outcome + unique)
    call.arguments += (b"outcome", index, name, unique)


def _replay(wire: Wire, call: Call, step: Replay, keys: PartitionKeys, index: bytes) -> None:
    name, record, log, outcome, _ = keys.entities.get(step.entity) or wire.entity(keys, step.entity)
    new_unique = step.new_unique.encode()
    call.keys += (record, log, keys.letters, outcome + new_unique)
    call.arguments += (b"replay", index, name, step.unique.encode(), new_unique, _FLAGS[step.at_head])


def _letters(wire: Wire, call: Call, step: ListDeadLetters, keys: PartitionKeys, index: bytes) -> None:
    call.keys += (keys.letters, keys.index)
    call.arguments += (
        b"letters",
        index,
        step.kind.encode(),
        _number(step.after_ms),
        step.after_id.encode(),
        _number(step.limit),
        step.message_id.encode(),
    )


def _park(wire: Wire, call: Call, step: Park | Resume, keys: PartitionKeys, index: bytes) -> None:
    name, record, log, _, _ = keys.entities.get(step.entity) or wire.entity(keys, step.entity)
    call.keys += (record, log)
    call.arguments += (b"park", index, name, _FLAGS[isinstance(step, Park)])


def _inspect(wire: Wire, call: Call, step: Inspect, keys: PartitionKeys, index: bytes) -> None:
    name, record, log, _, _ = keys.entities.get(step.entity) or wire.entity(keys, step.entity)
    call.keys += (record, log)
    call.arguments += (b"inspect", index, name)


def _count(wire: Wire, call: Call, step: CountKind, keys: PartitionKeys, index: bytes) -> None:
    call.keys.append(keys.index)
    call.arguments += (b"count", index, step.kind.encode())


def _take(wire: Wire, call: Call, step: Take, keys: PartitionKeys, index: bytes) -> None:
    name, record, log, _, _ = keys.entities.get(step.entity) or wire.entity(keys, step.entity)
    call.keys += (record, log)
    call.arguments += (
        b"take",
        index,
        name,
        step.claim.encode(),
        _policy(call, step.policy),
        _number(step.held_version),
        _number(step.run_limit),
    )


def _settle_lost(wire: Wire, call: Call, step: SettleLost, keys: PartitionKeys, index: bytes) -> None:
    name, record, log, outcome, _ = keys.entities.get(step.entity) or wire.entity(keys, step.entity)
    unique = step.unique.encode()
    call.keys += (record, log, outcome + unique, keys.letters, keys.index)
    call.arguments += (
        b"settle_lost",
        index,
        name,
        step.claim.encode(),
        unique,
        _policy(call, step.policy),
        _number(step.attempt),
        _number(step.interruptions),
        _FLAGS[step.recovering],
    )


def _defer(wire: Wire, call: Call, step: Defer, keys: PartitionKeys, index: bytes) -> None:
    name, record, log, _, _ = keys.entities.get(step.entity) or wire.entity(keys, step.entity)
    call.keys += (record, log)
    call.arguments += (b"defer", index, name, step.claim.encode(), _number(step.delay_ms))


def _expire(wire: Wire, call: Call, step: Expire, keys: PartitionKeys, index: bytes) -> None:
    name, record, log, outcome, used = keys.entities.get(step.entity) or wire.entity(keys, step.entity)
    unique = step.unique.encode()
    key = step.key.encode()
    call.keys += (record, log, outcome + unique, used + key, keys.letters, keys.index)
    call.arguments += (b"expire", index, name, unique, key)


def _sweep(wire: Wire, call: Call, step: Sweep, keys: PartitionKeys, index: bytes) -> None:
    if step.own_from is not None:
        call.keys.append(keys.streams)
        call.arguments += (
            b"sweep_own",
            index,
            step.claim.encode(),
            _number(step.limit),
            _number(step.ahead_ms),
            step.own_from.encode(),
        )
        return
    if step.ahead_ms:
        call.keys.append(keys.streams)
        call.arguments += (
            b"sweep_ahead",
            index,
            step.claim.encode(),
            _number(step.limit),
            _number(step.ahead_ms),
        )
        return
    call.keys.append(keys.streams)
    call.arguments += (b"sweep", index, step.claim.encode(), _number(step.limit))


def _relay_read(wire: Wire, call: Call, step: RelayRead, keys: PartitionKeys, index: bytes) -> None:
    target = _target(step.target)
    call.keys += (keys.streams, keys.outbound + target)
    call.arguments += (b"relay_read", index, step.claim.encode(), target, _number(step.limit))


def _relay_ack(wire: Wire, call: Call, step: RelayAck, keys: PartitionKeys, index: bytes) -> None:
    target = _target(step.target)
    if step.incarnation:
        call.keys += (keys.streams, keys.outbound + target)
        call.arguments += (
            b"relay_ack_of",
            index,
            step.claim.encode(),
            target,
            _number(step.last),
            _number(step.incarnation),
        )
        return
    call.keys += (keys.streams, keys.outbound + target)
    call.arguments += (b"relay_ack", index, step.claim.encode(), target, _number(step.last))


def _claim(wire: Wire, call: Call, step: ClaimPartition, keys: PartitionKeys, index: bytes) -> None:
    if step.new_incarnation:
        call.keys.append(keys.streams)
        call.arguments += (
            b"claim_anew",
            index,
            step.claim.encode(),
            step.node,
            step.expected_claim.encode(),
            _number(step.expected_renewals),
            _number(step.epoch_above),
        )
        return
    call.arguments += (
        b"claim",
        index,
        step.claim.encode(),
        step.node,
        step.expected_claim.encode(),
        _number(step.expected_renewals),
    )


def _renew(wire: Wire, call: Call, step: Renew, keys: PartitionKeys, index: bytes) -> None:
    call.arguments += (b"renew", index, step.claim.encode())


def _release(wire: Wire, call: Call, step: Release, keys: PartitionKeys, index: bytes) -> None:
    call.arguments += (b"release", index, step.claim.encode())


def _lease(wire: Wire, call: Call, step: ReadLease, keys: PartitionKeys, index: bytes) -> None:
    call.arguments += (b"lease", index)


_FIXED: Final[dict[type[Any], Callable[[Wire, Call, Any, PartitionKeys, bytes], None]]] = {
    Append: _append,
    Withdraw: _withdraw,
    ReadOutcome: _outcome,
    Replay: _replay,
    ListDeadLetters: _letters,
    Park: _park,
    Resume: _park,
    Inspect: _inspect,
    CountKind: _count,
    Take: _take,
    SettleLost: _settle_lost,
    Defer: _defer,
    Expire: _expire,
    Sweep: _sweep,
    RelayRead: _relay_read,
    RelayAck: _relay_ack,
    ClaimPartition: _claim,
    Renew: _renew,
    Release: _release,
    ReadLease: _lease,
}
# </generated>


_ENCODERS: Final = {
    **_FIXED,
    Finish: _finish,
    Interrupt: _interrupt,
    Purge: _purge,
    Audit: _audit,
    RelayIn: _relay_in,
}
