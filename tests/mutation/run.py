"""Runs the tests on mutants, and says what came of each."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from shutil import rmtree
from tempfile import TemporaryDirectory

from attrs import define, field, frozen

from tests.mutation.mutant import LUA_FOLDER, TABLE, DoesNotApply, Guard, Mutant, Suite, apply
from tests.mutation.stage import STAGES, Selection, stages_of
from tests.mutation.trees import ROOT, CannotTell, copy_tree, make_mutated_tree
from tests.mutation.warm import Request, TestRun, WarmTests


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
        test: the one that did.
        took_s: how long all runs took.
        hung: whether that one failed because it waited in vain.
        problem: why nothing can be said of it; "" if something can.
    """

    mutant: Mutant
    suite: Suite
    stage: str
    test: str
    took_s: float
    hung: bool = False
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
        """Whether it needs no attention."""
        return self.verdict in (Verdict.NOTICED, Verdict.EQUIVALENT)


def face(mutant: Mutant, suite: Suite, run: Callable[[Selection], TestRun], *, wide: bool) -> Outcome:
    """Run one suite's tests until one notices the mutant.

    Args:
        mutant: the mutant.
        suite: the journal.
        run: runs tests in a tree that has the mutant.
        wide: False runs only the tests that are most likely to notice.

    Raises:
        CannotTell: a run ended in a way that says nothing.
    """
    took_s = 0.0
    for stage in stages_of(mutant, suite, wide=wide):
        result = run(stage)
        took_s += result.took_s
        if result.failed:
            return Outcome(mutant, suite, stage.name, result.failed, took_s, result.hung)
        if not result.ran:
            raise CannotTell(f"there is no test of {stage}")
    return Outcome(mutant, suite, "", "", took_s)


@define(eq=False)
class Workshop:
    """Where mutants are tried, each in a copy of the tree.

    Args:
        source: the unbroken tree, with everything compiled.
        wide: False runs only the tests that are most likely to notice.
    """

    source: Path
    wide: bool
    _idle: SimpleQueue[WarmTests] = field(factory=SimpleQueue)

    @contextmanager
    def opened(self, count: int) -> Generator[None]:
        """Have as many warm processes ready, each with a tree of its own.

        Raises:
            CannotTell: one does not start.
        """
        with ExitStack() as stack:
            for number in range(count):
                tree = self.source.parent / f"warm-{number}"
                copy_tree(self.source, tree)
                self._idle.put(stack.enter_context(WarmTests(tree)))
            yield

    def check_unbroken(self, say: Callable[[str], None]) -> None:
        """Check that every stage passes where no guard is broken; else a failure would say nothing.

        Raises:
            CannotTell: a test fails, or a stage has none.
        """
        warm = self._idle.get()
        for suite, stages in STAGES.items():
            for stage in stages:
                run = warm.run(Request(stage))
                if run.failed or not run.ran:
                    raise CannotTell(f"without a mutant, {stage.targets}: {run.failed or 'no test'}")
                say(f"without a mutant: {suite.name.lower()}, {stage.name}: passed in {run.took_s:.0f} s")
        self._idle.put(warm)

    def try_mutant(self, number: int, mutant: Mutant) -> list[Outcome]:
        """Break a guard and run each suite's tests until one notices.

        Args:
            number: another one for each mutant.
            mutant: the mutant.
        """
        try:
            if mutant.guard is Guard.TRANSITION and mutant.file == TABLE:
                return self._try_table(number, mutant)
            return [self._try_function(mutant)]
        except (CannotTell, DoesNotApply) as error:
            return [Outcome(mutant, suite, "", "", 0.0, problem=str(error)) for suite in mutant.suites]

    def _try_table(self, number: int, mutant: Mutant) -> list[Outcome]:
        tree = self.source.parent / f"tree-{number}"
        try:
            make_mutated_tree(self.source, tree, mutant)
            with WarmTests(tree) as warm:
                return [
                    face(mutant, suite, lambda stage: warm.run(Request(stage)), wide=self.wide)
                    for suite in mutant.suites
                ]
        finally:
            rmtree(tree, ignore_errors=True)

    def _try_function(self, mutant: Mutant) -> Outcome:
        module = ""
        if not mutant.file.startswith(LUA_FOLDER):
            module = mutant.file.removeprefix("src/").removesuffix(".py").replace("/", ".")
        warm = self._idle.get()
        path = warm.tree / mutant.file
        unbroken = path.read_text("utf-8")
        try:
            apply(warm.tree, mutant)
            (suite,) = mutant.suites
            run = partial(Request, module=module, function=mutant.function)
            return face(mutant, suite, lambda stage: warm.run(run(stage)), wide=self.wide)
        finally:
            path.write_text(unbroken, "utf-8")
            self._idle.put(warm)


@contextmanager
def unbroken_tree() -> Generator[Path]:
    """A copy of this source tree to copy from. It is used once, so that everything in it is compiled.

    Raises:
        CannotTell: the tests cannot be collected in it.
    """
    with TemporaryDirectory(prefix="mutation-") as directory:
        source = Path(directory) / "unbroken"
        copy_tree(ROOT, source)
        with WarmTests(source):
            pass
        yield source


def try_all(
    source: Path,
    mutants: Sequence[Mutant],
    *,
    jobs: int,
    wide: bool,
    say: Callable[[Outcome | str], None],
) -> Sequence[Outcome]:
    """Try mutants side by side.

    Args:
        source: the unbroken tree.
        mutants: the mutants.
        jobs: how many at a time.
        wide: False runs only the tests that are most likely to notice, and not those of the unbroken tree first.
        say: told of each outcome when it is there.

    Raises:
        CannotTell: a process does not start, or the unbroken tests fail.
    """
    outcomes: dict[int, list[Outcome]] = {}
    workshop = Workshop(source, wide)
    with workshop.opened(min(jobs, len(mutants))), ThreadPoolExecutor(jobs) as pool:
        if wide:
            workshop.check_unbroken(say)
        running = {
            pool.submit(workshop.try_mutant, number, mutant): number for number, mutant in enumerate(mutants)
        }
        try:
            for done in as_completed(running):
                outcomes[running[done]] = done.result()
                for outcome in done.result():
                    say(outcome)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [outcome for number in sorted(outcomes) for outcome in outcomes[number]]
