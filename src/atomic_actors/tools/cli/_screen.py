"""What the commands print: tables for people, JSON for machines.

Text that comes from the store is shown with its control characters escaped, so that a stored error
text cannot manipulate the user's terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from rich.console import Console, Group
from rich.status import Status
from rich.table import Table
from rich.text import Text

from atomic_actors.base._records import DeadLetter
from atomic_actors.node.operations._reports import AuditReport, Location

__all__ = ("WIDTH_MAX", "Screen", "letter_for_machines", "local_time", "plain_table", "printable")

WIDTH_MAX: Final = 100


def printable(text: str) -> str:
    """The text with control and other invisible characters written as escapes; line feeds and tabs stay."""
    return "".join(
        letter
        if letter.isprintable() or letter in "\n\t"
        else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def local_time(seconds: float) -> str:
    """Seconds since 1970 as a local ISO time, such as `2026-03-01T14:05:09+01:00`."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def letter_for_machines(letter: DeadLetter, *, details: bool, payload: bool) -> dict[str, Any]:
    """A dead letter as JSON has it; keys are only ever added.

    Args:
        letter: the letter.
        details: whether with the traceback.
        payload: whether with the message's content, which may be personal data.
    """
    fields: dict[str, Any] = {
        "message_id": letter.message_id,
        "kind": letter.entity.kind,
        "id": letter.entity.id,
        "name": letter.name,
        "reason": letter.reason,
        "error_type": letter.error_type,
        "error": letter.error,
        "attempts": letter.attempts,
        "interruptions": letter.interruptions,
        "accepted_at_s": letter.accepted_at_s,
        "died_at_s": letter.died_at_s,
        "replayed_as": letter.replayed_as,
    }
    if details:
        fields["traceback"] = letter.traceback
    if payload:
        fields["message"] = letter.message
    return fields


class Screen:
    """Standard output and standard error of one command."""

    def __init__(self) -> None:
        self.output = Console(highlight=False)
        self.errors = Console(stderr=True, highlight=False)
        for console in (self.output, self.errors):
            console.width = min(console.width, WIDTH_MAX) if console.is_terminal else WIDTH_MAX

    # Lines.

    def say(self, text: str) -> None:
        """One line of the answer."""
        self.output.print(Text(printable(text)), soft_wrap=True)

    def error(self, text: str) -> None:
        """What went wrong, on standard error, in one line."""
        line = " ".join(printable(text).splitlines())
        self.errors.print(Text.assemble(("error: ", "red"), line), soft_wrap=True)

    def ask(self, question: str) -> None:
        """A question, on standard error; the cursor stays behind it."""
        self.errors.print(Text(printable(question)), soft_wrap=True, end="")

    def status(self, text: str) -> Status:
        """Shows what takes so long, while it is entered, if standard error is a terminal."""
        return Status(Text(printable(text)), console=self.errors)

    def json(self, value: object) -> None:
        """JSON with indentation."""
        text = _json(value)
        self.output.print(Text(text), soft_wrap=True)

    # Tables.

    def letters(self, letters: Sequence[DeadLetter], *, more: bool) -> None:
        """Dead letters, two lines each; `more` says that not all of them are here."""
        table = plain_table("message id", "died", "reason")
        for letter in letters:
            error = f"{letter.error_type}: {letter.error}" if letter.error_type else letter.error
            note = f"  {letter.name}, {_count(letter.attempts, 'attempt')}"
            note += f"; {error}" if error else ""
            table.add_row(
                Group(
                    Text(printable(letter.message_id), overflow="fold"),
                    Text(" ".join(printable(note).split("\n")), "dim", no_wrap=True, overflow="ellipsis"),
                ),
                Text(local_time(letter.died_at_s), no_wrap=True),
                Text(letter.reason + ("\nreplayed" if letter.replayed_as else ""), no_wrap=True),
            )
        self.output.print(table)
        shown = _count(len(letters), "dead letter")
        self.say(f"\n{shown}, the oldest; there are more (--limit)" if more else f"\n{shown}")

    def letter(self, letter: DeadLetter, *, payload: bool) -> None:
        """One dead letter in full."""
        self._pairs(
            {
                "message id": letter.message_id,
                "entity": str(letter.entity),
                "message": letter.name,
                "reason": letter.reason,
                "error": f"{letter.error_type}: {letter.error}" if letter.error_type else letter.error or "-",
                "attempts": f"{letter.attempts:,}",
                "interruptions": f"{letter.interruptions:,}",
                "accepted": local_time(letter.accepted_at_s),
                "died": local_time(letter.died_at_s),
                "replayed as": letter.replayed_as or "-",
                "payload": _json(letter.message) if payload else "hidden; --payload shows it",
            }
        )
        if letter.traceback:
            self.say(f"\n{letter.traceback.rstrip()}")

    def audit(self, report: AuditReport) -> None:
        """The books, and what is wrong with them."""
        self._numbers(
            (
                ("accepted", report.accepted),
                ("  enqueued", report.enqueued),
                ("  dispatched", report.dispatched),
                ("  completed", report.completed),
                ("    of these refused", report.refused),
                ("  failed", report.failed),
                ("  interrupted", report.interrupted),
                ("  withdrawn", report.withdrawn),
                ("  expired", report.expired),
                ("dead letters", report.dead_letters),
                ("outbox messages on their way", report.outbound),
            )
        )
        if report.is_balanced:
            self.say("\nbalanced: every accepted message is in exactly one state")
            return
        self.say("\nNOT balanced:")
        for problem in report.problems:
            self.say(f"  {problem}")

    def location(self, location: Location) -> None:
        """Where an entity lives."""
        self._pairs(
            {
                "entity": str(location.entity),
                "partition": str(location.partition),
                "waiting": f"{location.waiting:,}",
                "dispatched": f"{location.dispatched:,}",
                "parked": "yes" if location.is_parked else "no",
                "version": f"{location.version:,}",
            }
        )

    def settings(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """Settings, each with where its value comes from."""
        table = plain_table("setting", "value", "from")
        for row in rows:
            table.add_row(*(Text(printable(text), overflow="fold") for text in row))
        self.output.print(table)

    def _pairs(self, pairs: Mapping[str, str]) -> None:
        table = plain_table("", "")
        table.show_header = False
        for name, text in pairs.items():
            table.add_row(Text(name, "bold", no_wrap=True), Text(printable(text), overflow="fold"))
        self.output.print(table)

    def _numbers(self, rows: Iterable[tuple[str, int]]) -> None:
        table = plain_table("messages")
        table.add_column("", justify="right")
        for name, number in rows:
            table.add_row(name, f"{number:,}")
        self.output.print(table)


def plain_table(*columns: str) -> Table:
    """A table without lines."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    return table


def _json(value: object) -> str:
    # ASCII alone would hide names from people; what JSON does not escape by itself may still be a control
    # character of a terminal.
    text = msgspec.json.format(msgspec.json.encode(value, enc_hook=repr), indent=2).decode()
    return "".join(
        letter if letter.isprintable() or letter == "\n" else _json_escape(letter) for letter in text
    )


def _json_escape(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
