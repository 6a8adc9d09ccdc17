"""Writes histories by hand: what is not said is what a right store would have done."""

from __future__ import annotations

from typing import Any, Literal

from attrs import define, field

from atomic_actors.testing.checkers._history import (
    Accepted,
    Answered,
    Began,
    Called,
    Claimed,
    Committed,
    Ended,
    Fault,
    Freed,
    History,
    PutBack,
    Record,
    Sent,
    Stopped,
    Taken,
    Word,
)

#: Entities and the partitions that they are in.
PARTITIONS = {"account/a": 0, "account/b": 0, "account/c": 1, "account/d": 1}
A, B, C, D = PARTITIONS


@define(eq=False)
class Story:
    """A history in the making, with the store's books as far as they are needed to go on."""

    history: History = field(factory=History)
    at_s: float = 0.0
    owners: dict[int, tuple[int, int]] = field(factory=dict)
    turns: dict[str, int] = field(factory=dict)
    versions: dict[str, int] = field(factory=dict)
    states: dict[str, str] = field(factory=dict)
    attempts: dict[tuple[str, str], int] = field(factory=dict)
    #: (node, epoch) of each entity's last dispatch.
    dispatched: dict[str, tuple[int, int]] = field(factory=dict)
    calls: int = 0

    def add(self, record: Record) -> None:
        self.history.add(record)

    def wait(self, seconds: float = 1.0) -> None:
        self.at_s += seconds

    def claim(self, partition: int = 0, node: int = 1, epoch: int | None = None) -> None:
        if epoch is None:
            epoch = self.owners.get(partition, (0, 0))[1] + 1
        self.owners[partition] = (node, epoch)
        self.add(
            Claimed(
                at_s=self.at_s,
                partition=partition,
                node=node,
                epoch=epoch,
                claim=f"claim-{partition}-{epoch}",
            )
        )

    def free(self, partition: int = 0) -> None:
        self.add(Freed(self.at_s, partition, *self.owners[partition]))

    def accept(
        self,
        *uids: str,
        entity: str = A,
        source: Literal["sent", "outbox", "replayed"] = "sent",
        at_head: bool = False,
    ) -> None:
        for uid in uids:
            self.add(
                Accepted(
                    at_s=self.at_s, entity=entity, uid=uid, name="Deposit", source=source, at_head=at_head
                )
            )

    def take(self, *uids: str, entity: str = A) -> None:
        partition = PARTITIONS[entity]
        node, epoch = self.dispatched[entity] = self.owners[partition]
        self.turns[entity] = self.turns.get(entity, 0) + 1
        for uid in uids:
            self.attempts[entity, uid] = self.attempts.get((entity, uid), 0) + 1
        attempts = tuple(self.attempts[entity, uid] for uid in uids)
        self.add(
            Taken(
                at_s=self.at_s,
                partition=partition,
                entity=entity,
                node=node,
                epoch=epoch,
                turn=self.turns[entity],
                uids=uids,
                attempts=attempts,
            )
        )

    def begin(
        self,
        uid: str,
        entity: str = A,
        *,
        where: tuple[int, int] | None = None,
        attempt: int | None = None,
        recovering: bool = False,
    ) -> None:
        node, epoch = where or self.dispatched[entity]
        attempt = attempt or self.attempts[entity, uid]
        self.add(
            Began(
                at_s=self.at_s,
                node=node,
                entity=entity,
                uid=uid,
                attempt=attempt,
                epoch=epoch,
                recovering=recovering,
            )
        )

    def stop(
        self,
        uid: str,
        entity: str = A,
        *,
        node: int | None = None,
        attempt: int | None = None,
        how: Literal["returned", "raised", "cancelled"] = "returned",
        recovering: bool = False,
    ) -> None:
        node = node or self.dispatched[entity][0]
        attempt = attempt or self.attempts[entity, uid]
        self.add(
            Stopped(
                at_s=self.at_s,
                node=node,
                entity=entity,
                uid=uid,
                attempt=attempt,
                how=how,
                recovering=recovering,
            )
        )

    def run(self, *uids: str, entity: str = A) -> None:
        for uid in uids:
            self.begin(uid, entity)
            self.stop(uid, entity)

    def back(self, *uids: str, entity: str = A, event: str = "requeue", is_counted: bool = True) -> None:
        for uid in () if is_counted else uids:
            self.attempts[entity, uid] -= 1
        self.add(PutBack(self.at_s, entity, uids, event))

    def end(self, *uids: str, entity: str = A, event: str = "complete") -> None:
        for uid in uids:
            self.add(Ended(at_s=self.at_s, entity=entity, uid=uid, event=event))

    def commit(self, entity: str = A, *, grows: bool = True) -> None:
        before, state_before = self.versions.get(entity, 0), self.states.get(entity, "")
        self.versions[entity] = before + grows
        self.states[entity] = f"state-{before + 1}" if grows else state_before
        node, epoch = self.owners[PARTITIONS[entity]]
        self.add(
            Committed(
                at_s=self.at_s,
                partition=PARTITIONS[entity],
                entity=entity,
                node=node,
                epoch=epoch,
                turn=self.turns[entity],
                version_before=before,
                version_after=before + grows,
                state_before=state_before,
                state_after=self.states[entity],
            )
        )

    def settle(self, *uids: str, entity: str = A, event: str = "") -> None:
        """A dispatch is cut off: its messages go back, or end."""
        if event:
            self.end(*uids, entity=entity, event=event)
        else:
            self.back(*uids, entity=entity)
        self.commit(entity, grows=False)

    def turn(self, *uids: str, entity: str = A, event: str = "complete") -> None:
        """A whole turn, from its dispatch to its commit."""
        self.take(*uids, entity=entity)
        self.run(*uids, entity=entity)
        self.end(*uids, entity=entity, event=event)
        self.commit(entity, grows=event == "complete")

    def send(self, uid: str, parent: str, source: str = A, target: str = C) -> None:
        self.add(Sent(at_s=self.at_s, source=source, parent=parent, target=target, uid=uid))

    def call(self, uid: str = "", entity: str = A, message: Any = None, verb: str = "ask") -> int:
        self.calls += 1
        self.add(
            Called(
                at_s=self.at_s,
                call=self.calls,
                caller="client",
                verb=verb,
                entity=entity,
                message=message,
                uid=uid,
            )
        )
        return self.calls

    def answer(self, call: int, word: Word, value: Any = None, uid: str = "") -> None:
        self.add(Answered(at_s=self.at_s, call=call, word=word, value=value, uid=uid))

    def fault(self, what: str, node: int = 0, detail: str = "") -> None:
        self.add(Fault(self.at_s, node, what, detail))


def new_story() -> Story:
    """Two partitions, each with an owner: node 1 and node 2."""
    story = Story()
    story.claim(0, 1)
    story.claim(1, 2)
    return story
