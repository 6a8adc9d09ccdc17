"""A history as a table that people can read: when, where, what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

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
)
from atomic_actors.testing.checkers._rule import is_crash

__all__ = ("timeline",)

#: How many lines stand before and after the record that a timeline is made around.
_LINES_AROUND: Final = 40


def timeline(
    history: History, *, entity: str | None = None, around: int | None = None, width: int = 110
) -> str:
    """What happened, a line for each record: virtual time in seconds, a column for each node and the store, what.

    In the columns `>` is a handler that begins, `<` one that ends, `|` one that runs meanwhile, `*` a step of the
    store, `#` a claim, `o` a partition given up, `!` a fault.

    Args:
        history: what happened.
        entity: show only this one (`kind/id`), with the claims of its partition and all faults.
        around: the position of a record, such as `Violation.position`: show only the lines near it, and mark it.
        width: the longest line, in characters; what does not fit is cut.
    """
    nodes = sorted({node for record in history.records if (node := getattr(record, "node", 0))})
    lines = list(_lines(history, entity, nodes))
    if around is not None:
        near = [number for number, (position, _) in enumerate(lines) if position <= around]
        middle = near[-1] if near else 0
        lines = lines[max(0, middle - _LINES_AROUND) : middle + _LINES_AROUND + 1]
    names = " ".join(f"{f'n{node}':>3}" for node in nodes)
    shown = [f"{'time s':>13} {names} store  what"]
    for position, line in lines:
        text = f"{'=>' if position == around else '  '}{line}"
        shown.append(text if len(text) <= width else f"{text[: width - 3]}...")
    return "\n".join(line.rstrip() for line in shown) + "\n"


def _lines(history: History, entity: str | None, nodes: list[int]) -> Iterator[tuple[int, str]]:
    view = _View(nodes)
    for record in history.records:
        if isinstance(record, Taken):
            view.partitions[record.entity] = record.partition
    for position, record in enumerate(history.records):
        line = view.line(record, entity)
        if line:
            yield position, line


def _short(value: object, length: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


@define(eq=False)
class _View:
    """What runs where, as the lines go by."""

    nodes: list[int]
    partitions: dict[str, int] = field(factory=dict[str, int])
    #: Handlers that run, of the entities that are shown: (node, entity, uid).
    running: set[tuple[int, str, str]] = field(factory=set[tuple[int, str, str]])
    called: dict[int, Called] = field(factory=dict[int, Called])

    def line(self, record: Record, entity: str | None) -> str:
        """The record's line, or "" where it is not shown."""
        if isinstance(record, Called):
            self.called[record.call] = record
        if not self._is_shown(record, entity):
            return ""
        node, sign, text = self._describe(record)
        if isinstance(record, Began):
            self.running.add((record.node, record.entity, record.uid))
        busy = {running[0] for running in self.running}
        cells = [f"{sign if number == node else '|' if number in busy else '.':>3}" for number in self.nodes]
        if isinstance(record, Stopped):
            self.running.discard((record.node, record.entity, record.uid))
        elif isinstance(record, Fault) and is_crash(record):
            self.running = {running for running in self.running if running[0] != record.node}
        return f"{record.at_s:11.3f} {' '.join(cells)} {sign if node == 0 else '.':^5}  {text}"

    def _is_shown(self, record: Record, entity: str | None) -> bool:
        if entity is None or isinstance(record, Fault):
            return True
        if isinstance(record, Claimed | Freed):
            return self.partitions.get(entity) == record.partition
        if isinstance(record, Sent):
            return entity in (record.source, record.target)
        if isinstance(record, Answered):
            call = self.called.get(record.call)
            return call is not None and call.entity == entity
        return record.entity == entity

    def _describe(self, record: Record) -> tuple[int, str, str]:
        """The node where it happened (0 for the store, -1 for none), its sign, and its text."""
        match record:
            case Fault():
                text = f"{record.what}{f': {record.detail}' if record.detail else ''}"
                return record.node, "!", f"!! {f'node {record.node} ' if record.node else ''}{text}"
            case Claimed():
                return record.node, "#", f"claims partition {record.partition}, epoch {record.epoch}"
            case Freed():
                return record.node, "o", f"frees partition {record.partition}, epoch {record.epoch}"
            case Began():
                what = "on_interrupted" if record.recovering else "begins"
                return (
                    record.node,
                    ">",
                    f"{record.entity} {record.uid} {what}, attempt {record.attempt}, epoch {record.epoch}",
                )
            case Stopped():
                return record.node, "<", f"{record.entity} {record.uid} {record.how}"
            case Called():
                return (
                    -1,
                    "",
                    f"{record.entity} call {record.call}: {record.caller} {record.verb} {_short(record.message)}",
                )
            case Answered():
                call = self.called.get(record.call)
                whom = f"{call.entity} " if call is not None else ""
                value = f" {_short(record.value)}" if record.value is not None else ""
                return -1, "", f"{whom}call {record.call} is answered {record.word}{value}"
            case _:
                return 0, "*", self._describe_step(record)

    def _describe_step(self, record: Accepted | Taken | PutBack | Sent | Committed | Ended) -> str:
        match record:
            case Accepted():
                where = " at the head" if record.at_head else ""
                return f"{record.entity} {record.uid} accepted ({record.source}){where}: {record.name}"
            case Taken():
                members = ", ".join(
                    f"{uid} attempt {attempt}"
                    for uid, attempt in zip(record.uids, record.attempts, strict=True)
                )
                where = f"turn {record.turn} for node {record.node}, epoch {record.epoch}"
                return f"{record.entity} {where}: {members}"
            case PutBack():
                return f"{record.entity} {', '.join(record.uids)} back at the head ({record.event})"
            case Sent():
                return f"{record.source} {record.parent} sends {record.uid} to {record.target}"
            case Committed():
                versions = f"version {record.version_before} -> {record.version_after}"
                where = f"turn {record.turn} of node {record.node}, epoch {record.epoch}"
                return f"{record.entity} {where} is settled, {versions}"
            case Ended():
                return f"{record.entity} {record.uid} ends: {record.event}"
