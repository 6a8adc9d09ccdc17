"""Dead letters: what failed or was interrupted for good, until an operator decides.

Nothing is ever dropped: a letter stays until it is purged (or `dead_letter_ttl_s` is set), and a replay
is a new message that the letter remembers, so that asking twice replays once.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Literal

import msgspec
from attrs import define
from msgspec.structs import replace

from atomic_actors.base._errors import (
    ActorLimitExceeded,
    InvalidMessageId,
    StoreUnavailable,
    SystemFailed,
    UnknownMessage,
    error_from_code,
)
from atomic_actors.base._records import DeadLetter, EntityRef, Receipt, partition_of, split_message_id
from atomic_actors.base._telemetry import logger
from atomic_actors.codec._envelope import decode_envelope, derive_uid, plain_of
from atomic_actors.contracts._outcomes import read_failure
from atomic_actors.journal._protocol import (
    NOTHING,
    DeadLetterPage,
    JournalUnavailable,
    ListDeadLetters,
    Purge,
    Purged,
    Rejected,
    Replay,
    Replayed,
    Result,
    Step,
    StoredLetter,
    unpack_body,
)
from atomic_actors.journal.commit._batches import OnResult
from atomic_actors.journal.commit._commit_queue import CommitQueue
from atomic_actors.journal.commit._store_clock import StoreClock
from atomic_actors.node.execution._activation import Activation
from atomic_actors.node.execution._supervisor import Supervisor

__all__ = ("DeadLetters", "read_letter")

#: Letters that one step reads.
PAGE: Final = 100

#: What a letter says that no handler wrote.
_REASONS: Final = {
    "interrupted": "the turn was cut off; it may have run completely, in part, or not at all",
    "expired": "its deadline passed before its turn began",
}


@define(eq=False)
class DeadLetters:
    """The dead letters of a system: `system.dead_letters`.

    Args:
        journal: where they are.
        store_clock: the store's time, for the ids of replays.
        supervisor: has the entity of a replay, if it is at home here.
    """

    _journal: CommitQueue
    _store_clock: StoreClock
    _supervisor: Supervisor

    async def list(self, kind: str | None = None, limit: int = 100) -> list[DeadLetter]:
        """Dead letters, the oldest death first.

        Args:
            kind: only those of this kind.
            limit: at most so many.

        Raises:
            StoreUnavailable: the store gave no answer.
        """
        found: list[StoredLetter] = []
        for partition in range(self._journal.settings.partitions):
            found.extend(await self._list_partition(partition, kind or "", limit))
        found.sort(key=lambda letter: (letter.died_ms, letter.message_id))
        letters: list[DeadLetter] = []
        for stored in found[:limit]:
            try:
                letters.append(read_letter(stored))
            except InvalidMessageId as error:
                logger.error("the entity of a dead letter in the store cannot be parsed: %s", error)
        return letters

    async def _list_partition(self, partition: int, kind: str, limit: int) -> Iterable[StoredLetter]:
        found: dict[str, StoredLetter] = {}
        after_ms, after_id = 0, ""
        while len(found) < limit:
            step = ListDeadLetters(
                partition=partition,
                kind=kind,
                after_ms=after_ms,
                after_id=after_id,
                limit=min(PAGE, limit - len(found)),
            )
            page = await self._request(step)
            if isinstance(page, Rejected):
                # Those of the other partitions are there all the same.
                logger.error("the dead letters of partition %d cannot be read: %s", partition, page.text)
                break
            if not isinstance(page, DeadLetterPage):
                raise SystemFailed(f"the journal answered a list of dead letters with {page!r}")
            before = len(found)
            found.update({letter.message_id: letter for letter in page.letters})
            # A damaged letter has no time to go on behind; it may come twice.
            whole = [letter for letter in page.letters if letter.died_ms]
            if page.complete or not whole or len(found) == before:
                break
            after_ms, after_id = whole[-1].died_ms, whole[-1].message_id
        return found.values()

    async def get(self, message_id: str) -> DeadLetter:
        """One dead letter.

        Raises:
            UnknownMessage: there is no dead letter of this id.
            InvalidMessageId: the text is not a message id.
            StoreUnavailable: the store gave no answer.
        """
        entity, _, partition = self._locate(message_id)
        page = await self._request(ListDeadLetters(partition=partition, message_id=message_id))
        if isinstance(page, Rejected):
            raise error_from_code(page.code, page.text, message_id=message_id)
        if not isinstance(page, DeadLetterPage) or not page.letters:
            raise UnknownMessage(f"there is no dead letter {message_id} of {entity}", message_id=message_id)
        return read_letter(page.letters[0])

    async def replay(self, message_id: str, at: Literal["head", "tail"] = "tail") -> Receipt[Any]:
        """Send a dead letter again, as a new message, once only even if asked twice.

        Args:
            message_id: the letter's.
            at: before everything that waits for the entity, or behind it.

        Returns:
            The new message's receipt; the first replay's, where it was replayed before.

        Raises:
            UnknownMessage: there is no dead letter of this id.
            StoreUnavailable: the store gave no answer.
        """
        if at not in ("head", "tail"):
            raise ValueError(f"at: expected 'head' or 'tail', got {at!r}")
        entity, uid, partition = self._locate(message_id)
        new_uid = derive_uid(self._store_clock.now_ms(), message_id, "replay", 1)
        step = Replay(partition=partition, entity=str(entity), uid=uid, new_uid=new_uid, at_head=at == "head")
        answer = await self._replay(step, entity)
        if isinstance(answer, Replayed):
            return Receipt(f"{entity}/{answer.uid}", entity)
        if isinstance(answer, Rejected) and answer.code == "unknown_message":
            raise UnknownMessage(f"there is no dead letter {message_id}", message_id=message_id)
        if isinstance(answer, Rejected):
            raise error_from_code(answer.code, answer.text, message_id=message_id)
        raise SystemFailed(f"the journal answered a replay with {answer!r}")

    async def _replay(self, step: Replay, entity: EntityRef) -> Result:
        """Send a replay; where this node has the entity, it takes it with the answer."""
        kind = self._supervisor.kinds.get(entity.kind)
        activation: Activation | None = None
        if kind is not None and kind.durable:
            # Without room for the entity, its doorbell rings, and it waits for room.
            with suppress(ActorLimitExceeded):
                activation = self._supervisor.admit(kind, entity, step.entity, step.partition)
        if activation is None:
            return await self._request(step)
        step = replace(
            step,
            claim=activation.partition.claim,
            policy=activation.kind.policy,
            held_version=activation.state.version,
        )
        return await self._request(step, partial(_offer_to, activation))

    async def purge(self, *message_ids: str) -> int:
        """Forget dead letters by id; returns how many were there.

        Raises:
            InvalidMessageId: a text is not a message id.
            StoreUnavailable: the store gave no answer.
        """
        by_partition: dict[int, list[str]] = {}
        for message_id in message_ids:
            _, _, partition = self._locate(message_id)
            by_partition.setdefault(partition, []).append(message_id)
        count = 0
        for partition, ids in by_partition.items():
            for start in range(0, len(ids), PAGE):
                answer = await self._request(Purge(partition, tuple(ids[start : start + PAGE])))
                count += answer.count if isinstance(answer, Purged) else 0
        return count

    def _locate(self, message_id: str) -> tuple[EntityRef, str, int]:
        entity, uid = split_message_id(message_id)
        return entity, uid, partition_of(str(entity), self._journal.settings.partitions)

    async def _request(self, step: Step, on_result: OnResult | None = None) -> Result:
        try:
            return await self._journal.request(step, on_result)
        except JournalUnavailable as error:
            raise StoreUnavailable(f"the store gave no answer: {error}") from error


def _offer_to(activation: Activation, result: Result | JournalUnavailable) -> None:
    activation.offered(result.offer if isinstance(result, Replayed) else NOTHING)


def read_letter(stored: StoredLetter) -> DeadLetter:
    """A stored dead letter, for people: what cannot be read of it is shown as bytes, or left out.

    Raises:
        InvalidMessageId: not even its entity can be parsed.
    """
    entity, uid = split_message_id(stored.message_id)
    failure = read_failure(stored.error)
    name, message = _read_message(stored.body)
    return DeadLetter(
        message_id=stored.message_id,
        entity=entity,
        name=name,
        message=message,
        reason=stored.reason,
        error=failure.text or _REASONS.get(stored.reason, ""),
        error_type=failure.error_type,
        traceback=failure.traceback,
        attempts=stored.attempts,
        interruptions=stored.interruptions,
        accepted_at_s=int(uid[:12], 16) / 1000,
        died_at_s=stored.died_ms / 1000,
        replayed_as=f"{entity}/{stored.replayed_as}" if stored.replayed_as else None,
    )


def _read_message(body: bytes) -> tuple[str, Any]:
    """A message's name and content. It may be dead just because it cannot be read; then a person gets the bytes."""
    try:
        head = unpack_body(body)
    except ValueError:
        return "", body
    try:
        return head.name, plain_of(decode_envelope(head.envelope).payload)
    except msgspec.DecodeError:
        return head.name, head.envelope
