"""Ways to spoil a good history. Each finds the places where it would be wrong, and spoils one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import TypeVar

from msgspec.structs import replace

from atomic_actors.testing.checkers._history import (
    Accepted,
    Answered,
    Began,
    Called,
    Claimed,
    Committed,
    Ended,
    PutBack,
    Record,
    Sent,
    Stopped,
    Taken,
)

R = TypeVar("R", bound=Record)
#: A way to spoil it: what comes in the place of a record.
Spoiled = tuple[int, list[Record]]
Mutation = Callable[[list[Record]], Iterator[Spoiled]]

#: By name, with the rule that must notice.
MUTATIONS: dict[str, tuple[Mutation, str]] = {}


def noticed_by(rule: str) -> Callable[[Mutation], Mutation]:
    def note(mutation: Mutation) -> Mutation:
        MUTATIONS[mutation.__name__] = (mutation, rule)
        return mutation

    return note


def spoil(records: list[Record], mutation: Mutation, chance: Random) -> list[Record] | None:
    """The records with one place spoiled; None if there is no such place."""
    places = list(mutation(records))
    if not places:
        return None
    place, instead = chance.choice(places)
    return [*records[:place], *instead, *records[place + 1 :]]


def each(records: list[Record], kind: type[R]) -> Iterator[tuple[int, R]]:
    for place, record in enumerate(records):
        if isinstance(record, kind):
            yield place, record


@noticed_by("nothing-lost")
def an_end_is_missing(records: list[Record]) -> Iterator[Spoiled]:
    for place, _ in each(records, Ended):
        yield place, []


@noticed_by("one-final")
def an_end_comes_twice(records: list[Record]) -> Iterator[Spoiled]:
    for place, record in each(records, Ended):
        yield place, [record, record]


@noticed_by("one-final")
def a_message_is_accepted_twice(records: list[Record]) -> Iterator[Spoiled]:
    for place, record in each(records, Accepted):
        if record.source != "outbox":
            yield place, [record, record]


@noticed_by("outbox-once")
def an_outbox_message_is_accepted_twice(records: list[Record]) -> Iterator[Spoiled]:
    for place, record in each(records, Accepted):
        if record.source == "outbox":
            yield place, [record, record]


@noticed_by("fifo")
def a_message_is_never_accepted(records: list[Record]) -> Iterator[Spoiled]:
    taken = {(record.entity, uid) for _, record in each(records, Taken) for uid in record.uids}
    for place, record in each(records, Accepted):
        if (record.entity, record.uid) in taken:
            yield place, []


@noticed_by("one-start")
def a_handler_begins_twice(records: list[Record]) -> Iterator[Spoiled]:
    for place, record in each(records, Began):
        yield place, [record, record]


@noticed_by("one-start")
def a_handler_stops_that_did_not_begin(records: list[Record]) -> Iterator[Spoiled]:
    stopped = {(record.entity, record.uid, record.attempt) for _, record in each(records, Stopped)}
    for place, record in each(records, Began):
        if (record.entity, record.uid, record.attempt) in stopped:
            yield place, []


@noticed_by("one-start")
def a_handler_begins_elsewhere(records: list[Record]) -> Iterator[Spoiled]:
    for place, record in each(records, Began):
        yield place, [replace(record, node=record.node + 1000)]


@noticed_by("one-start")
def an_attempt_is_left_out(records: list[Record]) -> Iterator[Spoiled]:
    for place, record in each(records, Taken):
        yield place, [replace(record, attempts=tuple(attempt + 5 for attempt in record.attempts))]


@noticed_by("one-turn")
def a_turn_is_taken_twice(records: list[Record]) -> Iterator[Spoiled]:
    for place, record in each(records, Taken):
        yield place, [record, record]


@noticed_by("one-turn")
def what_goes_back_is_not_written_down(records: list[Record]) -> Iterator[Spoiled]:
    for place, _ in each(records, PutBack):
        yield place, []


@noticed_by("one-turn")
def a_turn_is_committed_twice(records: list[Record]) -> Iterator[Spoiled]:
    for place, record in each(records, Committed):
        again = replace(record, version_before=record.version_after, state_before=record.state_after)
        yield place, [record, again]


@noticed_by("single-owner")
def somebody_else_takes(records: list[Record]) -> Iterator[Spoiled]:
    for place, record in each(records, Taken):
        yield place, [replace(record, node=record.node + 1000)]


@noticed_by("single-owner")
def an_old_owner_commits(records: list[Record]) -> Iterator[Spoiled]:
    for place, record in each(records, Committed):
        yield place, [replace(record, epoch=record.epoch - 1)]


@noticed_by("single-owner")
def an_epoch_comes_again(records: list[Record]) -> Iterator[Spoiled]:
    last: dict[int, int] = {}
    for place, record in each(records, Claimed):
        if record.partition in last:
            yield place, [replace(record, epoch=last[record.partition])]
        last[record.partition] = record.epoch


@noticed_by("version-chain")
def a_version_is_left_out(records: list[Record]) -> Iterator[Spoiled]:
    for place, record in each(records, Committed):
        changed = replace(
            record, version_before=record.version_before + 1, version_after=record.version_after + 1
        )
        yield place, [changed]


@noticed_by("version-chain")
def a_commit_that_changed_something_is_missing(records: list[Record]) -> Iterator[Spoiled]:
    last = {record.entity: place for place, record in each(records, Committed)}
    for place, record in each(records, Committed):
        if record.version_after > record.version_before and last[record.entity] > place:
            yield place, []


@noticed_by("version-chain")
def another_state_is_found(records: list[Record]) -> Iterator[Spoiled]:
    seen: set[str] = set()
    for place, record in each(records, Committed):
        if record.entity in seen:
            yield place, [replace(record, state_before="another")]
        seen.add(record.entity)


@noticed_by("outbox-once")
def nobody_sent_it(records: list[Record]) -> Iterator[Spoiled]:
    for place, _ in each(records, Sent):
        yield place, []


@noticed_by("outbox-once")
def its_parent_does_not_complete(records: list[Record]) -> Iterator[Spoiled]:
    parents = {(record.source, record.parent) for _, record in each(records, Sent)}
    for place, record in each(records, Ended):
        if (record.entity, record.uid) in parents:
            yield place, [replace(record, event="fail")]


@noticed_by("outbox-once")
def two_arrive_in_the_wrong_order(records: list[Record]) -> Iterator[Spoiled]:
    source = {(record.target, record.uid): record.source for _, record in each(records, Sent)}
    last: dict[tuple[str, str], tuple[int, Accepted]] = {}
    for place, record in each(records, Accepted):
        if record.source == "outbox":
            stream = (source[record.entity, record.uid], record.entity)
            if stream in last:
                # The later one comes in the place of the earlier one, too: then the earlier one is missing.
                earlier, accepted = last[stream]
                yield earlier, [replace(accepted, uid=record.uid)]
            last[stream] = (place, record)


@noticed_by("answers-true")
def the_caller_is_told_of_another_end(records: list[Record]) -> Iterator[Spoiled]:
    for place, record in each(records, Answered):
        if record.word in ("reply", "refused", "failed", "interrupted"):
            yield place, [replace(record, word="failed" if record.word == "reply" else "reply")]


@noticed_by("answers-true")
def the_caller_is_told_that_it_never_ran(records: list[Record]) -> Iterator[Spoiled]:
    calls = {record.call: (record.entity, record.uid) for _, record in each(records, Called)}
    begun = {(record.entity, record.uid) for _, record in each(records, Began)}
    for place, record in each(records, Answered):
        if calls[record.call] in begun:
            yield place, [replace(record, word="never")]


@noticed_by("nothing-lost")
def the_caller_is_told_too_early(records: list[Record]) -> Iterator[Spoiled]:
    for place, record in each(records, Called):
        yield place, [record, Answered(at_s=record.at_s, call=record.call, word="accepted")]
