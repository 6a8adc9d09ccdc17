"""Damages what a store holds, in memory and in a server: bytes, names, numbers, and keys of another type."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import Any, Final, Protocol, cast

import msgspec
import redis
from attrs import define, field

from atomic_actors.codec._envelope import encode_plain
from atomic_actors.journal._protocol import StoredLetter, pack_body, unpack_body
from atomic_actors.journal.memory._counters import Partition
from atomic_actors.journal.memory._journal import MemoryJournal
from tests.envelopes import envelope_of
from tests.fuzz.corrupter import EXTREME_NUMBERS, corrupt, plain_value

__all__ = ("MemoryDamage", "ServerDamage", "StoreDamage")

#: What belongs to a whole partition, and stops it where it cannot be read.
_OF_PARTITIONS: Final = ("L", "C", "run", "ready")
_KEY: Final = re.compile(rb"\{[^}]*:(\w+)\}:?(\w*)")


class StoreDamage(Protocol):
    """What a scene needs of it."""

    #: Partitions that cannot work now, or only after a while.
    partitions: set[int]
    #: What belongs to the whole namespace is damaged: nodes, kinds, the number of partitions.
    is_everywhere: bool
    #: For people: what was done.
    done: list[str]

    def strike(self, random: Random) -> None:
        """Damage one thing."""
        ...


def _damaged(random: Random, body: bytes) -> bytes:
    return corrupt(random, [body])


def _made_up(random: Random, body: bytes) -> bytes:
    """A message that can be read, and says anything in its headers."""
    head = unpack_body(body)
    headers = {name: plain_value(random) for name in ("s", "p", "new")}
    deadline_ms = random.choice((0, 1, 2**62, 10**20, 10**290))
    payload = random.choice((b"\xc0", encode_plain(plain_value(random)), encode_plain({"word": "x"})))
    return pack_body(
        name=head.name,
        deadline_ms=deadline_ms,
        waited_for=random.random() < 0.5,
        key=head.key,
        envelope=envelope_of(headers, payload),
    )


@define(eq=False)
class MemoryDamage:
    """Damages the journal in memory, where its bytes are."""

    journal: MemoryJournal
    partitions: set[int] = field(factory=set[int])
    is_everywhere: bool = False
    done: list[str] = field(factory=list[str])

    def strike(self, random: Random) -> None:
        """Damage one thing."""
        books = self.journal._partitions  # pyright: ignore[reportPrivateUsage]
        number = random.choice(sorted(books))
        ways: list[Callable[[Random, Partition], str]] = [
            *(self._body, self._body, self._body, self._state, self._state, self._outcome, self._outcome),
            *(self._letter, self._stream, self._node),
        ]
        what = random.choice(ways)(random, books[number])
        self.done.append(f"partition {number}: {what}")

    def _body(self, random: Random, partition: Partition) -> str:
        messages = [message for entity in partition.entities.values() for message in entity.messages.values()]
        if messages:
            message = random.choice(messages)
            message.body = random.choice((_damaged, _made_up))(random, message.body)
            return f"the body of {message.uid} is {message.body[:80]!r}"
        return "no body"

    def _state(self, random: Random, partition: Partition) -> str:
        entities = [entity for entity in partition.entities.values() if entity.state]
        if entities:
            entity = random.choice(entities)
            entity.state = corrupt(random, [entity.state])
            return f"the state of {entity.name} is {entity.state[:80]!r}"
        return "no state"

    def _outcome(self, random: Random, partition: Partition) -> str:
        if partition.outcomes:
            where = random.choice(list(partition.outcomes))
            ends_ms, outcome = partition.outcomes[where]
            partition.outcomes[where] = ends_ms, corrupt(random, [outcome])
            return f"the outcome of {where} is {partition.outcomes[where][1][:80]!r}"
        return "no outcome"

    def _letter(self, random: Random, partition: Partition) -> str:
        if partition.letters:
            message_id = random.choice(list(partition.letters))
            letter: StoredLetter = partition.letters[message_id]
            part = random.choice(("body", "error"))
            damaged: dict[str, Any] = {part: corrupt(random, [getattr(letter, part)])}
            partition.letters[message_id] = msgspec.structs.replace(letter, **damaged)
            return f"the letter {message_id} has {damaged!r:.100}"
        return "no letter"

    def _stream(self, random: Random, partition: Partition) -> str:
        streams = [stream for stream in partition.streams.values() if stream]
        if streams:
            stream = random.choice(streams)
            at = random.randrange(len(stream))
            incarnation, entry = stream[at]
            damaged = corrupt(random, [entry.body])
            stream[at] = incarnation, msgspec.structs.replace(entry, body=damaged)
            return f"entry {entry.number} of a stream has {damaged[:80]!r}"
        return "no stream"

    def _node(self, random: Random, partition: Partition) -> str:
        partition.lease.node = corrupt(random, [partition.lease.node])
        return f"the lease says {partition.lease.node[:80]!r}"


@define(eq=False)
class ServerDamage:
    """Damages the keys of one namespace in a server."""

    client: redis.Redis
    namespace: str
    partitions: set[int] = field(factory=set[int])
    is_everywhere: bool = False
    done: list[str] = field(factory=list[str])

    def _call(self, *words: Any) -> Any:
        client: Any = self.client
        return client.execute_command(*words)

    def strike(self, random: Random) -> None:
        """Damage one thing; the rarer sorts of keys as often as the others."""
        keys = sorted(cast("list[bytes]", self._call("KEYS", f"{{{self.namespace}:*")))
        sorts: dict[tuple[bool, bytes], list[bytes]] = {}
        for key in keys:
            found = _KEY.match(key)
            assert found is not None
            sorts.setdefault((found[1] == b"meta", found[2]), []).append(key)
        sort = random.choice(sorted(sorts))
        key = random.choice(sorts[sort])
        found = _KEY.match(key)
        assert found is not None
        if found[1] == b"meta":
            self.is_everywhere = True
        elif found[2].decode() in _OF_PARTITIONS:
            self.partitions.add(int(found[1]))
        if random.random() < 0.15:
            what = self._change_type(random, key)
        else:
            type_ = self._call("TYPE", key)
            what = getattr(self, f"_damage_{type_.decode() if isinstance(type_, bytes) else type_}")(
                random, key
            )
        self.done.append(f"{key!r}: {what}")

    def _change_type(self, random: Random, key: bytes) -> str:
        self._call("DEL", key)
        words = random.choice(
            (("SET", key, b"x"), ("RPUSH", key, b"x"), ("HSET", key, b"x", b"y"), ("ZADD", key, 1, b"x"))
        )
        self._call(*words)
        return f"is what {words[0]} makes"

    def _damage_string(self, random: Random, key: bytes) -> str:
        data = corrupt(random, [self._call("GET", key)])
        self._call("SET", key, data, "KEEPTTL")
        return repr(data[:80])

    def _damage_hash(self, random: Random, key: bytes) -> str:
        fields = cast("list[bytes]", self._call("HKEYS", key))
        name = random.choice(sorted(fields))
        old = cast("bytes", self._call("HGET", key, name))
        if random.random() < 0.1:
            other = corrupt(random, [name])
            self._call("HDEL", key, name)
            self._call("HSET", key, other, old)
            return f"the field {name!r} is called {other[:80]!r}"
        makes_up = name.startswith(b"m:") and random.random() < 0.5
        data = _made_up(random, old) if makes_up else corrupt(random, [old])
        self._call("HSET", key, name, data)
        return f"{name!r} was {old[:80]!r} and is {data[:80]!r}"

    def _damage_list(self, random: Random, key: bytes) -> str:
        at = random.randrange(int(self._call("LLEN", key)))
        data = corrupt(random, [self._call("LINDEX", key, at)])
        self._call("LSET", key, at, data)
        return f"item {at} is {data[:80]!r}"

    def _damage_zset(self, random: Random, key: bytes) -> str:
        members = cast("list[bytes]", self._call("ZRANGE", key, 0, -1))
        member = random.choice(members)
        if random.random() < 0.3:
            score = random.choice((*EXTREME_NUMBERS, "inf", "-inf"))
            self._call("ZADD", key, score, member)
            return f"{member!r} has {score}"
        data = corrupt(random, [member])
        score = self._call("ZSCORE", key, member)
        self._call("ZREM", key, member)
        self._call("ZADD", key, score, data)
        return f"{member!r} is {data[:80]!r}"
