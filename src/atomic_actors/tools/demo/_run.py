"""The demo's parent process: starts the worker, kills it, starts it again, and checks what it did."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Final
from urllib.parse import quote

import anyio
from rich.console import Console

from atomic_actors.base._errors import InvalidConfig
from atomic_actors.journal.embedded._embedded import embedded_server
from atomic_actors.tools.demo._child import Child, ChildFailed
from atomic_actors.tools.demo._data import NO_TAIL_NUMBER, Flight, load_lines
from atomic_actors.tools.demo._events import Answers, Job, Progress, Replayed, Sending, Sent, Started
from atomic_actors.tools.demo._fleet import Fleet, Tally
from atomic_actors.tools.demo._logbook import Logbook, compare, compute_logbooks
from atomic_actors.tools.demo._plan import KillPlan
from atomic_actors.tools.demo._screen import Screen, Summary

__all__ = ("run_demo",)

EXIT_EQUAL: Final = 0
EXIT_UNEQUAL: Final = 1
EXIT_STOPPED: Final = 130


def run_demo(
    *,
    directory: Path | None = None,
    url: str | None = None,
    kills: int = 1,
    seed: int = 2013,
    limit: int | None = None,
    workers: int = 1,
    console: Console | None = None,
) -> int:
    """Run a month of flights through actors, with `kill -9` on the way, and check every total.

    Blocks until the end, and starts child processes. Ctrl-C ends them.

    Args:
        directory: where the embedded store and the worker's log live; kept afterwards. None uses a
            temporary directory, which is removed.
        url: a store to use instead of the embedded one, as in `Config.url`. The demo keeps to a
            namespace of its own, and leaves its data there.
        kills: how often to kill the worker; 0 for none. A kill that interrupts no turn is repeated, up
            to five times.
        seed: chooses the moments of the kills.
        limit: how many of the 27,004 flights to use; None uses all of them.
        workers: how many processes run the aircraft. With more than one, each kill takes another of them,
            a killed one is not replaced while another lives, and one more process sends the flights.
        console: where to print; None is standard output.

    Returns:
        The exit code: 0 only if every aircraft is equal, every interrupted flight was replayed, and
        kills, if any, interrupted something; 1 if not; 130 after Ctrl-C.

    Raises:
        ValueError: `kills` is negative, or `limit` or `workers` is less than 1.
        InvalidConfig: `url` is `memory:`.
        FlightFileDamaged: the data file in the package is not the one that was built.
    """
    if kills < 0:
        raise ValueError(f"kills: expected 0 or more, got {kills}")
    if workers < 1:
        raise ValueError(f"workers: expected 1 or more, got {workers}")
    if url is not None and url.startswith("memory:"):
        raise InvalidConfig("url: 'memory:' forgets everything when the worker is killed; use another store")
    lines = load_lines(limit)
    screen = Screen(console or Console(), len(lines))
    with _workplace(directory) as place:
        store = place / "store"
        demo = _Demo(
            screen=screen,
            lines=lines,
            limit=limit,
            place=place,
            url=url or f"embedded://{quote(str(store))}",
            kills=kills,
            seed=seed,
            workers=workers,
        )
        try:
            return demo.run()
        except KeyboardInterrupt:
            demo.stop()
            screen.stopped()
            return EXIT_STOPPED
        except ChildFailed as error:
            screen.failed(str(error))
            return EXIT_UNEQUAL
        finally:
            screen.close_bar()
            demo.stop()
            if url is None and demo.left_a_server:
                anyio.run(_stop_server, store)


async def _stop_server(store: Path) -> None:
    """End the embedded server that a killed worker left running; the last to leave stops it."""
    async with embedded_server(store):
        pass


@contextmanager
def _workplace(directory: Path | None) -> Generator[Path]:
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        yield directory.resolve()
        return
    # A server that is just ending may still write a file while the directory is removed.
    with tempfile.TemporaryDirectory(prefix="atomic-actors-demo-", ignore_cleanup_errors=True) as name:
        yield Path(name).resolve()


class _Demo:
    """The story and its figures."""

    def __init__(
        self,
        screen: Screen,
        lines: list[str],
        limit: int | None,
        place: Path,
        url: str,
        kills: int,
        seed: int,
        workers: int,
    ) -> None:
        self._screen = screen
        self._lines = lines
        self._flights = [Flight.parse(line) for line in lines]
        self._limit = limit
        self._place = place
        self._url = url
        self._kills_wanted = kills
        self._workers = workers
        self._fleet: Fleet | None = None
        self._plan = KillPlan(len(lines), kills, seed)
        # Another demo may have used this store; its keys and states must not meet ours.
        self._namespace = f"demo-{secrets.token_hex(4)}"
        self._child: Child | None = None
        self._accepted = 0
        self._tally = Tally()

    def run(self) -> int:
        """Tell the story from start to end; returns the exit code."""
        began = perf_counter()
        expected = compute_logbooks(self._lines)
        nameless = expected.get(NO_TAIL_NUMBER)
        self._screen.open(
            self._flights,
            len(expected) - (nameless is not None),
            0 if nameless is None else nameless.flights,
            self._workers,
            self._kills_wanted,
        )
        if self._workers > 1:
            self._run_fleet()
        else:
            while self._run_child():
                self._tally.kills += 1
        return self._judge(expected, began)

    def stop(self) -> None:
        """End the workers that run."""
        if self._child is not None:
            self._child.stop()
        if self._fleet is not None:
            self._fleet.stop()

    @property
    def left_a_server(self) -> bool:
        """Whether the last worker was killed, so that the store was not stopped."""
        if self._fleet is not None:
            return self._fleet.left_a_server
        return self._child is not None and self._child.killed

    def _run_fleet(self) -> None:
        job = Job(
            url=self._url,
            namespace=self._namespace,
            limit=self._limit,
            accepted=0,
            restarted=False,
            role="sender",
        )
        self._fleet = fleet = Fleet(
            screen=self._screen,
            job=job,
            workers=self._workers,
            plan=self._plan,
            place=self._place,
            date_of=self._date,
        )
        fleet.run()
        self._tally = fleet.tally

    def _run_child(self) -> bool:
        """Run one worker until it is killed (True) or finished (False)."""
        job = Job(
            url=self._url,
            namespace=self._namespace,
            limit=self._limit,
            accepted=self._accepted,
            restarted=self._tally.kills > 0,
        )
        self._child = child = Child(job, self._place / "worker.log")
        sending_since = 0.0
        finished = False
        for event in child.events():
            if isinstance(event, Progress):
                self._accepted = accepted = event.accepted
                self._screen.progress(accepted, event.in_turn, self._date(accepted))
                if self._plan.wants(accepted, event.in_turn):
                    child.kill()
                    self._tally.sending_s += perf_counter() - sending_since
                    self._screen.killed(child.pid, accepted, event.in_turn)
                    return True
            elif isinstance(event, Started):
                self._screen.started(event.pid, event.seconds, again=self._tally.kills > 0)
            elif isinstance(event, Replayed):
                self._note_replayed(event)
            elif isinstance(event, Sending):
                sending_since = perf_counter()
            elif isinstance(event, Sent):
                self._tally.sending_s += event.seconds
                self._screen.comparing()
            elif isinstance(event, Answers):
                self._tally.found.update(event.logbooks)
            else:
                self._tally.waiting = event.waiting
                finished = True
        child.stop()
        if not finished:
            raise ChildFailed("the worker ended before it had finished")
        return False

    def _note_replayed(self, event: Replayed) -> None:
        self._tally.interrupted += len(event.flights)
        self._screen.interrupted(event.flights)
        if not event.flights:
            self._plan.try_again(self._accepted)

    def _date(self, accepted: int) -> str:
        """The day that the flights have reached."""
        return f"{self._flights[min(accepted, len(self._flights) - 1)].day} January"

    def _judge(self, expected: dict[str, Logbook], began: float) -> int:
        differences = compare(expected, self._tally.found)
        wrong = frozenset(difference.aircraft for difference in differences)
        if differences:
            self._screen.differences(differences)
        self._screen.busiest(self._tally.found, wrong)
        figures = Summary(
            flights=len(self._lines),
            aircraft=len(expected),
            kills=self._tally.kills,
            interrupted=self._tally.interrupted,
            replayed=self._tally.interrupted - self._tally.waiting,
            recorded=sum(book.flights for book in self._tally.found.values()),
            unequal=len(wrong),
            sending_s=self._tally.sending_s,
            whole_s=perf_counter() - began,
            workers=self._workers,
            alive=self._fleet.alive if self._fleet is not None else 1,
        )
        problems = list(self._problems(figures))
        if self._tally.kills and not self._tally.interrupted:
            self._screen.nothing_interrupted()
        self._screen.summary(figures, problems)
        return EXIT_UNEQUAL if problems else EXIT_EQUAL

    def _problems(self, figures: Summary) -> chain[str]:
        found: list[list[str]] = [
            [f"{figures.unequal:,} aircraft are not what the file says"] if figures.unequal else [],
            [f"{self._tally.waiting:,} interrupted flights wait for a replay"] if self._tally.waiting else [],
            [f"the worker was killed {self._tally.kills} times of {self._kills_wanted}"]
            if self._tally.kills < self._kills_wanted
            else [],
        ]
        return chain.from_iterable(found)
