"""What the demo shows. On a terminal it has a moving bar; elsewhere the same story in plain lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from attrs import frozen
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from atomic_actors.tools.demo._data import NO_TAIL_NUMBER, Flight
from atomic_actors.tools.demo._events import InterruptedFlight
from atomic_actors.tools.demo._logbook import Difference, Logbook

__all__ = ("Screen", "Summary")

ROWS_SHOWN: Final = 8
DIFFERENCES_SHOWN: Final = 10
BUSIEST_SHOWN: Final = 5
PLAIN_LINES: Final = 5


@frozen(kw_only=True)
class Summary:
    """The figures of the last table. Times are in seconds."""

    flights: int
    aircraft: int
    kills: int
    interrupted: int
    replayed: int
    recorded: int
    unequal: int
    sending_s: float
    whole_s: float
    workers: int = 1
    #: How many of the workers lived at the end.
    alive: int = 1


class Screen:
    """Prints each scene of the demo on a rich console."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last_accepted = -1
        self._next_plain_line = 0

    def open(
        self, flights: Sequence[Flight], aircraft: int, nameless: int, workers: int = 1, kills: int = 1
    ) -> None:
        """The header: what the data is and what is about to happen."""
        text = Text()
        text.append(f"{len(flights):,} flights", style="bold")
        text.append(f" left New York from {flights[0].day} to {flights[-1].day} January 2013, with ")
        text.append(f"{aircraft:,} aircraft", style="bold")
        if nameless:
            text.append(f"\n({nameless:,} cancelled flights have no tail number and share one more actor)")
        text.append("\n\nEvery aircraft is an actor; every flight is a command to it, in time order.")
        if workers == 1:
            text.append("\nThe process gets ")
            text.append("kill -9", style="bold red")
            text.append(" in the middle of its work. At the end every total must be right.")
        else:
            text.append(f"\n{workers} worker processes share them. {kills} of these get ")
            text.append("kill -9", style="bold red")
            text.append(" in the middle of their work, and are not replaced")
            text.append(" until the last one is gone" if kills >= workers else "")
            text.append(":\nthose that live take over. At the end every total must be right.")
        self._console.print(Panel(text, title="atomic-actors demo", border_style="cyan", expand=False))

    def started(self, pid: int, seconds: float, again: bool) -> None:
        """A worker runs."""
        word = "started again" if again else "started"
        self._say(f"[bold]worker {word}[/]: process {pid}, ready after {seconds:.1f} s")

    def host_started(self, number: int, pid: int, seconds: float) -> None:
        """One of many workers runs."""
        self._say(f"[bold]worker {number} started[/]: process {pid}, ready after {seconds:.1f} s")

    def sender_started(self, pid: int) -> None:
        """The process that sends runs."""
        self._say(f"[bold]sender started[/]: process {pid}; it owns no aircraft and is not killed")

    def left(self, number: int, alive: int) -> None:
        """What a kill left of many workers."""
        if not alive:
            self._say(f"  worker {number} was the last one; another is started in its place")
            return
        those = "1 worker is left, which takes" if alive == 1 else f"{alive} workers are left, which take"
        self._say(f"  worker {number} is not replaced: {those} over its aircraft")

    def progress(self, accepted: int, in_turn: int, date: str) -> None:
        """Move the bar; without a terminal, a line at every fifth of the way."""
        if not self._console.is_terminal:
            if accepted * PLAIN_LINES >= self._next_plain_line * self._total:
                self._say(
                    f"  {accepted:>6,} of {self._total:,} flights accepted, {in_turn:,} running, {date}"
                )
                self._next_plain_line = accepted * PLAIN_LINES // self._total + 1
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("  [cyan]{task.fields[date]:<10}"),
                BarColumn(bar_width=40),
                MofNCompleteColumn(),
                TextColumn("flights accepted, {task.fields[in_turn]:,} running"),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=self._total, date=date, in_turn=in_turn)
            self._bar.start()
        assert self._task is not None
        self._bar.update(self._task, completed=accepted, date=date, in_turn=in_turn)

    def close_bar(self) -> None:
        """Leave the bar where it is; the next `progress` makes a new one."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None

    def killed(self, pid: int, accepted: int, in_turn: int) -> None:
        """The red line."""
        self.close_bar()
        self._console.rule(Text(f"kill -9 {pid}", style="bold red"), style="red")
        self._say(f"  at {accepted:,} accepted flights; at its last report {in_turn:,} were running")

    def interrupted(self, flights: Sequence[InterruptedFlight]) -> None:
        """What the kill cut off, and what was done about it."""
        if not flights:
            self._say("  the kill fell between two turns: nothing was interrupted; once more")
            return
        table = Table(
            title=f"{len(flights):,} interrupted flights", title_style="bold red", title_justify="left"
        )
        for heading in ("aircraft", "flight", "reason"):
            table.add_column(heading)
        table.add_column("attempts", justify="right")
        for row in flights[:ROWS_SHOWN]:
            table.add_row(row.aircraft, row.flight, f"[red]{row.reason}[/]", str(row.attempts))
        if len(flights) > ROWS_SHOWN:
            table.add_row("…", f"and {len(flights) - ROWS_SHOWN:,} more", "", "")
        self._console.print(table)
        self._say("  each may have run wholly, partly or not at all; its aircraft waited (on_dead='park')")
        self._say(f"  [green]replayed at the head and resumed: {len(flights):,}[/]")

    def nothing_interrupted(self) -> None:
        """The kills came between turns, which is chance."""
        self._say("  no kill came in the middle of a turn this time; what waited went to the next owner")

    def comparing(self) -> None:
        """Sending is over."""
        self.close_bar()
        self._say("[bold]asking every aircraft[/] and comparing with a plain computation over the file")

    def differences(self, differences: Sequence[Difference]) -> None:
        """The first aircraft that are wrong."""
        table = Table(title="not equal", title_style="bold red", title_justify="left")
        for heading in ("aircraft", "field", "expected", "found"):
            table.add_column(heading)
        for row in differences[:DIFFERENCES_SHOWN]:
            table.add_row(row.aircraft, row.field, row.expected, row.found)
        if len(differences) > DIFFERENCES_SHOWN:
            table.add_row("…", f"and {len(differences) - DIFFERENCES_SHOWN:,} more", "", "")
        self._console.print(table)

    def busiest(self, found: Mapping[str, Logbook], wrong: frozenset[str]) -> None:
        """The aircraft with the most flights."""
        named = [item for item in found.items() if item[0] != NO_TAIL_NUMBER]
        named.sort(key=lambda item: (-item[1].flights, item[0]))
        table = Table(title="the busiest aircraft", title_style="bold", title_justify="left")
        table.add_column("aircraft")
        for heading in ("flights", "cancelled", "miles", "hours in air", "hours late"):
            table.add_column(heading, justify="right")
        table.add_column("digest of its flights in order")
        table.add_column("equal", justify="center")
        for name, book in named[:BUSIEST_SHOWN]:
            hours, late = book.minutes_in_air / 60, book.minutes_late / 60
            sums = (f"{book.miles:,}", f"{hours:,.0f}", f"{late:,.1f}")
            equal = "[red]no[/]" if name in wrong else "[green]yes[/]"
            counts = (str(book.flights), str(book.cancelled))
            table.add_row(name, *counts, *sums, f"{book.digest[:16]}…", equal)
        self._console.print(table)

    def summary(self, figures: Summary, problems: Sequence[str]) -> None:
        """The last table, green or red."""
        grid = Table.grid(padding=(0, 2))
        grid.add_column()
        grid.add_column(justify="right", style="bold")
        grid.add_row("flights sent", f"{figures.flights:,}")
        grid.add_row("flights recorded", f"{figures.recorded:,}")
        grid.add_row("kill -9", str(figures.kills))
        if figures.workers > 1:
            grid.add_row("workers left", f"{figures.alive} of {figures.workers}")
        grid.add_row("flights interrupted", f"{figures.interrupted:,}")
        grid.add_row("replayed by hand", f"{figures.replayed:,}")
        grid.add_row("actors equal", f"{figures.aircraft - figures.unequal:,} of {figures.aircraft:,}")
        grid.add_row(
            "flights a second, while sending", f"{figures.flights / max(figures.sending_s, 1e-6):,.0f}"
        )
        grid.add_row("whole demo", f"{figures.whole_s:.1f} s")
        colour = "red" if problems else "green"
        title = "not equal" if problems else "nothing lost, nothing doubled, nothing out of order"
        self._console.print(Panel(grid, title=f"[bold]{title}[/]", border_style=colour, expand=False))
        for problem in problems:
            self.failed(problem)

    def stopped(self) -> None:
        """Ctrl-C."""
        self.close_bar()
        self._say("stopped; the worker was ended")

    def failed(self, text: str) -> None:
        """Something went wrong that no kill explains."""
        self.close_bar()
        self._console.print(Text(text, style="red"))

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False)
