"""Rules about messages: one end, a chain of versions, an outbox that arrives once, true answers, nothing lost.

The records of one step of the store may stand in any order but for two things: what a step takes comes last, and a
message is accepted before anything else happens to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import define

from atomic_actors.testing.checkers._history import (
    Accepted,
    Answered,
    Began,
    Called,
    Claimed,
    Committed,
    Ended,
    Sent,
    Taken,
)
from atomic_actors.testing.checkers._rule import Rule

__all__ = ("AnswersTrue", "NothingLost", "OneFinal", "OutboxOnce", "VersionChain")

#: What the store must have for a word that says how a message ended.
_EVENT_OF_WORD: Final = {
    "reply": "complete",
    "refused": "refuse",
    "failed": "fail",
    "interrupted": "interrupt",
}


@define(eq=False)
class _Life:
    """One accepted message."""

    source: str
    end: str = ""


class OneFinal(Rule):
    """A message is accepted once, ends at most once, and nothing is taken or begins after that.

    A handler whose epoch is over may still begin: the store has settled its dispatch without it, and it can commit
    nothing. Whether a message ends at all is `nothing-lost`; that an outbox message comes twice is `outbox-once`.
    A message that was accepted before history was lost may be accepted, run and end again.
    """

    name = "one-final"

    def __init__(self, *, healed: bool = False) -> None:
        super().__init__(healed=healed)
        self._lives: dict[tuple[str, str], _Life] = {}
        self._relaxed: set[tuple[str, str]] = set()
        self._newest: dict[int, int] = {}

    def looks(self) -> Mapping[type, Callable[[Any], None]]:
        """Which method looks at which kind of record."""
        return {
            Accepted: self._accepted,
            Taken: self._taken,
            Began: self._began,
            Ended: self._ended,
            Claimed: self._claimed,
        }

    def forget(self, partitions: frozenset[int] | None) -> None:
        """The messages so far may live again."""
        self._relaxed.update(key for key in self._lives if self.is_concerned(key[0], partitions))

    def _accepted(self, record: Accepted) -> None:
        key = (record.entity, record.uid)
        life = self._lives.get(key)
        if life is None:
            self._lives[key] = _Life(record.source)
        elif key not in self._relaxed and (life.source, record.source) != ("outbox", "outbox"):
            self.report(record.entity, f"{record.uid} is accepted twice")

    def _taken(self, record: Taken) -> None:
        for uid in record.uids:
            self._must_live(record.entity, uid, "taken")

    def _began(self, record: Began) -> None:
        newest = self._newest.get(self.partition_of.get(record.entity, -1), record.epoch)
        if newest <= record.epoch:
            self._must_live(record.entity, record.uid, "begun")

    def _must_live(self, entity: str, uid: str, word: str) -> None:
        key = (entity, uid)
        life = self._lives.get(key)
        if life is not None and life.end and key not in self._relaxed:
            self.report(entity, f"{uid} is {word} after its end ({life.end})")

    def _ended(self, record: Ended) -> None:
        key = (record.entity, record.uid)
        life = self._lives.get(key)
        if life is None:
            self.report(record.entity, f"{record.uid} ends ({record.event}) and was not accepted")
            return
        if life.end and key not in self._relaxed:
            self.report(record.entity, f"{record.uid} ends ({record.event}) after it had ended ({life.end})")
        life.end = record.event

    def _claimed(self, record: Claimed) -> None:
        self._newest[record.partition] = record.epoch


class VersionChain(Rule):
    """Each commit finds the version and the state that the one before left; a version grows by at most one.

    An entity begins with version 0. After lost history, each entity concerned begins where its next commit says.
    """

    name = "version-chain"

    def __init__(self, *, healed: bool = False) -> None:
        super().__init__(healed=healed)
        self._last: dict[str, tuple[int, str]] = {}
        #: What was lost, None for everything, and who has committed since.
        self._lost: set[int | None] = set()
        self._known: set[str] = set()

    def looks(self) -> Mapping[type, Callable[[Any], None]]:
        """Which method looks at which kind of record."""
        return {Committed: self._committed}

    def forget(self, partitions: frozenset[int] | None) -> None:
        """Versions begin anew."""
        self._lost.update([None] if partitions is None else partitions)
        self._known = {entity for entity in self._known if not self.is_concerned(entity, partitions)}

    def _committed(self, record: Committed) -> None:
        entity = record.entity
        last = self._last.get(entity)
        if entity not in self._known and self._lost & {None, record.partition}:
            last = (record.version_before, record.state_before)
        self._known.add(entity)
        self._last[entity] = (record.version_after, record.state_after)
        version, state = last if last is not None else (0, record.state_before)
        if record.version_before != version:
            self.report(
                entity, f"a commit finds version {record.version_before}; the last one left {version}"
            )
        elif record.state_before != state:
            self.report(
                entity, f"a commit finds the state {record.state_before!r}; the last one left {state!r}"
            )
        grows = record.version_after - record.version_before
        if grows not in (0, 1):
            self.report(entity, f"a commit takes version {record.version_before} to {record.version_after}")
        elif not grows and record.state_after != record.state_before:
            self.report(entity, f"the state changes and stays version {record.version_before}")


@define(eq=False, kw_only=True)
class _Post:
    """One message of an outbox."""

    source: str
    target: str
    uid: str
    at_s: float
    position: int
    is_accepted: bool = False
    #: Sent before one of its two partitions lost history.
    is_relaxed: bool = False


@define(eq=False)
class _Early:
    """An outbox message that was accepted and of which no commit is known yet."""

    at_s: float
    position: int


class OutboxOnce(Rule):
    """What a commit sends is accepted once, in the order of the commits; nothing else is accepted from an outbox.

    The order is kept between any two entities. A message is sent by the very step in which its parent completes.
    Only in a history that is healed does everything have to arrive. What was sent before either partition lost
    history may arrive any number of times, or never; what a partition sends after it lost history may not arrive,
    because a loss that no node noticed makes it give numbers again.
    """

    name = "outbox-once"

    def __init__(self, *, healed: bool = False) -> None:
        super().__init__(healed=healed)
        self._posts: dict[tuple[str, str], _Post] = {}
        self._streams: dict[tuple[str, str], deque[_Post]] = {}
        self._early: dict[tuple[str, str], _Early] = {}
        #: By stream: the last one that was accepted before its commit was known, and where.
        self._arrived: dict[tuple[str, str], tuple[_Post, int]] = {}
        self._ends: dict[tuple[str, str], tuple[str, float]] = {}
        #: Parents that have sent and not ended yet, with what they sent first.
        self._parents: dict[tuple[str, str], _Post] = {}
        self._lost: set[int | None] = set()

    def looks(self) -> Mapping[type, Callable[[Any], None]]:
        """Which method looks at which kind of record."""
        return {Sent: self._sent, Accepted: self._accepted, Ended: self._ended}

    def forget(self, partitions: frozenset[int] | None) -> None:
        """Streams begin anew."""
        self._lost.update([None] if partitions is None else partitions)
        for post in self._posts.values():
            if self.is_concerned(post.source, partitions) or self.is_concerned(post.target, partitions):
                post.is_relaxed = True

    def _sent(self, record: Sent) -> None:
        key = (record.target, record.uid)
        before = self._posts.get(key)
        if before is not None and not before.is_relaxed:
            self.report(record.source, f"{record.uid} is sent to {record.target} twice")
            return
        post = _Post(
            source=record.source,
            target=record.target,
            uid=record.uid,
            at_s=record.at_s,
            position=self.position,
        )
        post.is_relaxed = before is not None
        self._posts[key] = post
        self._check_parent(record, post)
        early = self._early.pop(key, None)
        if early is None:
            self._streams.setdefault((record.source, record.target), deque()).append(post)
            return
        post.is_accepted = True
        if early.at_s != record.at_s:
            self._report_unsent(key, early)
            return
        stream = (post.source, post.target)
        last, arrived_at = self._arrived.get(stream, (post, -1))
        first = self._first_waiting(post)
        if first is not None:
            self._report_order(post, first)
        elif arrived_at > early.position:
            self._report_order(last, post)
        self._arrived[stream] = (post, early.position)

    def _check_parent(self, record: Sent, post: _Post) -> None:
        end = self._ends.get((record.source, record.parent))
        if end is None:
            self._parents.setdefault((record.source, record.parent), post)
        elif end != ("complete", record.at_s):
            self.report(
                record.source,
                f"{record.parent} sends {record.uid} and ended ({end[0]}) at {end[1]:.3f} s",
            )

    def _ended(self, record: Ended) -> None:
        key = (record.entity, record.uid)
        self._ends[key] = (record.event, record.at_s)
        post = self._parents.pop(key, None)
        if post is not None and (record.event, record.at_s) != ("complete", post.at_s):
            self._report_parent(key, post, f"ends ({record.event})")

    def _accepted(self, record: Accepted) -> None:
        if record.source != "outbox":
            return
        key = (record.entity, record.uid)
        post = self._posts.get(key)
        if post is None:
            if key in self._early:
                self.report(record.entity, f"{record.uid} is accepted from an outbox twice")
            self._early.setdefault(key, _Early(record.at_s, self.position))
        elif post.is_accepted:
            if not post.is_relaxed:
                self.report(record.entity, f"{record.uid} is accepted from an outbox twice")
        else:
            post.is_accepted = True
            first = self._first_waiting(post)
            if first is not None and first.position < post.position and not post.is_relaxed:
                self._report_order(post, first)

    def _first_waiting(self, post: _Post) -> _Post | None:
        stream = self._streams.get((post.source, post.target))
        while stream and (stream[0].is_accepted or stream[0].is_relaxed):
            stream.popleft()
        return stream[0] if stream else None

    def _report_order(self, post: _Post, first: _Post) -> None:
        self.report(post.target, f"{post.uid} of {post.source} is accepted before {first.uid}, sent earlier")

    def _report_unsent(self, key: tuple[str, str], early: _Early) -> None:
        text = f"{key[1]} is accepted from an outbox, and no commit had sent it"
        self.report(key[0], text, position=early.position, at_s=early.at_s)

    def _report_parent(self, key: tuple[str, str], post: _Post, does: str) -> None:
        text = f"{key[1]} sends {post.uid} and {does}"
        self.report(key[0], text, position=post.position, at_s=post.at_s)

    def _may_be_missing(self, post: _Post) -> bool:
        partition = self.partition_of.get(post.source)
        return post.is_relaxed or None in self._lost or partition in self._lost

    def close(self) -> None:
        """Report what was accepted and never sent, and, when healed, what never arrived."""
        for key, early in self._early.items():
            if not self._lost:
                self._report_unsent(key, early)
        for key, post in self._parents.items():
            self._report_parent(key, post, "does not complete")
        if not self.healed:
            return
        for post in self._posts.values():
            if not post.is_accepted and not self._may_be_missing(post):
                text = f"{post.uid}, sent by {post.source}, never arrives"
                self.report(post.target, text, position=post.position, at_s=post.at_s)


class AnswersTrue(Rule):
    """A caller's answer is what the store has at the moment of the answer.

    `reply`, `refused`, `failed` and `interrupted` need that end. `never` means that no handler began with the
    message, before or after. An answer without a unique id, from a caller who did not know it either, is not
    checked. Calls from before lost history may have answers that are gone from the store.
    """

    name = "answers-true"

    def __init__(self, *, healed: bool = False) -> None:
        super().__init__(healed=healed)
        self._calls: dict[int, Called] = {}
        self._answered: set[int] = set()
        self._relaxed: set[int] = set()
        self._ends: dict[tuple[str, str], str] = {}
        self._begun: set[tuple[str, str]] = set()
        self._never: set[tuple[str, str]] = set()

    def looks(self) -> Mapping[type, Callable[[Any], None]]:
        """Which method looks at which kind of record."""
        return {
            Called: self._called,
            Answered: self._word,
            Ended: self._ended,
            Began: self._began,
        }

    def forget(self, partitions: frozenset[int] | None) -> None:
        """What callers were told, and wait for, may not hold any more."""
        self._relaxed.update(
            number for number, call in self._calls.items() if self.is_concerned(call.entity, partitions)
        )
        self._begun = {key for key in self._begun if not self.is_concerned(key[0], partitions)}
        self._never = {key for key in self._never if not self.is_concerned(key[0], partitions)}

    def _called(self, record: Called) -> None:
        self._calls[record.call] = record

    def _ended(self, record: Ended) -> None:
        self._ends[record.entity, record.uid] = record.event

    def _began(self, record: Began) -> None:
        if (record.entity, record.uid) in self._never:
            self.report(record.entity, f"{record.uid} began, and its caller was answered that it never runs")
        self._begun.add((record.entity, record.uid))

    def _word(self, record: Answered) -> None:
        call = self._calls.get(record.call)
        if call is None or record.call in self._answered:
            self.report("", f"call {record.call} is answered {'twice' if call else 'and was not made'}")
            return
        self._answered.add(record.call)
        uid = record.uid or call.uid
        if not uid or record.call in self._relaxed:
            return
        key = (call.entity, uid)
        event = _EVENT_OF_WORD.get(record.word)
        if record.word == "never":
            self._never.add(key)
            if key in self._begun:
                self.report(call.entity, f"{uid} began, and its caller is answered that it never ran")
        elif event is not None and self._ends.get(key) != event:
            had = self._ends.get(key, "not ended")
            self.report(call.entity, f"call {record.call} is answered {record.word} for {uid}: it is {had}")


class NothingLost(Rule):
    """What a caller was answered is accepted was accepted; and, when healed, everything that was accepted has ended.

    What was accepted before history was lost may be gone.
    """

    name = "nothing-lost"

    def __init__(self, *, healed: bool = False) -> None:
        super().__init__(healed=healed)
        #: Accepted and not ended: where.
        self._open: dict[tuple[str, str], tuple[int, float]] = {}
        self._accepted_ever: set[tuple[str, str]] = set()
        self._has_lost = False
        self._calls: dict[int, Called] = {}

    def looks(self) -> Mapping[type, Callable[[Any], None]]:
        """Which method looks at which kind of record."""
        return {
            Accepted: self._accepted,
            Ended: self._ended,
            Called: self._called,
            Answered: self._answered,
        }

    def forget(self, partitions: frozenset[int] | None) -> None:
        """The messages so far need not end."""
        self._has_lost = True
        self._open = {
            key: where for key, where in self._open.items() if not self.is_concerned(key[0], partitions)
        }

    def _accepted(self, record: Accepted) -> None:
        key = (record.entity, record.uid)
        if self._has_lost or key not in self._accepted_ever:
            self._open.setdefault(key, (self.position, self.at_s))
        self._accepted_ever.add(key)

    def _ended(self, record: Ended) -> None:
        self._open.pop((record.entity, record.uid), None)

    def _called(self, record: Called) -> None:
        self._calls[record.call] = record

    def _answered(self, record: Answered) -> None:
        call = self._calls.get(record.call)
        uid = record.uid or (call.uid if call is not None else "")
        if call is None or record.word != "accepted" or not uid:
            return
        if (call.entity, uid) not in self._accepted_ever:
            self.report(call.entity, f"call {record.call} is answered that {uid} is accepted, and it was not")

    def close(self) -> None:
        """Report, when healed, what has not ended."""
        if not self.healed:
            return
        for (entity, uid), (position, at_s) in self._open.items():
            self.report(entity, f"{uid} is accepted and never ends", position=position, at_s=at_s)
