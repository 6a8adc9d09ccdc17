"""Which tests a mutant has to face, in which order, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Final

from attrs import frozen

from tests.mutation.mutant import DoesNotApply, Mutant, Suite
from tests.mutation.trees import (
    ROOT,
    CannotTell,
    TestRun,
    copy_tree,
    make_mutated_tree,
    run_tests,
)

DIFFERENTIAL: Final = "tests/conformance/test_differential.py"


@frozen
class Stage:
    """Some tests.

    Args:
        name: what they are called in the report.
        targets: files, classes or tests.
        expression: which of them.
    """

    name: str
    targets: tuple[str, ...]
    expression: str


#: From the fastest and most telling to the slowest.
STAGES: Final[dict[Suite, tuple[Stage, ...]]] = {
    Suite.STORE: (
        Stage("conformance", (Suite.STORE,), "asyncio and once"),
        Stage("differential", (DIFFERENTIAL,), "long_walk and valkey"),
        Stage("conformance, other modes", (Suite.STORE,), "asyncio and not once"),
        Stage("wire", ("tests/redis/test_wire.py",), "asyncio and not asyncio-redis"),
    ),
    Suite.MEMORY: (
        Stage("conformance", (Suite.MEMORY,), "asyncio"),
        Stage(
            "memory",
            ("tests/conformance/test_journals.py",),
            "asyncio and not TestMemoryJournal and not TestGroupCommit",
        ),
        Stage("differential", (DIFFERENTIAL,), "long_walk and valkey"),
    ),
}


class Verdict(StrEnum):
    """What came of a mutant."""

    NOTICED = "noticed"
    SURVIVED = "survived"
    EQUIVALENT = "equivalent"
    #: It is said to be equivalent, and a test noticed it.
    NOT_EQUIVALENT = "not equivalent"
    BROKEN = "broken"


@frozen
class Outcome:
    """What came of a mutant.

    Args:
        mutant: the mutant.
        suite: the journal that was tested.
        stage: the tests that noticed it; "" if none did.
        run: how their run ended, or the last one did.
        took_s: how long all runs took.
        problem: why nothing can be said of it; "" if something can.
    """

    mutant: Mutant
    suite: Suite
    stage: str
    run: TestRun
    took_s: float
    problem: str = ""

    @property
    def verdict(self) -> Verdict:
        """In one word."""
        if self.problem:
            return Verdict.BROKEN
        if self.mutant.equivalent:
            return Verdict.NOT_EQUIVALENT if self.stage else Verdict.EQUIVALENT
        return Verdict.NOTICED if self.stage else Verdict.SURVIVED

    @property
    def is_fine(self) -> bool:
        """Whether nobody has to do anything about it."""
        return self.verdict in (Verdict.NOTICED, Verdict.EQUIVALENT)


def likely_stage(mutant: Mutant, suite: Suite) -> Stage:
    """The tests that are most likely to notice a mutant."""
    paths = tuple(test for test in mutant.tests if "::" in test)
    names = [test.rpartition("::")[2] for test in mutant.tests]
    targets = (*paths, *([str(suite)] if len(paths) < len(mutant.tests) else []))
    return Stage("likely", targets, f"asyncio and not asyncio-redis and ({' or '.join(names)})")


def stages_of(mutant: Mutant, suite: Suite, *, wide: bool) -> Generator[Stage]:
    """The tests that a mutant has to face, in order.

    Args:
        mutant: the mutant.
        suite: the journal.
        wide: False for only those that are most likely to notice.
    """
    if mutant.tests:
        yield likely_stage(mutant, suite)
    if wide:
        yield from STAGES[suite]


def try_mutant(source: Path, tree: Path, mutant: Mutant, suite: Suite, *, wide: bool) -> Outcome:
    """Break a guard in a copy of a tree and run one suite's tests until one notices.

    Args:
        source: the tree.
        tree: where the copy goes.
        mutant: the mutant.
        suite: the journal.
        wide: False runs only the tests that are most likely to notice.
    """
    run, took_s = TestRun("", "", False, 0.0), 0.0
    try:
        make_mutated_tree(source, tree, mutant)
        for stage in stages_of(mutant, suite, wide=wide):
            run = run_tests(tree, stage.targets, stage.expression)
            took_s += run.took_s
            if run.failed:
                return Outcome(mutant, suite, stage.name, run, took_s)
    except (CannotTell, DoesNotApply) as error:
        return Outcome(mutant, suite, "", run, took_s, str(error))
    return Outcome(mutant, suite, "", run, took_s)


def check_unbroken(source: Path, say: Callable[[str], None]) -> None:
    """Check that every stage passes where no guard is broken; else a failure would say nothing.

    Raises:
        CannotTell: a test fails, or a stage has none.
    """
    for suite, stages in STAGES.items():
        for stage in stages:
            run = run_tests(source, stage.targets, stage.expression)
            if run.failed or not run.ran:
                raise CannotTell(f"without a mutant, {stage.targets}: {run.failed or 'no test'} {run.reason}")
            say(f"without a mutant: {suite.name.lower()}, {stage.name}: passed in {run.took_s:.0f} s")


@contextmanager
def unbroken_tree() -> Generator[Path]:
    """A copy of this source tree to copy from. It is used once, so that everything in it is compiled.

    Raises:
        CannotTell: a test failed in it.
    """
    with TemporaryDirectory(prefix="mutation-") as directory:
        source = Path(directory) / "unbroken"
        copy_tree(ROOT, source)
        targets = (*Suite, DIFFERENTIAL, "tests/redis/test_wire.py")
        run = run_tests(source, targets, "asyncio-once and test_claim_renew_release")
        if run.failed or not run.ran:
            raise CannotTell(f"without a mutant: {run.failed or 'no test'} {run.reason}")
        yield source


def try_all(
    source: Path, mutants: Iterable[Mutant], *, jobs: int, wide: bool, say: Callable[[Outcome], None]
) -> Sequence[Outcome]:
    """Try mutants side by side, each in a tree of its own that is removed afterwards.

    Args:
        source: the unbroken tree.
        mutants: the mutants.
        jobs: how many at a time.
        wide: False runs only the tests that are most likely to notice.
        say: told of each outcome when it is there.
    """

    def attempt(number: int, mutant: Mutant, suite: Suite) -> Outcome:
        tree = source.parent / f"tree-{number}"
        try:
            return try_mutant(source, tree, mutant, suite, wide=wide)
        finally:
            rmtree(tree, ignore_errors=True)

    pairs = [(mutant, suite) for mutant in mutants for suite in mutant.suites]
    outcomes: dict[int, Outcome] = {}
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(attempt, number, *pair): number for number, pair in enumerate(pairs)}
        try:
            for done in as_completed(running):
                outcomes[running[done]] = done.result()
                say(done.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [outcomes[number] for number in sorted(outcomes)]
