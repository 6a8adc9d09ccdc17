"""Steps to the keys and arguments of `aa1_commit`; its answers are read by `_answers`.

The other half is the Lua library in `lua/`. `_forms.py` declares the keys and arguments of each step;
`_encoders.py` and the readers in Lua are generated from it. Here are the encoders of the steps whose size
differs from one to the next. This side runs once
or twice a message, so it appends ready-made bytes to two flat lists and keeps the keys of the entities
that it has seen lately.

A call is: the protocol version, seven settings, the policies that its steps name by position, the
partitions likewise, then the steps. Its keys are four a partition, then each step's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

from atomic_actors.journal._protocol import (
    PROTOCOL_VERSION,
    Append,
    Audit,
    Finish,
    Interrupt,
    JournalSettings,
    Outgoing,
    Purge,
    RelayIn,
    Step,
    Target,
)
from atomic_actors.journal.redis._calls import (
    FLAGS,
    Call,
    KeyNames,
    PartitionKeys,
    number_bytes,
    policy_bytes,
    target_bytes,
)
from atomic_actors.journal.redis._encoders import ENCODERS, Encoder

__all__ = ("Call", "Wire")

#: A hundred years. A store refuses times to live that overflow, and a step may not fail on its last write.
TTL_MAX_MS: Final = 100 * 366 * 86_400_000

#: Messages of one entity that are appended together.
APPEND_RUN_MAX: Final = 512

_DEAD: Final = frozenset(("fail", "interrupt"))


class Wire(KeyNames):
    """The names and the encoding of one namespace and service.

    Args:
        settings: what the library has to know goes along with every call.
    """

    def __init__(self, settings: JournalSettings) -> None:
        super().__init__(settings)
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

    # Calls.

    def encode(self, steps: Sequence[Step], others: Iterable[int] = ()) -> Call:
        """Put a call together: `FCALL aa1_commit <number of keys> <keys> <arguments>`.

        Args:
            steps: what to do.
            others: partitions whose commit numbers are wanted, too; steps may name them as well.
        """
        keys: list[bytes] = []
        arguments: list[bytes] = []
        partitions = {number: number_bytes(index) for index, number in enumerate(others, 1)}
        call = Call(keys=keys, arguments=arguments, partitions=partitions, policies={}, steps=list(steps))
        position, count = 0, len(steps)
        while position < count:
            step = steps[position]
            number = step.partition
            index = partitions.get(number)
            if index is None:
                index = partitions[number] = number_bytes(len(partitions) + 1)
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
        head = [*self._head, number_bytes(len(partitions)), number_bytes(len(call.policies))]
        head.extend(policy.encode() for policy in call.policies)
        head.extend([b"%d" % number for number in partitions])
        head.extend(arguments)
        call.arguments = head
        return call


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


def _append_run(
    names: KeyNames, call: Call, steps: Sequence[Append], keys: PartitionKeys, index: bytes
) -> None:
    first = steps[0]
    name, record, log, outcome, _ = keys.entities.get(first.entity) or names.entity(keys, first.entity)
    own_keys = [record, log]
    own = [
        name,
        number_bytes(first.depth_limit),
        first.claim.encode(),
        policy_bytes(call, first.policy),
        number_bytes(first.held_version),
    ]
    for step in steps:
        uid = step.uid.encode()
        own_keys.append(outcome + uid)
        own += (uid, step.body)
    _sized(call, b"append_run", index, own_keys, own)


def _finish(names: KeyNames, call: Call, step: Finish, keys: PartitionKeys, index: bytes) -> None:
    name, record, log, outcome, _ = keys.entities.get(step.entity) or names.entity(keys, step.entity)
    own_keys = [record, log]
    state = step.state
    own = [
        name,
        step.claim.encode(),
        number_bytes(step.turn),
        number_bytes(step.expected_version),
        b"0" if state is None else b"1",
        state or b"",
        FLAGS[step.park],
        policy_bytes(call, step.policy),
        number_bytes(step.run_limit),
        number_bytes(len(step.verdicts)),
        b"0",
        b"0",
        b"0",
    ]
    dead = False
    for verdict in step.verdicts:
        uid = verdict.uid.encode()
        event = verdict.event
        own_keys.append(outcome + uid)
        own += (uid, event.encode(), verdict.reply, verdict.error, number_bytes(verdict.delay_ms))
        dead = dead or event in _DEAD
    if dead:
        own_keys += (keys.letters, keys.index)
        own[10] = b"1"
    if step.outbox:
        own[11], own[12] = _outbox(names, step, keys, own_keys, own)
    call.keys += own_keys
    call.arguments += (b"finish", index, number_bytes(len(own_keys)), number_bytes(len(own)))
    call.arguments += own
    for channel, payload in step.pushes:
        call.arguments += (b"push", index, channel, payload)


def _outbox(
    names: KeyNames, step: Finish, keys: PartitionKeys, own_keys: list[bytes], own: list[bytes]
) -> tuple[bytes, bytes]:
    local = 0
    remote: dict[Target, list[Outgoing]] = {}
    for message in step.outbox:
        target = message.target
        if target != step.partition:
            remote.setdefault(target, []).append(message)
            continue
        name, record, log, _, _ = names.entity(keys, message.entity)
        own_keys += (record, log)
        own += (name, message.uid.encode(), message.body)
        local += 1
    if remote:
        own_keys.append(keys.streams)
    for target, messages in remote.items():
        number = target_bytes(target)
        own_keys.append(keys.outbound + number)
        own += (number, number_bytes(len(messages)))
        for message in messages:
            own += (message.entity.encode(), message.uid.encode(), message.body)
    return number_bytes(local), number_bytes(len(remote))


# The other steps.


def _sized(call: Call, opcode: bytes, index: bytes, keys: Sequence[bytes], own: Sequence[bytes]) -> None:
    call.keys += keys
    call.arguments += (opcode, index, number_bytes(len(keys)), number_bytes(len(own)))
    call.arguments += own


def _interrupt(names: KeyNames, call: Call, step: Interrupt, keys: PartitionKeys, index: bytes) -> None:
    name, record, log, outcome, _ = names.entity(keys, step.entity)
    uids = [uid.encode() for uid in step.uids]
    own = [name, step.claim.encode(), number_bytes(step.turn), FLAGS[step.began], *uids]
    first = uids[0] if uids else b""
    _sized(call, b"interrupt", index, (record, log, keys.letters, keys.index, outcome + first), own)


def _purge(names: KeyNames, call: Call, step: Purge, keys: PartitionKeys, index: bytes) -> None:
    ids = [message_id.encode() for message_id in step.message_ids]
    _sized(call, b"purge", index, (keys.letters, keys.index), ids)


def _audit(names: KeyNames, call: Call, step: Audit, keys: PartitionKeys, index: bytes) -> None:
    targets = [keys.outbound + b"%d" % target for target in range(names.settings.partitions)]
    _sized(call, b"audit", index, (keys.index, *targets, keys.streams), (b"w",))


def _relay_in(names: KeyNames, call: Call, step: RelayIn, keys: PartitionKeys, index: bytes) -> None:
    own_keys = [keys.inbound]
    own = [target_bytes(step.source), b"%d" % step.incarnation]
    for entry in step.entries:
        name, record, log, _, _ = names.entity(keys, entry.entity)
        own_keys += (record, log)
        own += (number_bytes(entry.number), name, entry.uid.encode(), entry.body)
    opcode = b"relay_in_after_loss" if step.after_loss else b"relay_in"
    _sized(call, opcode, index, own_keys, own)


_ENCODERS: Final[dict[type[Any], Encoder]] = {
    **ENCODERS,
    Finish: _finish,
    Interrupt: _interrupt,
    Purge: _purge,
    Audit: _audit,
    RelayIn: _relay_in,
}
