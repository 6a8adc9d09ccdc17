"""Settles turns that were cut off, and answers the askers of messages that ended without a commit."""

from __future__ import annotations

import msgspec
from attrs import define, field

from atomic_actors.base._errors import SystemFailed
from atomic_actors.base._telemetry import logger
from atomic_actors.codec._envelope import decode_envelope
from atomic_actors.journal._protocol import (
    Dispatch,
    Interrupt,
    JournalUnavailable,
    Rejected,
    Result,
    Settled,
    SettleLost,
    Stale,
    unpack_body,
)
from atomic_actors.journal.commit._commit_queue import CommitQueue
from atomic_actors.node.execution._events import Events
from atomic_actors.node.routing._relay import Waker
from atomic_actors.node.routing._router import Router

__all__ = ("Settlements",)


@define(eq=False)
class Settlements:
    """Turns that did not end by a commit.

    Args:
        commits: where settlements go.
        replies: tells askers.
    """

    commits: CommitQueue
    replies: Router
    events: Events
    #: The turns that are being settled, by entity: an older answer may still offer them.
    under_way: dict[str, int] = field(factory=dict[str, int], init=False)
    #: The entities whose turns the store refused to settle, with their partitions.
    _rejected: dict[str, int] = field(factory=dict[str, int], init=False)
    #: What handlers had begun when a partition was lost, by partition and entity, with the entity's policy: the
    #: store may not know of it.
    _cut_off: dict[int, dict[str, tuple[str, Dispatch]]] = field(
        factory=dict[int, dict[str, tuple[str, Dispatch]]], init=False
    )

    def settle(self, step: Interrupt, waker: Waker | None = None) -> None:
        """Settle a dispatch that was cut off, and tell its asker if that was final; then wake the entity."""
        self.under_way[step.entity] = step.turn

        def on_settled(result: Result | JournalUnavailable) -> None:
            if isinstance(result, Rejected):
                # It stays under way: what began here must not begin once more under this claim.
                self._rejected[step.entity] = step.partition
                logger.error("%s: its turn %d cannot be settled: %s", step.entity, step.turn, result.text)
            elif self.under_way.get(step.entity) == step.turn:
                # Answers come in the order of the steps: no older one can offer this turn any more.
                del self.under_way[step.entity]
            if isinstance(result, Settled) and result.settlement != "gone":
                self._forget(step.partition, step.entity)
                self._settled(step.entity, step.uids, result)
            if waker is not None:
                waker.wake(step.partition, step.entity)

        self.commits.enqueue(step, on_settled)

    def is_settling(self, entity: str, turn: int) -> bool:
        """Whether a turn is being settled."""
        return self.under_way.get(entity) == turn

    # Partitions that come and go.

    def claimed(self, partition: int) -> None:
        """A partition is this node's: what was cut off in it has been settled."""
        self._cut_off.pop(partition, None)

    def lost(self, partition: int) -> None:
        """A partition is not this node's any more: under another claim, what could not be settled may be."""
        for entity in [entity for entity, number in self._rejected.items() if number == partition]:
            del self._rejected[entity]
            self.under_way.pop(entity, None)

    def cut_off(self, partition: int, entity: str, policy: str, begun: Dispatch) -> None:
        """A handler had begun with this when its partition was lost."""
        self._cut_off.setdefault(partition, {})[entity] = (policy, begun)

    def _forget(self, partition: int, entity: str) -> None:
        """The store has settled what was cut off."""
        self._cut_off.get(partition, {}).pop(entity, None)

    def _in_doubt(self, partition: int, claim: str) -> list[SettleLost]:
        """The steps that settle what was cut off, should the store not know of it."""
        return [
            SettleLost(
                partition=partition,
                entity=entity,
                claim=claim,
                uid=message.uid,
                policy=policy,
                attempt=message.attempt,
                interruptions=message.interruptions,
                recovering=begun.recovering,
            )
            for entity, (policy, begun) in self._cut_off.get(partition, {}).items()
            for message in begun.messages
        ]

    async def settle_lost(self, partition: int, claim: str) -> bool:
        """Settle what was under way here when a partition lost history; False if `claim` is not current.

        Raises:
            JournalUnavailable: the store gave no answer.
        """
        steps = self._in_doubt(partition, claim)
        answer = await self.commits.execute(steps)
        for step, result in zip(steps, answer.results, strict=True):
            if isinstance(result, Settled):
                self._forget(partition, step.entity)
                self._settled(step.entity, (step.uid,), result)
            elif isinstance(result, Stale):
                return False
            elif isinstance(result, Rejected):
                logger.error("%s/%s began, and cannot be settled: %s", step.entity, step.uid, result.text)
            else:
                raise SystemFailed(f"the journal answered {step!r} with {result!r}")
        return True

    # Askers.

    def _settled(self, entity: str, uids: tuple[str, ...], result: Settled) -> None:
        if result.settlement != "interrupt":
            return
        self.events.count_interrupted(len(uids))
        for uid, body in zip(uids, result.bodies, strict=False):
            self._reply(entity, uid, body, b"interrupted\n")
            if self.events.listeners.active:
                self.events.about(entity, uid, body, "interrupted", "dead-lettered")

    def expired(self, entity: str, uid: str, body: bytes | None) -> None:
        """A message expired: answer its asker; one whose sender does not wait is a dead letter now."""
        self._reply(entity, uid, body, b"expired\n")
        if body is not None and _is_tell(body):
            self.events.buried(entity, uid, body)

    def _reply(self, entity: str, uid: str, body: bytes | None, outcome: bytes) -> None:
        sender = ""
        if body is not None:
            try:
                sender = decode_envelope(unpack_body(body).envelope).headers.sender
            except (ValueError, msgspec.DecodeError) as error:
                logger.warning("the envelope of %s/%s does not decode: %s", entity, uid, error)
        self.replies.reply(sender, entity, uid, outcome)


def _is_tell(body: bytes) -> bool:
    try:
        return not unpack_body(body).waited_for
    except ValueError:
        return False
