"""The parts of `atomic-actors run` that need no process: reports, back-off, names of targets."""

from __future__ import annotations

import socket

import pytest

from atomic_actors.tools.workers._backoff import Backoff
from atomic_actors.tools.workers._child import describe_exit
from atomic_actors.tools.workers._reports import Failed, Numbers, Ready, Reporter, ReportReader
from atomic_actors.tools.workers._target import CannotServe, split_target

NUMBERS = Numbers(at_s=1.0, turns=2, owned=3, partitions=4, activations=5)


def test_reports_go_through_the_channel() -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        reporter, reader = Reporter(theirs), ReportReader(mine)
        assert list(reader.read_nowait()) == []
        reporter.report(Ready("redis://here", 30.0))
        reporter.report(NUMBERS)
        assert reporter.fail("no\nbank", 2, "trace") == 2
        assert list(reader.read_nowait()) == [
            Ready("redis://here", 30.0),
            NUMBERS,
            Failed("no\nbank", 2, "trace"),
        ]
        theirs.close()
        assert list(reader.read_nowait()) == []
        assert reader.ended


def test_half_a_line_and_what_a_newer_release_says_are_left_out() -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        reader = ReportReader(mine)
        theirs.send(
            b'{"type":"weather","sun":1}\n{"type":"failed","text":"a","code":1,"more":2}\n{"type":"rea'
        )
        assert list(reader.read_nowait()) == [Failed("a", 1)]
        theirs.send(b'dy","store":"s","drain_timeout_s":1}\n{"ty')
        theirs.close()
        assert list(reader.read_nowait()) == [Ready("s", 1.0)]
        assert reader.ended


def test_a_parent_that_does_not_listen_holds_nobody_up() -> None:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        reporter, reader = Reporter(theirs), ReportReader(mine)
        for _ in range(20_000):
            reporter.report(NUMBERS)
        reporter.report(Failed("a", 1))
        first = list(reader.read_nowait())
        reporter.report(NUMBERS)
        rest = list(reader.read_nowait())
    # Numbers may be missing, lines are whole, and what matters arrives.
    assert len(first) < 20_000
    assert set(map(type, first)) == {Numbers}
    assert [report for report in rest if isinstance(report, Failed)] == [Failed("a", 1)]


def test_a_parent_that_is_gone_is_no_error() -> None:
    mine, theirs = socket.socketpair()
    with theirs:
        mine.close()
        Reporter(theirs).report(NUMBERS)


def test_back_off_doubles_up_to_a_limit_and_starts_anew_after_good_service() -> None:
    backoff = Backoff(initial_s=0.5, maximum_s=3.0, healthy_after_s=10.0)
    assert [backoff.next_wait_s(served) for served in (0, 0, 9, 0, 0, 0)] == [0, 0.5, 1, 2, 3, 3]
    assert [backoff.next_wait_s(served) for served in (10, 0, 0)] == [0, 0.5, 1]
    last = 0.0
    for _ in range(5_000):
        last = backoff.next_wait_s(0)
    assert last == 3.0


@pytest.mark.parametrize(
    ("code", "said"),
    [(0, "ended with exit code 0"), (-9, "was killed by SIGKILL"), (-250, "was killed by signal 250")],
)
def test_exits_in_words(code: int, said: str) -> None:
    assert describe_exit(code) == said


def test_targets() -> None:
    assert split_target("shop.app:make.it") == ("shop.app", "make.it")
    for wrong in ("", "shop", "shop:", ":system", "shop:a b", "sh-op:system", "shop:system()", "a:b:c"):
        with pytest.raises(CannotServe, match=r"package\.module:name"):
            split_target(wrong)
