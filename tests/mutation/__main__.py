"""Breaks each guard in turn and runs the tests that should notice: `python -m tests.mutation --jobs 2`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mutation.mutant import DoesNotApply, Mutant, mutate
from tests.mutation.report import summary, write_report
from tests.mutation.run import Outcome, try_all, unbroken_tree
from tests.mutation.table import MUTANTS
from tests.mutation.trees import ROOT, CannotTell


def chosen(names: Sequence[str]) -> list[Mutant]:
    """The mutants whose names are given, or begin with what is given; all if nothing is."""
    return [mutant for mutant in MUTANTS if not names or mutant.name.startswith(tuple(names))]


def check_applies(mutants: Sequence[Mutant]) -> None:
    """Check all of them before the first one runs.

    Raises:
        DoesNotApply: the text of one does not stand exactly once where it should.
    """
    for mutant in mutants:
        mutate((ROOT / mutant.file).read_text("utf-8"), mutant)


def describe(outcome: Outcome) -> str:
    """An outcome in one line, or a few where there is a problem."""
    by = (
        f"{outcome.test.rpartition('::')[2]} ({outcome.stage}){', which waited in vain' if outcome.hung else ''}"
        if outcome.stage
        else outcome.problem
    )
    return (
        f"{outcome.verdict} {outcome.mutant.name} ({outcome.suite.name.lower()}, {outcome.took_s:.0f} s) {by}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Returns:
        0; 1 if a mutant survived or could not be judged; 2 if one does not apply or the unbroken tests fail.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="a mutant, or how names begin"
    )
    parser.add_argument("--list", action="store_true", help="only name the mutants")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default 2)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a page in Markdown there")
    parser.add_argument("--likely", action="store_true", help="only the tests that are most likely to notice")
    options = parser.parse_args(arguments)
    mutants = chosen(options.only)
    if not mutants:
        parser.error(f"there is no mutant {' or '.join(options.only)}; --list names them")
    if options.list:
        for mutant in mutants:
            print(f"{mutant.name}  {mutant.guard}: {mutant.protects}")
        return 0
    began_s = time.monotonic()
    total, shown = sum(len(mutant.suites) for mutant in mutants), 0

    def show(outcome: Outcome | str) -> None:
        nonlocal shown
        if isinstance(outcome, str):
            print(outcome, flush=True)
            return
        shown += 1
        print(f"[{shown:3}/{total} {time.monotonic() - began_s:5.0f} s] {describe(outcome)}", flush=True)

    try:
        check_applies(mutants)
        with unbroken_tree() as source:
            outcomes = try_all(source, mutants, jobs=options.jobs, wide=not options.likely, say=show)
    except (CannotTell, DoesNotApply) as error:
        print(error, file=sys.stderr)
        return 2
    took_s = time.monotonic() - began_s
    print(summary(outcomes, took_s))
    if options.report:
        options.report.write_text(write_report(outcomes, took_s), "utf-8")
    return 0 if all(outcome.is_fine for outcome in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
