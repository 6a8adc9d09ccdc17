"""Steps to the arguments of `aa1_commit`, and its answers to results.

The other half is `atomic_actors.lua`, whose comments above each step name its keys and arguments. This
side runs once or twice a message, so it appends ready-made bytes to two flat lists and keeps the keys of
the entities that it has seen lately.

A call is: the protocol version, seven settings, the policies that its steps name by position, the
partitions likewise, then the steps. Its keys are four a partition, then each step's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from msgspec import Struct

from atomic_actors._wal import State
from atomic_actors.journal._protocol import (
    NOTHING,
    PROTOCOL_VERSION,
    Append,
    Appended,
    Audit,
    Audited,
    Claimed,
    ClaimPartition,
    CountKind,
    DeadLetterPage,
    Dispatch,
    Dispatched,
    EntityStatus,
    Expire,
    Expired,
    Finish,
    Finished,
    Inspect,
    Interrupt,
    JournalSettings,
    KindCount,
    LeaseHeld,
    ListDeadLetters,
    Offer,
    Outgoing,
    OutcomeRead,
    Park,
    Parked,
    Purge,
    Purged,
    ReadOutcome,
    Rejected,
    RelayAck,
    RelayAcked,
    Relayed,
    RelayEntry,
    RelayIn,
    RelayPage,
    RelayRead,
    Release,
    Released,
    Renew,
    Renewed,
    Replay,
    Replayed,
    Result,
    Resume,
    Settled,
    Stale,
    Step,
    StoredLetter,
    Swept,
    Sweep,
    Take,
    Taken,
    Unsettled,
    Withdraw,
    WithdrawAnswer,
)

__all__ = ("Call", "Wire")

#: Entities whose keys are kept; all are forgotten when there are more.
CACHED_ENTITIES_MAX: Final = 20_000

#: The order in which `aa1_commit` answers an audit.
BOOKS: Final = (
    "accepted",
    "enqueued",
    "dispatched",
    "completed",
    "failed",
    "interrupted",
    "withdrawn",
    "expired",
    "refused",
    "commit",
    "incarnation",
    "time",
    "outbound",
)

_STALE, _REJECTED, _HELD = 1, 2, 3
_FLAGS: Final = (b"0", b"1")
#: The bytes of the numbers that nearly every step holds.
_NUMBERS: Final = {number: b"%d" % number for number in range(-1, 1024)}
_DEAD: Final = frozenset(("fail", "interrupt"))

#: An entity's name, its record, its log, and what its outcomes' and used keys' names begin with.
EntityKeys = tuple[bytes, bytes, bytes, bytes, bytes]
Reply = list[Any]


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
                settings.result_ttl_ms,
                settings.dedupe_ttl_ms,
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

    def encode(self, steps: Sequence[Step]) -> Call:
        """Put a call together: `FCALL aa1_commit <number of keys> <keys> <arguments>`."""
        keys: list[bytes] = []
        arguments: list[bytes] = []
        partitions: dict[int, bytes] = {}
        call = Call(keys, arguments, partitions, {}, list(steps))
        for step in steps:
            number = step.partition
            index = partitions.get(number)
            if index is None:
                index = partitions[number] = _number(len(partitions) + 1)
            _ENCODERS[type(step)](self, call, step, self.partition(number), index)
        heads = [key for number in partitions for key in self.partition(number).heads]
        heads.extend(keys)
        call.keys = heads
        head = [*self._head, _number(len(partitions)), _number(len(call.policies))]
        head.extend(policy.encode() for policy in call.policies)
        head.extend([b"%d" % number for number in partitions])
        head.extend(arguments)
        call.arguments = head
        return call

    @staticmethod
    def decode(call: Call, reply: Reply) -> list[Result]:
        """The results of a call's steps, in their order.

        Raises:
            ValueError: the answer does not fit the steps.
        """
        results: list[Result] = []
        for step, answer in zip(call.steps, reply[2:], strict=True):
            status: int = answer[0]
            if status == 0:
                results.append(_DECODERS[type(step)](step, answer))
            elif status == _STALE:
                results.append(Stale(answer[1].decode()))
            elif status == _REJECTED:
                results.append(Rejected(answer[1].decode(), answer[2].decode("utf-8", "replace")))
            elif status == _HELD:
                _, node, epoch, claim, renewals = answer
                results.append(LeaseHeld(node, epoch, claim.decode(), renewals))
            else:
                raise ValueError(f"unknown status {status}")
        return results


def _policy(call: Call, policy: str) -> bytes:
    policies = call.policies
    index = policies.get(policy)
    if index is None:
        index = policies[policy] = _number(len(policies) + 1)
    return index


# Steps that come once or twice a message.


def _append(wire: Wire, call: Call, step: Append, keys: PartitionKeys, index: bytes) -> None:
    name, record, log, outcome, used = keys.entities.get(step.entity) or wire.entity(keys, step.entity)
    unique = step.unique.encode()
    if step.key:
        opcode = b"append_key"
        call.keys += (record, log, outcome + unique, used + step.key.encode())
    else:
        opcode = b"append"
        call.keys += (record, log, outcome + unique)
    call.arguments += (
        opcode,
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


def _outbox(
    wire: Wire, step: Finish, keys: PartitionKeys, own_keys: list[bytes], own: list[bytes]
) -> tuple[bytes, bytes]:
    local = 0
    remote: dict[int, list[Outgoing]] = {}
    for message in step.outbox:
        if message.partition != step.partition:
            remote.setdefault(message.partition, []).append(message)
            continue
        name, record, log, _, _ = wire.entity(keys, message.entity)
        own_keys += (record, log)
        own += (name, message.unique.encode(), message.body)
        local += 1
    if remote:
        own_keys.append(keys.streams)
    for target, messages in remote.items():
        number = b"%d" % target
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


def _expire(wire: Wire, call: Call, step: Expire, keys: PartitionKeys, index: bytes) -> None:
    name, record, log, outcome, used = wire.entity(keys, step.entity)
    unique, key = step.unique.encode(), step.key.encode()
    call.keys += (record, log, outcome + unique, used + key, keys.letters, keys.index)
    call.arguments += (b"expire", index, name, unique, key)


def _withdraw(wire: Wire, call: Call, step: Withdraw, keys: PartitionKeys, index: bytes) -> None:
    name, record, log, outcome, used = wire.entity(keys, step.entity)
    unique, key = step.unique.encode(), step.key.encode()
    call.keys += (record, log, outcome + unique, used + key)
    call.arguments += (b"withdraw", index, name, unique, key)


def _read_outcome(wire: Wire, call: Call, step: ReadOutcome, keys: PartitionKeys, index: bytes) -> None:
    name, record, _, outcome, _ = wire.entity(keys, step.entity)
    unique = step.unique.encode()
    call.keys += (record, outcome + unique)
    call.arguments += (b"outcome", index, name, unique)


def _replay(wire: Wire, call: Call, step: Replay, keys: PartitionKeys, index: bytes) -> None:
    name, record, log, outcome, _ = wire.entity(keys, step.entity)
    new_unique = step.new_unique.encode()
    call.keys += (record, log, keys.letters, outcome + new_unique)
    call.arguments += (b"replay", index, name, step.unique.encode(), new_unique, _FLAGS[step.at_head])


def _purge(wire: Wire, call: Call, step: Purge, keys: PartitionKeys, index: bytes) -> None:
    ids = [message_id.encode() for message_id in step.message_ids]
    _sized(call, b"purge", index, (keys.letters, keys.index), ids)


def _list_letters(wire: Wire, call: Call, step: ListDeadLetters, keys: PartitionKeys, index: bytes) -> None:
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
    name, record, log, _, _ = wire.entity(keys, step.entity)
    call.keys += (record, log)
    call.arguments += (b"park", index, name, _FLAGS[isinstance(step, Park)])


def _inspect(wire: Wire, call: Call, step: Inspect, keys: PartitionKeys, index: bytes) -> None:
    name, record, log, _, _ = wire.entity(keys, step.entity)
    call.keys += (record, log)
    call.arguments += (b"inspect", index, name)


def _count(wire: Wire, call: Call, step: CountKind, keys: PartitionKeys, index: bytes) -> None:
    call.keys.append(keys.index)
    call.arguments += (b"count", index, step.kind.encode())


def _audit(wire: Wire, call: Call, step: Audit, keys: PartitionKeys, index: bytes) -> None:
    targets = [keys.outbound + b"%d" % target for target in range(wire.settings.partitions)]
    _sized(call, b"audit", index, (keys.index, *targets), ())


def _sweep(wire: Wire, call: Call, step: Sweep, keys: PartitionKeys, index: bytes) -> None:
    call.keys.append(keys.streams)
    call.arguments += (b"sweep", index, step.claim.encode(), _number(step.limit))


def _relay_read(wire: Wire, call: Call, step: RelayRead, keys: PartitionKeys, index: bytes) -> None:
    target = b"%d" % step.target
    call.keys += (keys.streams, keys.outbound + target)
    call.arguments += (b"relay_read", index, step.claim.encode(), target, _number(step.limit))


def _relay_in(wire: Wire, call: Call, step: RelayIn, keys: PartitionKeys, index: bytes) -> None:
    own_keys = [keys.inbound]
    own = [b"%d" % step.source, b"%d" % step.incarnation]
    for entry in step.entries:
        name, record, log, _, _ = wire.entity(keys, entry.entity)
        own_keys += (record, log)
        own += (_number(entry.number), name, entry.unique.encode(), entry.body)
    _sized(call, b"relay_in", index, own_keys, own)


def _relay_ack(wire: Wire, call: Call, step: RelayAck, keys: PartitionKeys, index: bytes) -> None:
    target = b"%d" % step.target
    call.keys += (keys.streams, keys.outbound + target)
    call.arguments += (b"relay_ack", index, step.claim.encode(), target, _number(step.last))


def _claim(wire: Wire, call: Call, step: ClaimPartition, keys: PartitionKeys, index: bytes) -> None:
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


_ENCODERS: Final = cast(
    "dict[type[Any], Callable[[Wire, Call, Any, PartitionKeys, bytes], None]]",
    {
        Append: _append,
        Take: _take,
        Finish: _finish,
        Interrupt: _interrupt,
        Expire: _expire,
        Withdraw: _withdraw,
        ReadOutcome: _read_outcome,
        Replay: _replay,
        Purge: _purge,
        ListDeadLetters: _list_letters,
        Park: _park,
        Resume: _park,
        Inspect: _inspect,
        CountKind: _count,
        Audit: _audit,
        Sweep: _sweep,
        RelayRead: _relay_read,
        RelayIn: _relay_in,
        RelayAck: _relay_ack,
        ClaimPartition: _claim,
        Renew: _renew,
        Release: _release,
    },
)


# Answers.


def _read_offer(reply: Reply, at: int, body: bytes = b"") -> Offer:
    kind = reply[at]
    if kind == 0:
        return NOTHING
    if kind == 1:
        _, turn, recovering, version, state = reply[at : at + 5]
        if len(reply) == at + 9:
            unique, own_body, attempt, interruptions = reply[at + 5 :]
            messages: tuple[Dispatched, ...] = (
                Dispatched(unique.decode(), body if own_body is None else own_body, attempt, interruptions),
            )
        else:
            messages = tuple(
                Dispatched(reply[j].decode(), reply[j + 1], reply[j + 2], reply[j + 3])
                for j in range(at + 5, len(reply), 4)
            )
        return Offer(Dispatch(turn, messages, recovering == 1, version, state))
    if kind == 2:
        return Offer(not_before_ms=reply[at + 1])
    if kind == 3:
        return Offer(parked=True)
    if kind == 4:
        return Offer(expired=(reply[at + 1].decode(), reply[at + 2].decode()))
    if kind == 5:
        return Offer(unsettled=Unsettled("", reply[at + 1], _texts(reply, at + 2, len(reply))))
    return Offer(more=True)


def _texts(reply: Reply, start: int, stop: int) -> tuple[str, ...]:
    return tuple(text.decode() for text in reply[start:stop])


def _with_entity(offer: Offer, entity: str) -> Offer:
    left = offer.unsettled
    return Offer(unsettled=Unsettled(entity, left.turn, left.uniques)) if left is not None else offer


def _appended(step: Append, reply: Reply) -> Result:
    offer = _read_offer(reply, 4, step.body)
    if offer.unsettled is not None:
        offer = _with_entity(offer, step.entity)
    duplicate = reply[2] == 1
    return Appended(reply[1].decode() if duplicate else step.unique, duplicate, reply[3], offer)


def _taken(step: Take, reply: Reply) -> Result:
    return Taken(_with_entity(_read_offer(reply, 1), step.entity))


def _finished(step: Finish, reply: Reply) -> Result:
    unburied = reply[2]
    offer = _with_entity(_read_offer(reply, 3 + unburied), step.entity)
    if not unburied:
        return Finished(reply[1], offer)
    return Finished(reply[1], offer, _texts(reply, 3, 3 + unburied))


def _settled(step: Interrupt, reply: Reply) -> Result:
    return Settled(reply[1].decode(), tuple(reply[2:]))


def _withdrawn(step: Withdraw, reply: Reply) -> Result:
    return WithdrawAnswer(reply[1].decode(), reply[2], reply[3].decode())


def _letter(message_id: bytes, letter: bytes) -> StoredLetter:
    reason, attempts, interruptions, died_ms, replayed_as, size, rest = letter.split(b"\n", 6)
    error_bytes = int(size)
    return StoredLetter(
        message_id.decode(),
        cast("Any", reason.decode()),
        int(attempts),
        int(interruptions),
        int(died_ms),
        replayed_as.decode(),
        rest[:error_bytes],
        rest[error_bytes:],
    )


def _letters(step: ListDeadLetters, reply: Reply) -> Result:
    letters = tuple(_letter(reply[j], reply[j + 1]) for j in range(2, len(reply), 2))
    return DeadLetterPage(letters, reply[1] == 1)


def _audited(step: Audit, reply: Reply) -> Result:
    books = dict(zip(BOOKS, reply[5:], strict=True))
    counts = {"accepted": books["accepted"], **{str(state): books.get(str(state), 0) for state in State}}
    counts["refused"] = books["refused"]
    _, dispatched, ready, letters, outbound = reply[:5]
    return Audited(counts, dispatched, ready, letters, outbound, books["commit"], books["incarnation"])


def _swept(step: Sweep, reply: Reply) -> Result:
    _, next_due_ms, due, targets = reply[:4]
    unsettled: list[Unsettled] = []
    at = 4 + due + targets
    while at < len(reply):
        entity, turn, members = reply[at : at + 3]
        unsettled.append(Unsettled(entity.decode(), turn, _texts(reply, at + 3, at + 3 + members)))
        at += 3 + members
    outbound = tuple(int(target) for target in reply[4 + due : 4 + due + targets])
    return Swept(_texts(reply, 4, 4 + due), tuple(unsettled), next_due_ms, outbound)


def _relay_page(step: RelayRead, reply: Reply) -> Result:
    first: int = reply[2]
    entries = tuple(
        RelayEntry(first + number, reply[j].decode(), reply[j + 1].decode(), reply[j + 2])
        for number, j in enumerate(range(3, len(reply), 3))
    )
    return RelayPage(reply[1], entries)


_DECODERS: Final = cast(
    "dict[type[Any], Callable[[Any, Reply], Result]]",
    {
        Append: _appended,
        Take: _taken,
        Finish: _finished,
        Interrupt: _settled,
        Expire: lambda step, reply: Expired(reply[1] == 1, reply[2]),
        Withdraw: _withdrawn,
        ReadOutcome: lambda step, reply: OutcomeRead(reply[1].decode(), reply[2]),
        Replay: lambda step, reply: Replayed(reply[1].decode(), reply[2] == 1),
        Purge: lambda step, reply: Purged(reply[1]),
        ListDeadLetters: _letters,
        Park: lambda step, reply: Parked(reply[1] == 1),
        Resume: lambda step, reply: Parked(reply[1] == 1),
        Inspect: lambda step, reply: EntityStatus(
            reply[1], reply[2], reply[3] == 1, reply[4], reply[5], reply[6]
        ),
        CountKind: lambda step, reply: KindCount(*reply[1:]),
        Audit: _audited,
        Sweep: _swept,
        RelayRead: _relay_page,
        RelayIn: lambda step, reply: Relayed(reply[1], _texts(reply, 2, len(reply))),
        RelayAck: lambda step, reply: RelayAcked(reply[1]),
        ClaimPartition: lambda step, reply: Claimed(*reply[1:]),
        Renew: lambda step, reply: Renewed(reply[1]),
        Release: lambda step, reply: Released(),
    },
)
