"""The demo itself: real processes, a real store, a real `kill -9`."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import pytest
from rich.console import Console

from atomic_actors.base._errors import InvalidConfig
from atomic_actors.tools.demo import _run, run_demo
from atomic_actors.tools.demo._child import Child, ChildFailed
from atomic_actors.tools.demo._data import load_flights, load_lines
from atomic_actors.tools.demo._events import (
    Answers,
    Event,
    Finished,
    InterruptedFlight,
    Job,
    Progress,
    Replayed,
    Sending,
    Sent,
    Started,
    decode_event,
    decode_job,
    encode,
)
from atomic_actors.tools.demo._logbook import Difference, Logbook, compute_logbooks
from atomic_actors.tools.demo._plan import KillPlan
from atomic_actors.tools.demo._screen import Screen, Summary

LIMIT = 3_000


def plain_console() -> tuple[Console, io.StringIO]:
    output = io.StringIO()
    return Console(file=output, width=110, force_terminal=False), output


# --- the parts -------------------------------------------------------------------------------------------


def test_events_go_through_the_pipe() -> None:
    events: list[Event] = [
        Started(7, 0.5),
        Replayed(
            (
                InterruptedFlight(
                    message_id="aircraft/N1/00",
                    aircraft="N1",
                    flight="UA 1",
                    reason="interrupted",
                    attempts=1,
                ),
            )
        ),
        Sending(),
        Progress(12, 3),
        Sent(1.5),
        Answers({"N1": Logbook(flights=1, digest="a")}),
        Finished(0),
    ]
    assert [decode_event(encode(event)) for event in events] == events
    job = Job(url="embedded:", namespace="demo", limit=None, accepted=12, restarted=True)
    assert decode_job(encode(job)) == job


def test_kills_are_planned_in_the_middle() -> None:
    plan = KillPlan(total=1000, kills=3, seed=1)
    moments = [accepted for accepted in range(1000) if plan.wants(accepted, in_turn=1)]
    assert len(moments) == 3
    assert 150 <= moments[0] < moments[1] < moments[2] <= 850


def test_the_same_seed_plans_the_same_kills() -> None:
    first, second = (KillPlan(1000, 2, seed=5) for _ in range(2))
    assert [first.wants(n, 1) for n in range(1000)] == [second.wants(n, 1) for n in range(1000)]


def test_no_kill_while_nothing_is_in_turn() -> None:
    plan = KillPlan(total=100, kills=1, seed=1)
    assert not any(plan.wants(accepted, in_turn=0) for accepted in range(100))
    assert plan.wants(100, in_turn=1)


def test_a_kill_that_hit_nothing_is_repeated_a_few_times() -> None:
    plan = KillPlan(total=1000, kills=0, seed=1)
    kills = 0
    for accepted in range(1000):
        if plan.wants(accepted, in_turn=1):
            kills += 1
        if accepted % 50 == 0:
            plan.try_again(accepted)
    assert kills == 5


def test_screen_shows_differences_and_problems() -> None:
    console, output = plain_console()
    screen = Screen(console, total=10)
    screen.differences([Difference(f"N{number}", "flights", "2", "3") for number in range(12)])
    screen.summary(
        Summary(
            flights=10,
            aircraft=12,
            kills=1,
            interrupted=3,
            replayed=3,
            recorded=10,
            unequal=12,
            sending_s=1.0,
            whole_s=2.0,
        ),
        ["12 aircraft are not what the file says"],
    )
    text = output.getvalue()
    assert "N9" in text
    assert "N10" not in text
    assert "and 2 more" in text
    assert "0 of 12" in text
    assert "12 aircraft are not what the file says" in text


def test_screen_on_a_terminal() -> None:
    output = io.StringIO()
    screen = Screen(Console(file=output, width=110, force_terminal=True), total=10)
    screen.open(load_flights(10), aircraft=10, nameless=0)
    screen.progress(5, 2, "1 January")
    screen.killed(4711, 5, 2)
    screen.progress(10, 0, "31 January")
    screen.comparing()
    text = output.getvalue()
    assert "kill -9 4711" in text
    assert "10/10" in text


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="kills: expected 0 or more"):
        run_demo(kills=-1)
    with pytest.raises(ValueError, match="limit: expected 1 or more"):
        run_demo(limit=0)
    with pytest.raises(ValueError, match="workers: expected 1 or more"):
        run_demo(workers=0)
    with pytest.raises(InvalidConfig, match="forgets everything"):
        run_demo(url="memory:")


# --- the whole -------------------------------------------------------------------------------------------


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_demo_loses_nothing(tmp_path: Path) -> None:
    console, output = plain_console()
    code = run_demo(directory=tmp_path, limit=LIMIT, console=console)
    text = output.getvalue()
    assert code == 0, text + (tmp_path / "worker.log").read_text()
    assert re.search(r"kill -9 \d+", text)
    assert "interrupted flights" in text
    assert "replayed at the head" in text
    assert "nothing lost, nothing doubled, nothing out of order" in text
    assert f"{len(compute_logbooks(load_lines(LIMIT))):,}" in text
    pids = {int(pid) for pid in re.findall(r"process (\d+)", text)}
    assert len(pids) >= 2
    assert not any(is_alive(pid) for pid in pids)


def test_two_kills(tmp_path: Path) -> None:
    console, output = plain_console()
    assert run_demo(directory=tmp_path, limit=LIMIT, kills=2, seed=7, console=console) == 0, output.getvalue()
    assert len(re.findall(r"kill -9 \d+", output.getvalue())) >= 2


@pytest.mark.timeout(180)
def test_three_of_four_workers_are_killed_and_the_fourth_takes_over(tmp_path: Path) -> None:
    console, output = plain_console()
    code = run_demo(directory=tmp_path, limit=LIMIT, kills=3, workers=4, console=console)
    text = output.getvalue()
    assert code == 0, text
    killed = re.findall(r"kill -9 (\d+)", text)
    assert len(killed) == len({*killed}) == 3, text
    assert [f"{left} worker" in text for left in (3, 2, 1)] == [True] * 3, text
    assert re.search(r"workers left +1 of 4", text), text
    assert "interrupted flights" in text or "no kill came in the middle of a turn" in text
    assert "nothing lost, nothing doubled, nothing out of order" in text
    pids = {int(pid) for pid in re.findall(r"process (\d+)", text)}
    assert len(pids) == 5, text
    assert not any(is_alive(pid) for pid in pids)


@pytest.mark.timeout(180)
def test_when_the_last_worker_is_killed_another_is_started(tmp_path: Path) -> None:
    console, output = plain_console()
    code = run_demo(directory=tmp_path, limit=LIMIT, kills=2, workers=2, console=console)
    text = output.getvalue()
    assert code == 0, text
    assert "was the last one; another is started in its place" in text
    assert re.search(r"workers left +1 of 2", text), text
    pids = {int(pid) for pid in re.findall(r"process (\d+)", text)}
    assert len(pids) == 4, text
    assert not any(is_alive(pid) for pid in pids)


def test_one_of_many_workers_that_cannot_start_says_why(tmp_path: Path) -> None:
    console, output = plain_console()
    assert run_demo(directory=tmp_path, url="nonsense:", limit=10, workers=2, console=console) == 1
    assert "InvalidConfig" in output.getvalue()


def test_without_kills_nothing_is_interrupted(tmp_path: Path) -> None:
    console, output = plain_console()
    assert run_demo(directory=tmp_path, limit=500, kills=0, console=console) == 0, output.getvalue()
    assert "interrupted flights" not in output.getvalue()


def test_a_store_can_be_used_again(tmp_path: Path) -> None:
    for _ in range(2):
        console, output = plain_console()
        assert run_demo(directory=tmp_path, limit=500, kills=0, console=console) == 0, output.getvalue()


def test_a_wrong_total_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compute_wrongly(lines: list[str]) -> dict[str, Logbook]:
        books = compute_logbooks(lines)
        books["N14228"].digest = "0" * 32
        return books

    monkeypatch.setattr(_run, "compute_logbooks", compute_wrongly)
    console, output = plain_console()
    assert run_demo(directory=tmp_path, limit=500, kills=0, console=console) == 1
    assert "N14228" in output.getvalue()
    assert "1 aircraft are not what the file says" in output.getvalue()


def test_ctrl_c_ends_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Screen, "progress", interrupt)
    console, output = plain_console()
    assert run_demo(directory=tmp_path, limit=500, console=console) == 130
    assert "stopped" in output.getvalue()
    (pid,) = re.findall(r"process (\d+)", output.getvalue())
    assert not is_alive(int(pid))


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    child = Child(Job(url="nonsense:", namespace="demo", limit=10, accepted=0, restarted=False), log)
    try:
        with pytest.raises(ChildFailed, match="InvalidConfig"):
            list(child.events())
    finally:
        child.stop()
    console, output = plain_console()
    assert run_demo(directory=tmp_path, url="nonsense:", limit=10, console=console) == 1
    assert "InvalidConfig" in output.getvalue()
