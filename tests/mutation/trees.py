"""Copies of the source tree, and the test runs in them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from tests.mutation.mutant import TABLE, Mutant, apply

ROOT: Final = Path(__file__).parents[2]
#: What a tree needs to be tested and to have its generated files written again.
PARTS: Final = ("src", "tests", "docs", "pyproject.toml")
#: Of one test; a mutant may make it wait for what never comes.
TEST_TIMEOUT_S: Final = 20
#: Of one pytest: the slowest takes a tenth of that on an idle machine.
RUN_TIMEOUT_S: Final = 600.0
STOP_TIMEOUT_S: Final = 60.0

_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - (.*))?$", re.MULTILINE)
#: What is said of a program that cannot run at all: that would show nothing of the guard.
_BROKEN = re.compile(
    r"Error (?:compiling|registering) function|attempt to (?:index|call|compare|concatenate|perform)"
    r"|SyntaxError|ImportError|NameError|AttributeError"
)


class CannotTell(Exception):
    """A test run ended in a way that says nothing about the guard."""


@frozen
class TestRun:
    """How a run of some tests ended.

    Args:
        failed: the test that failed; "" if all passed.
        reason: what it said, one line.
        ran: whether there was any test to run.
        took_s: how long it took.
    """

    __test__ = False

    failed: str
    reason: str
    ran: bool
    took_s: float


def copy_tree(source: Path, tree: Path) -> None:
    """Copy what the tests need. Compiled files come along, so that a copy starts as fast as its source."""
    tree.mkdir(parents=True)
    for part in PARTS:
        if (source / part).is_dir():
            shutil.copytree(source / part, tree / part, ignore=shutil.ignore_patterns("peers", ".hypothesis"))
        else:
            shutil.copy2(source / part, tree / part)


def environment(tree: Path) -> dict[str, str]:
    """The variables for a process that is to see this tree, and nothing of a pytest around us."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {**kept, "PYTHONPATH": os.pathsep.join((str(tree / "src"), str(tree)))}


def call_python(tree: Path, *arguments: str) -> str:
    """Run Python in a tree; returns what it printed.

    Raises:
        CannotTell: it failed.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env=environment(tree),
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise CannotTell(f"python {' '.join(arguments)}: {done.stderr.strip()[-500:]}")
    return done.stdout.strip()


def check_tree(tree: Path) -> None:
    """Check that a process in the tree imports the tree's package and not an installed one.

    Raises:
        CannotTell: it does not.
    """
    found = call_python(tree, "-c", "import atomic_actors; print(atomic_actors.__file__)")
    if not Path(found).resolve().is_relative_to(tree.resolve()):
        raise CannotTell(f"a process in {tree} imports {found}")


def make_mutated_tree(source: Path, tree: Path, mutant: Mutant) -> None:
    """Copy a tree and break one guard in the copy. Where it is of the table, Lua's copy is generated again.

    Raises:
        DoesNotApply: the old text does not stand exactly once in the function.
        CannotTell: the generator failed.
    """
    copy_tree(source, tree)
    apply(tree, mutant)
    if mutant.file.endswith(".py"):
        path = tree / mutant.file
        compile(path.read_text("utf-8"), mutant.file, "exec")
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()
    if mutant.file == TABLE:
        call_python(tree, "-m", "atomic_actors.codegen", "--root", str(tree))


def run_tests(tree: Path, targets: Sequence[str], expression: str) -> TestRun:
    """Run tests in a tree until the first one fails.

    Args:
        tree: the tree.
        targets: files, classes or tests.
        expression: what `-k` is given.

    Raises:
        CannotTell: pytest did not come as far as a test, or a test said that the mutant is no program.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    command += [f"--timeout={TEST_TIMEOUT_S}", "--tb=short", "-k", expression, *targets]
    began_s = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=tree,
        env=environment(tree),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=RUN_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        # Asked nicely, pytest ends the servers of its fixtures.
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=STOP_TIMEOUT_S)
        raise CannotTell(f"pytest {' '.join(targets)} did not end; it said {output[-500:]}") from None
    finally:
        if process.poll() is None:
            process.kill()
    took_s = time.monotonic() - began_s
    if process.returncode in (0, 5):
        return TestRun("", "", process.returncode == 0, took_s)
    found = _FAILED.search(output)
    if process.returncode != 1 or found is None or _BROKEN.search(output):
        raise CannotTell(f"pytest {' '.join(targets)} ended with {process.returncode}: {output[-1500:]}")
    return TestRun(found[1], found[2] or "", True, took_s)
